"""The kernel's limit on the mappings of a process, which it tells as a lack of memory."""

from __future__ import annotations

from contextlib import suppress

#: Where the kernel refuses: to split a mapping from one below the limit on.
NEAR = 2


def mapping_limit() -> str:
    """Say that the limit is reached, and what to do; empty if it is not. For worker threads."""
    with suppress(OSError, ValueError):
        with open("/proc/sys/vm/max_map_count", encoding="utf-8") as file:
            limit = int(file.read())
        with open("/proc/self/maps", "rb") as file:
            count = sum(1 for _ in file)
        if count >= limit - NEAR:
            return (
                f"this process has {count} mappings, and the kernel allows {limit} "
                "(vm.max_map_count): raise that with sysctl(8), or map less"
            )
    return ""
