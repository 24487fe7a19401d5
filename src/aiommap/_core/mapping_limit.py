"""The kernel's limit on the mappings of a process, which it tells as a lack of memory."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

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


def mapping_limit_soon() -> str:
    """Say the same on the loop thread, without counting, which takes a while where there are many.

    So it is told by trying, and not where a limit on memory may be what refuses.
    """
    with suppress(OSError, ValueError):
        limit = _limit()
        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return ""
        try:
            mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ).close()
        except OSError as error:
            if error.errno == errno.ENOMEM:
                return (
                    f"this process has all {limit} mappings that the kernel allows "
                    "(vm.max_map_count): raise that with sysctl(8), or map less"
                )
    return ""


def _limit() -> int:
    with open("/proc/sys/vm/max_map_count", encoding="utf-8") as file:
        return int(file.read())


def no_address_space(length: int) -> str:
    """Say what was missing where this number of bytes could not be mapped, and what to do."""
    return (
        f"the process has no {length} bytes of address space left to map it in: ask for less, or "
        "map fewer files at once"
    )


@contextmanager
def naming_the_want(
    path: str, length: int, found: Callable[[], str] = mapping_limit
) -> Iterator[None]:
    """Say of an ENOMEM in the block, which maps ``length`` bytes, what there is too little of."""
    try:
        with naming_the_limit(path, found):
            yield
    except OSError as error:
        if error.errno == errno.ENOMEM and error.filename is None:
            reason = f"{os.strerror(errno.ENOMEM)}: {no_address_space(length)}"
            raise OSError(errno.ENOMEM, reason, path) from error
        raise


@contextmanager
def naming_the_limit(path: str, found: Callable[[], str] = mapping_limit) -> Iterator[None]:
    """Say of an ENOMEM in the block that it is the limit, if it is; let others pass."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM and (full := found()):
            raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)}: {full}", path) from error
        raise
