"""Searching: find the first or last place of some bytes in a range of a file.

A worker reads the range piece by piece. Each piece includes enough of the next one for a match that
lies across the two. So memory stays bounded, and a page that the file loses meanwhile is an error
as for any read. The loop thread searches a short range itself if it is in memory.
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

#: The longest range that the loop thread searches; as much as it copies at once.
INLINE_BYTES = 64 << 10
#: The bytes that a worker reads at a time.
PIECE_BYTES = 1 << 20
#: The bytes that a worker searches in one hop; a cancellation is seen between two hops.
HOP_BYTES = 16 << 20


def bounds(start: SupportsIndex | None, end: SupportsIndex | None, length: int) -> tuple[int, int]:
    """Convert the bounds of a slice of ``length`` bytes to offsets; they may be in wrong order."""
    low = 0 if start is None else integer(start, "start")
    high = length if end is None else integer(end, "end")
    low = max(low + length, 0) if low < 0 else low
    high = max(high + length, 0) if high < 0 else min(high, length)
    return low, high


def needle_of(needle: object) -> bytes:
    """Copy what ``bytes.find`` would take; a copy, because a worker may outlive the verb."""
    return bytes([needle]) if isinstance(needle, int) else bytes(export_bytes(needle))


class Searcher:
    """Searches one file."""

    __slots__ = ("_core", "_reader")

    def __init__(self, core: FileCore, reader: Reader) -> None:
        self._core = core
        self._reader = reader

    async def search(self, needle: bytes, start: int, end: int, *, last: bool) -> int:
        """Return the first or last place of the needle in a checked range of the file, or -1."""
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
        """Search the range of one hop. Only for threads that may wait."""
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
