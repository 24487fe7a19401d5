"""Byte ranges: page rounding, sorted disjoint sets of ranges, and counts of ranges that overlap.

Pure: no file, no loop, no clock. Ranges are half-open, ``[offset, end)``, in bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise


def align_down(offset: int, alignment: int) -> int:
    """Round down to a multiple of the alignment."""
    return offset - offset % alignment


def align_up(offset: int, alignment: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-offset // alignment) * alignment


class RangeSet:
    """A sorted set of disjoint half-open ranges; touching ranges are one range.

    Invariants: ``_starts`` and ``_ends`` have the same length, and ``_starts[i] < _ends[i] <
    _starts[i + 1]``: there is a gap of at least one byte, because ranges that touch are merged.
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


#: Never changed.
_NONE: list[int] = []


class RangeCounts:
    """How many half-open ranges lie over each byte.

    Invariants: ``_edges`` is sorted, without duplicates. ``_counts[i]`` holds from ``_edges[i]`` to
    the next edge, and differs from the count before it. Before the first edge the count is 0, and
    the last count is 0.
    """

    __slots__ = ("_counts", "_edges")

    def __init__(self) -> None:
        # No lists of its own until there is a range, because most files have none.
        self._edges: list[int] = _NONE
        self._counts: list[int] = _NONE

    def add(self, offset: int, end: int) -> None:
        """Count one more range [offset, end)."""
        self._change(offset, end, 1)

    def remove(self, offset: int, end: int) -> None:
        """Count one range less; the caller has added a range of exactly these bounds."""
        self._change(offset, end, -1)

    def within(self, offset: int, end: int) -> tuple[tuple[int, int], ...]:
        """Return the parts of [offset, end) that lie in any range."""
        return self._parts(offset, end, covered=True)

    def gaps(self, offset: int, end: int) -> tuple[tuple[int, int], ...]:
        """Return the parts of [offset, end) that lie in none."""
        return self._parts(offset, end, covered=False)

    def _change(self, offset: int, end: int, by: int) -> None:
        if offset >= end:
            return
        if self._edges is _NONE:
            self._edges, self._counts = [], []
        first, last = self._split(offset), self._split(end)
        for at in range(first, last):
            self._counts[at] += by
        self._join(last)
        self._join(first)

    def _split(self, offset: int) -> int:
        """Make an edge at an offset if there is none; return its index."""
        at = bisect_left(self._edges, offset)
        if at == len(self._edges) or self._edges[at] != offset:
            self._edges.insert(at, offset)
            self._counts.insert(at, self._before(at))
        return at

    def _join(self, at: int) -> None:
        """Drop an edge if the count is the same on both sides."""
        if self._counts[at] == self._before(at):
            del self._edges[at], self._counts[at]

    def _before(self, at: int) -> int:
        return self._counts[at - 1] if at else 0

    def _parts(self, offset: int, end: int, *, covered: bool) -> tuple[tuple[int, int], ...]:
        if offset >= end:
            return ()
        first, last = bisect_right(self._edges, offset), bisect_left(self._edges, end)
        found: list[tuple[int, int]] = []
        bounds = pairwise((offset, *self._edges[first:last], end))
        for at, (low, high) in enumerate(bounds, first):
            if (self._before(at) > 0) is not covered:
                continue
            joins = found and found[-1][1] == low
            found.append((found.pop()[0] if joins else low, high))
        return tuple(found)
