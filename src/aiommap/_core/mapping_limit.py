"""The kernel's limit on the mappings of a process, which it reports as a lack of memory."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: How far below the limit the kernel may refuse: splitting a mapping takes one or two more.
NEAR = 2


def mapping_limit() -> str:
    """Say that the limit is reached, and what to do; "" if it is not. For worker threads."""
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
    """Say the same on the loop thread, without counting: to count many mappings takes a while.

    Instead it tries to make a mapping. Under a limit on address space a failure of that would prove
    nothing, so then it returns "".
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
    """Say that there are no addresses left to map this number of bytes, and what to do."""
    return (
        f"the process has no {length} bytes of address space left to map it in: ask for less, or "
        "map fewer files at once"
    )


@contextmanager
def naming_the_want(
    path: str, length: int, found: Callable[[], str] = mapping_limit
) -> Iterator[None]:
    """Explain an ENOMEM in the block, which maps ``length`` bytes: the limit, or address space."""
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
    """Explain an ENOMEM in the block if the limit is the reason; let other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM and (full := found()):
            raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)}: {full}", path) from error
        raise
