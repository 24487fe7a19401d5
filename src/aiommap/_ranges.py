"""Byte ranges: the one bounds check, page rounding, and sorted disjoint sets of ranges.

Pure: no file, no loop, no clock. Ranges are half-open, ``[offset, end)``, in bytes.
"""

from __future__ import annotations

import operator
import reprlib
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import SupportsIndex, TypeVar

from ._errors import OutOfBoundsError, OverlapError

Name = TypeVar("Name", bound=Hashable)


def integer(value: object, name: str) -> int:
    """Return a plain integer; the error for what is none says which argument it was."""
    try:
        return operator.index(value)  # type: ignore[arg-type]  # this finds out
    except TypeError:
        raise TypeError(f"{name} is {reprlib.repr(value)}: give an integer") from None


def check_range(
    offset: SupportsIndex, length: SupportsIndex, limit: int, resizable: bool = False
) -> tuple[int, int]:
    """Return offset and length as plain integers once they are known to lie within the limit.

    Python integers do not overflow, so this form of the check is complete; the native module has
    the same comparison in 64 bits, and a test holds the two to one edge table.

    Args:
        offset, length: what was asked for.
        limit: how many bytes there are.
        resizable: whether who asked can have more, by ``resize``; for the error.
    Raises:
        OutOfBoundsError: if [offset, offset + length) is not within [0, limit).
        TypeError: if either is not an integer.
    """
    start, count = integer(offset, "offset"), integer(length, "length")
    if start < 0 or count < 0 or start + count > limit:
        error = OutOfBoundsError(start, count, limit)
        if resizable and start >= 0 and count >= 0:
            raise OutOfBoundsError(start, count, limit, f"{error}, or resize() the file first")
        raise error
    return start, count


def check_tail(
    offset: SupportsIndex, length: SupportsIndex | None, limit: int, resizable: bool = False
) -> tuple[int, int]:
    """Check a range whose length None means "to the end"; the rest as ``check_range``."""
    if length is None:
        start = integer(offset, "offset")
        if start > limit:
            reason = f"asked for bytes from {start} on but there are only {limit}: begin earlier"
            if resizable:
                reason += ", or resize() the file first"
            raise OutOfBoundsError(start, 0, limit, reason)
        return check_range(start, max(0, limit - start), limit, resizable)
    return check_range(offset, length, limit, resizable)


def check_disjoint(
    parts: Mapping[Name, tuple[SupportsIndex, SupportsIndex]], limit: int
) -> dict[Name, tuple[int, int]]:
    """Return named (offset, length) pairs once all lie within the limit and no two share a byte.

    Raises:
        OutOfBoundsError: if a range is not within [0, limit); it names the range.
        OverlapError: if two share a byte; it names both.
        TypeError: if these are no named pairs of integers; it names the one that is not.
    """
    if not isinstance(parts, Mapping):
        raise TypeError(
            f"parts is {reprlib.repr(parts)}: give a mapping of names to (offset, length), such as "
            '{"header": (0, 16)}'
        )
    checked = {name: _check_named(name, part, limit) for name, part in parts.items()}
    ranges = [(at, at + length, name) for name, (at, length) in checked.items() if length]
    # Of ranges in order of their starts, the first that overlaps anything overlaps the next one.
    ranges.sort(key=lambda item: item[0])
    for (low, end, one), (start, high, other) in pairwise(ranges):
        if start < end:
            raise OverlapError((low, end), (start, high), (one, other))
    return checked


def _check_named(
    name: object, part: tuple[SupportsIndex, SupportsIndex], limit: int
) -> tuple[int, int]:
    example = "give (offset, length), two integers in bytes, such as (0, 16)"
    try:
        offset, length = part
    except (TypeError, ValueError) as error:
        raise TypeError(f"part {name!r} is {reprlib.repr(part)}: {example}") from error
    try:
        return check_range(offset, length, limit)
    except OutOfBoundsError as error:
        reason = f"{name!r}: {error}"
        raise OutOfBoundsError(error.offset, error.length, error.limit, reason) from None
    except TypeError as error:
        raise TypeError(f"part {name!r} is {reprlib.repr(part)}: {example} ({error})") from error


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
