"""What callers pass, as the verbs take it: integers, numbers of bytes; pure."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ._ranges import integer

T = TypeVar("T")

#: No process can map more: half of what 48 bits address.
MOST_BYTES = 1 << 47


def plain_integers(*numbers: object) -> bool:
    """Tell whether the native verbs take these as they are; NumPy's integers they do not."""
    return all(isinstance(number, int) for number in numbers)


def byte_count(size: object, name: str) -> int:
    """Check a size given by the caller."""
    count = integer(size, name)
    if count < 0:
        raise ValueError(f"{name} is {count}: it is a number of bytes and cannot be negative")
    if count > MOST_BYTES:
        raise ValueError(f"{name} is {count}: no process can map more than {MOST_BYTES} bytes")
    return count


def at_least(least: int, value: object, name: str, reason: str) -> int:
    """Check a number given by the caller that makes no sense below a bound."""
    number = integer(value, name)
    if number < least:
        raise ValueError(f"{name} is {number}: {reason}")
    return number


def flag(value: object, name: str) -> bool:
    """Check a switch: what only counts as true is more likely a mistake."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {reprlib.repr(value)}: use True or False")
    return value


def seconds(value: object, name: str) -> float:
    """Check a duration given by the caller; an infinite one is no limit."""
    duration = value if isinstance(value, int | float) else None
    if duration is None and hasattr(value, "__float__"):  # a number of NumPy's, a fraction
        duration = float(value)
    if duration is None:
        raise TypeError(f"{name} is {reprlib.repr(value)}: give a number of seconds")
    if math.isnan(duration):
        raise ValueError(f"{name} is {value}: give a number of seconds")
    return duration


def time_limit(timeout: object) -> float | None:
    """Check how long to wait at most; None means no limit."""
    return None if timeout is None else seconds(timeout, "timeout")


def function(value: object, name: str) -> None:
    """Refuse what cannot be called, before it would be."""
    if not callable(value):
        raise TypeError(f"{name} is {reprlib.repr(value)}: give a function")


def pairs(items: Iterable[tuple[T, Any]], name: str, example: str) -> Iterator[tuple[T, Any]]:
    """Yield pairs; the error for what is none says which item it was."""
    try:
        each = iter(items)
    except TypeError:
        raise TypeError(
            f"{name} is {reprlib.repr(items)}: give pairs, such as [{example}]"
        ) from None
    for at, item in enumerate(each):
        try:
            first, second = item
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}[{at}] is {reprlib.repr(item)}: give a pair, such as {example}"
            ) from None
        yield first, second


def ranges_of(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what ``read_many`` was given, as it has to be."""
    return pairs(ranges, "ranges", "(0, 16)")


def items_of(items: Iterable[tuple[int, object]]) -> Iterator[tuple[int, object]]:
    """Yield what ``write_many`` was given, as it has to be."""
    return pairs(items, "items", '(0, b"data")')
