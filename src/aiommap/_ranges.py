"""Byte ranges: the one bounds check, page rounding, and sorted disjoint sets of ranges.

Pure: no file, no loop, no clock. Ranges are half-open, ``[offset, end)``, in bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


def align_down(offset: int, alignment: int) -> int:
    """Round down to a multiple of the alignment."""
    return offset - offset % alignment


def align_up(offset: int, alignment: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-offset // alignment) * alignment


class RangeSet:
    """A sorted set of disjoint half-open ranges; touching ranges are one range.

    Invariants: ``_starts`` and ``_ends`` have one length; ``_starts[i] < _ends[i] <
    _starts[i + 1]`` (a gap of at least one byte, or the two would have been merged).
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for offset, end in ranges:
            self.add(offset, end)

    def add(self, offset: int, end: int) -> None:
        """Put [offset, end) into the set."""
        if offset >= end:
            return
        first = bisect_left(self._ends, offset)
        last = bisect_right(self._starts, end)
        if first < last:
            offset = min(offset, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [offset]
        self._ends[first:last] = [end]

    def discard(self, offset: int, end: int) -> None:
        """Take [offset, end) out of the set."""
        if offset >= end:
            return
        first = bisect_right(self._ends, offset)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        low, high = self._starts[first], self._ends[last - 1]
        kept = [pair for pair in ((low, offset), (end, high)) if pair[0] < pair[1]]
        self._starts[first:last] = [pair[0] for pair in kept]
        self._ends[first:last] = [pair[1] for pair in kept]

    def covers(self, offset: int, end: int) -> bool:
        """Tell whether every byte of [offset, end) is in the set."""
        at = bisect_right(self._starts, offset) - 1
        return offset >= end or (at >= 0 and end <= self._ends[at])

    def within(self, offset: int, end: int) -> tuple[tuple[int, int], ...]:
        """Return the parts of the set that lie in [offset, end)."""
        if offset >= end:
            return ()
        first = bisect_right(self._ends, offset)
        last = bisect_left(self._starts, end)
        return tuple(
            (max(offset, self._starts[i]), min(end, self._ends[i])) for i in range(first, last)
        )

    def total(self) -> int:
        """Return the number of bytes in the set."""
        return sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def __repr__(self) -> str:
        return f"RangeSet({list(self)!r})"
