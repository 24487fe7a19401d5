"""Checks of arguments: integers, sizes, ranges, flags and functions; pure."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

from ._errors import OutOfBoundsError, OverlapError

T = TypeVar("T")

#: No process can map more: half of what 48 bits address.
MAX_BYTES = 1 << 47

_LENGTHEN = "make the file longer first, by append() or resize()"


def plain_integers(*numbers: object) -> bool:
    """Tell whether native verbs take these numbers; they take no integers of NumPy."""
    return all(isinstance(number, int) for number in numbers)


def byte_count(size: object, name: str) -> int:
    """Check a size in bytes."""
    count = integer(size, name)
    if count < 0:
        raise ValueError(f"{name} is {count}: it is a number of bytes and cannot be negative")
    if count > MAX_BYTES:
        raise ValueError(f"{name} is {count}: no process can map more than {MAX_BYTES} bytes")
    return count


def at_least(least: int, value: object, name: str, reason: str) -> int:
    """Check a number that has a lower bound."""
    number = integer(value, name)
    if number < least:
        raise ValueError(f"{name} is {number}: {reason}")
    return number


def flag(value: object, name: str) -> bool:
    """Check a switch; a value that is merely true is more likely a mistake."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {reprlib.repr(value)}: use True or False")
    return value


def seconds(value: object, name: str) -> float:
    """Check a duration in seconds, which may be infinite."""
    if isinstance(value, int | float):
        duration = value
    elif isinstance(value, SupportsFloat):  # a number of NumPy, a fraction
        duration = float(value)
    else:
        raise TypeError(f"{name} is {reprlib.repr(value)}: give a number of seconds")
    if math.isnan(duration):
        raise ValueError(f"{name} is {value}: give a number of seconds")
    return duration


def time_limit(timeout: object) -> float | None:
    """Check a timeout; None means no limit."""
    return None if timeout is None else seconds(timeout, "timeout")


def check_kind(value: object, kind: type[T], name: str, remedy: str) -> T:
    """Return a value of a class; raise a TypeError with the remedy for any other value."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {reprlib.repr(value)}: {remedy}")
    return value


def function(value: object, name: str) -> None:
    """Raise a TypeError unless the value can be called."""
    if not callable(value):
        raise TypeError(f"{name} is {reprlib.repr(value)}: give a function")


def each_of(items: Iterable[T], name: str, remedy: str) -> Iterator[T]:
    """Iterate over what the caller gave; the error for what has no items names the argument."""
    try:
        return iter(items)
    except TypeError:
        raise TypeError(f"{name} is {reprlib.repr(items)}: {remedy}") from None


def pairs(items: Iterable[tuple[T, Any]], name: str, example: str) -> Iterator[tuple[T, Any]]:
    """Yield pairs; the error for an item that is not a pair says which one it was."""
    for at, item in enumerate(each_of(items, name, f"give pairs, such as [{example}]")):
        try:
            first, second = item
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}[{at}] is {reprlib.repr(item)}: give a pair, such as {example}"
            ) from None
        yield first, second


def ranges_of(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs that the caller gave to ``read_many``."""
    return pairs(ranges, "ranges", "(0, 16)")


def items_of(items: Iterable[tuple[int, object]]) -> Iterator[tuple[int, object]]:
    """Yield the pairs that the caller gave to ``write_many``."""
    return pairs(items, "items", '(0, b"data")')


Name = TypeVar("Name", bound=Hashable)


def integer(value: object, name: str) -> int:
    """Return a plain integer; the error for any other value names the argument."""
    try:
        return operator.index(value)  # type: ignore[arg-type]  # it raises for other values
    except TypeError:
        raise TypeError(f"{name} is {reprlib.repr(value)}: give an integer") from None


def check_range(
    offset: SupportsIndex, length: SupportsIndex, limit: int, resizable: bool = False
) -> tuple[int, int]:
    """Check that a range lies within the limit; return offset and length as plain integers.

    Python integers do not overflow, so this form of the check is complete. The native module has
    the same comparison in 64 bits, and a test holds both to one table of edges.

    Args:
        offset, length: the range.
        limit: how many bytes there are.
        resizable: whether the caller can make the file longer; for the message.
    Raises:
        OutOfBoundsError: if [offset, offset + length) is not within [0, limit).
        TypeError: if either is not an integer.
    """
    start, count = integer(offset, "offset"), integer(length, "length")
    if start < 0 or count < 0 or start + count > limit:
        error = OutOfBoundsError(start, count, limit)
        if resizable and start >= 0 and count >= 0:
            raise OutOfBoundsError(start, count, limit, f"{error}, or {_LENGTHEN}")
        raise error
    return start, count


def check_tail(
    offset: SupportsIndex, length: SupportsIndex | None, limit: int, resizable: bool = False
) -> tuple[int, int]:
    """Check a range as ``check_range`` does; a length of None means to the end."""
    if length is None:
        start = integer(offset, "offset")
        if start > limit:
            reason = f"asked for bytes from {start} on but there are only {limit}: begin earlier"
            if resizable:
                reason += f", or {_LENGTHEN}"
            raise OutOfBoundsError(start, 0, limit, reason)
        return check_range(start, max(0, limit - start), limit, resizable)
    return check_range(offset, length, limit, resizable)


def check_disjoint(
    parts: Mapping[Name, tuple[SupportsIndex, SupportsIndex]], limit: int
) -> dict[Name, tuple[int, int]]:
    """Check that named ranges lie within the limit and that no two share a byte; return them.

    Raises:
        OutOfBoundsError: if a range is not within [0, limit); it names the range.
        OverlapError: if two ranges share a byte; it names both.
        TypeError: if a range is not a pair of integers; it names the range.
    """
    if not isinstance(parts, Mapping):
        raise TypeError(
            f"parts is {reprlib.repr(parts)}: give a mapping of names to (offset, length), such as "
            '{"header": (0, 16)}'
        )
    checked: dict[Name, tuple[int, int]] = {}
    behind, ascending = 0, True
    for name, part in parts.items():
        start, count = checked[name] = _check_named(name, part, limit)
        if count:
            ascending = ascending and start >= behind
            behind = start + count
    if not ascending:
        _check_overlaps(checked)
    return checked


def _check_overlaps(checked: Mapping[Name, tuple[int, int]]) -> None:
    ranges = [(at, at + length, name) for name, (at, length) in checked.items() if length]
    # If ranges in order of their starts overlap at all, two neighbours do.
    ranges.sort(key=lambda item: item[0])
    for (low, end, one), (start, high, other) in pairwise(ranges):
        if start < end:
            raise OverlapError((low, end), (start, high), (one, other))


def _check_named(
    name: object, part: tuple[SupportsIndex, SupportsIndex], limit: int
) -> tuple[int, int]:
    # The short way for a tuple of two plain integers, because there may be very many parts.
    if type(part) is tuple and len(part) == 2:
        start, count = part
        if type(start) is int and type(count) is int and 0 <= start <= limit - count <= limit:
            return start, count
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
