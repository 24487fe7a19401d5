"""Flush policies: when background flushes make written bytes durable.

Pure: a policy is a value. ``_flush/trigger`` decides from it, and from counts and times, whether a
flush is due.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import SupportsFloat, SupportsIndex, TypeVar

Limit = TypeVar("Limit", int, float)


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """When writes are flushed; made by its class methods, and immutable.

    Explicit calls of ``flush``, ``flush_range`` and ``wait_durable`` do the same under every
    policy. A policy only adds flushes that nobody asks for. Policies combine with ``|``: a flush is
    due as soon as one of them says so.

    Attributes:
        flush_at_close: whether ``aclose`` flushes bytes that are still dirty.
        flush_each_write: whether ``write`` returns only once its bytes are durable.
        due_bytes: a flush is due once this many bytes were written since the last one began.
        due_writes: a flush is due once there were this many writes since the last one began.
        due_seconds: a flush is due once the oldest dirty byte is this old.
        dirty_limit: bytes that may be dirty, or on their way to the disk, before a write waits.
    """

    flush_at_close: bool = True
    flush_each_write: bool = False
    due_bytes: int | None = None
    due_writes: int | None = None
    due_seconds: float | None = None
    dirty_limit: int | None = None

    @classmethod
    def never(cls) -> FlushPolicy:
        """Leave write-back to the operating system, even at close."""
        return cls(flush_at_close=False)

    @classmethod
    def manual(cls) -> FlushPolicy:
        """Flush when asked, and once more at close."""
        return cls()

    @classmethod
    def always(cls) -> FlushPolicy:
        """Make every write durable before it returns; concurrent writes share one flush."""
        return cls(flush_each_write=True)

    @classmethod
    def every_bytes(cls, count: SupportsIndex) -> FlushPolicy:
        """Flush in the background whenever this many bytes were written.

        Raises:
            ValueError: if the count is not positive.
        """
        return cls(due_bytes=_positive(count, "every_bytes"))

    @classmethod
    def every_writes(cls, count: SupportsIndex) -> FlushPolicy:
        """Flush in the background after this many writes; each item of ``write_many`` is one.

        Raises:
            ValueError: if the count is not positive.
        """
        return cls(due_writes=_positive(count, "every_writes"))

    @classmethod
    def every_interval(cls, seconds: SupportsFloat) -> FlushPolicy:
        """Flush in the background once the oldest dirty byte is this old; a clean file rests.

        Raises:
            ValueError: if the number of seconds is not finite and above 0.
        """
        if not isinstance(seconds, SupportsFloat):  # float() takes text, too
            raise TypeError(f"every_interval got {seconds!r}: give a number of seconds")
        period = float(seconds)
        if not (period > 0 and math.isfinite(period)):
            raise ValueError(f"every_interval got {seconds}: give seconds, finite and above 0")
        return cls(due_seconds=period)

    @classmethod
    def max_dirty(cls, count: SupportsIndex) -> FlushPolicy:
        """Make a write wait for a flush first if more bytes than this would become dirty.

        The limit counts whole pages. A single write above it waits until no other byte is dirty.

        Raises:
            ValueError: if the count is not positive.
        """
        return cls(dirty_limit=_positive(count, "max_dirty"))

    def __or__(self, other: object) -> FlushPolicy:
        """Combine two policies: a flush is due when the first of them says so."""
        if not isinstance(other, FlushPolicy):
            return NotImplemented
        if self == other:
            return self
        if not (self.flush_at_close and other.flush_at_close):
            raise ValueError(
                "never() promises that nothing is flushed unasked, so it cannot be combined: "
                "start from manual(), which flushes at close only"
            )
        return FlushPolicy(
            flush_each_write=self.flush_each_write or other.flush_each_write,
            due_bytes=_first(self.due_bytes, other.due_bytes),
            due_writes=_first(self.due_writes, other.due_writes),
            due_seconds=_first(self.due_seconds, other.due_seconds),
            dirty_limit=_first(self.dirty_limit, other.dirty_limit),
        )

    @property
    def passive(self) -> bool:
        """Whether it never asks for a background flush, nor makes writes wait for room."""
        limits = (self.due_bytes, self.due_writes, self.due_seconds, self.dirty_limit)
        return limits == (None, None, None, None)

    def __repr__(self) -> str:
        parts = [
            f"{name}({value})"
            for name, value in (
                ("every_bytes", self.due_bytes),
                ("every_writes", self.due_writes),
                ("every_interval", self.due_seconds),
                ("max_dirty", self.dirty_limit),
            )
            if value is not None
        ]
        if self.flush_each_write:
            parts.insert(0, "always()")
        if not parts:
            parts = ["manual()" if self.flush_at_close else "never()"]
        return " | ".join(f"FlushPolicy.{part}" for part in parts)


def _positive(count: SupportsIndex, name: str) -> int:
    try:
        number = operator.index(count)
    except TypeError:
        raise TypeError(f"{name} got {count!r}: give an integer") from None
    if number < 1:
        raise ValueError(f"{name} got {number}: give at least 1")
    return number


def _first(a: Limit | None, b: Limit | None) -> Limit | None:
    """Return the lower limit; None is never reached."""
    return min((limit for limit in (a, b) if limit is not None), default=None)


#: The policy of a file that is opened without one.
MANUAL = FlushPolicy.manual()
