"""Holes of a file: ranges without blocks, which read as zeros.

In a file system in memory (tmpfs), a load of a hole through the mapping allocates a page for good,
and may fill the file system. A read through the descriptor allocates none and never waits. So verbs
that make pages present skip the holes there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from .._native import Mapping


def keeps_holes(mapping: Mapping) -> bool:
    """Tell whether a file is in a file system in memory and has holes. Worker threads only."""
    if not mapping.in_memory:
        return False
    found = os.fstat(mapping.fd)
    # Pages that are reserved and were never stored to have blocks, so they are not holes.
    return found.st_blocks * 512 < found.st_size


def next_data(fd: int, at: int, end: int) -> tuple[int, int]:
    """Find the first range at or behind a byte that has blocks; ``(end, end)`` if there is none.

    Bytes beyond the end of the file are not a hole; they count as data.
    """
    size = os.fstat(fd).st_size
    if at >= size:
        return at, end
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        stop = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError:  # ENXIO: a hole up to the end of the file
        return min(size, end), end
    return min(start, end), end if stop >= size else min(stop, end)


def holes(fd: int, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the holes of a range, as (offset, end)."""
    while at < end:
        start, stop = next_data(fd, at, end)
        if at < start:
            yield at, start
        at = stop
