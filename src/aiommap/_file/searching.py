"""Searching: where bytes begin in a range of a file, first or last.

The range is read piece by piece, each with enough of the next one for a match that lies across, so
memory stays bounded, and what the file loses meanwhile is an error as for any read. What is in
memory and short is searched on the loop thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import SupportsIndex

from .._arguments import integer
from .._core.file_core import FileCore
from .._native import export_bytes, find_bytes
from .._runtime.tracing import traced
from .._runtime.workers import OnCancel
from .reading import Reader

#: What is searched on the loop thread at most, as what is copied there.
INLINE_BYTES = 64 << 10
#: What is read at a time, and what is searched in one hop, between two looks for a cancellation.
PIECE_BYTES = 1 << 20
HOP_BYTES = 16 << 20


def bounds(start: SupportsIndex | None, end: SupportsIndex | None, length: int) -> tuple[int, int]:
    """Take two ends as a slice of so many bytes does, but for the order of the two."""
    low = 0 if start is None else integer(start, "start")
    high = length if end is None else integer(end, "end")
    low = max(low + length, 0) if low < 0 else low
    high = max(high + length, 0) if high < 0 else min(high, length)
    return low, high


def needle_of(needle: object) -> bytes:
    """Take what is searched for, as ``bytes.find`` does; a copy, for a worker may outlive us."""
    return bytes([needle]) if isinstance(needle, int) else bytes(export_bytes(needle))


class Searcher:
    """Searches one file."""

    __slots__ = ("_core", "_reader")

    def __init__(self, core: FileCore, reader: Reader) -> None:
        self._core = core
        self._reader = reader

    async def search(self, needle: bytes, start: int, end: int, *, last: bool) -> int:
        """Find the first or last place in a range of the file that was checked, or -1."""
        core = self._core
        if start > end or end - start < len(needle):
            return -1
        if not needle:
            return end if last else start
        if end - start <= INLINE_BYTES:
            data = core.mapping.read_inline(start, end - start)
            if data is None and await core.workers.checkpoint_if_due():
                core.check_usable()
                data = core.mapping.read_inline(start, end - start)
            if data is not None:
                found = find_bytes(data, needle, last)
                return found if found < 0 else start + found
        with core.lifecycle.activity(), traced("find", core.path, start, end - start) as op:
            for low, high in _pieces(start, end, len(needle), HOP_BYTES, backwards=last):
                op.hop()
                found = await core.workers.run(
                    core.workers.reads,
                    self._search,
                    needle,
                    low,
                    high,
                    last,
                    on_cancel=OnCancel.ABANDON,
                )
                if found >= 0:
                    return found
        return -1

    def _search(self, needle: bytes, start: int, end: int, last: bool) -> int:
        """Search what goes into one hop. Threads that may wait only."""
        for low, high in _pieces(start, end, len(needle), PIECE_BYTES, backwards=last):
            found = find_bytes(self._reader.read_whole(low, high - low), needle, last)
            if found >= 0:
                return low + found
        return -1


def _pieces(
    start: int, end: int, count: int, size: int, *, backwards: bool
) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces that overlap, so that each match of ``count`` bytes lies in one."""
    size = max(size, count)
    starts = range(start, end - count + 1, size)
    for low in reversed(starts) if backwards else starts:
        yield low, min(low + size + count - 1, end)
