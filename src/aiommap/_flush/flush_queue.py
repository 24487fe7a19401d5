"""Which file of a hub to flush next in the background: timers in one heap, turns in one queue.

Pure: the caller passes the time, and starts the flushes.

Invariants.
  1  A file waits for its turn at most once, and never while it is being flushed. A request made
      meanwhile is kept and gets the next turn.
  2  At most ``limit`` files are being flushed at a time.
  3  Files get their turns in the order of their requests. So no file waits for more than one flush
      of each other file.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Target = TypeVar("Target", bound=Hashable)


class Timer(Generic[Target]):
    """One request for later; cancelling it leaves an empty entry behind in the heap."""

    __slots__ = ("_order", "deadline", "target")

    def __init__(self, deadline: float, order: int, target: Target) -> None:
        self.deadline: float = deadline
        self._order = order
        self.target: Target | None = target

    def take(self) -> Target | None:
        """Return the target and forget it; None if it was taken before."""
        target, self.target = self.target, None
        return target

    def __lt__(self, other: Timer[Target]) -> bool:
        return (self.deadline, self._order) < (other.deadline, other._order)


class FlushQueue(Generic[Target]):
    """Requests to flush, now or at a deadline."""

    __slots__ = (
        "_again",
        "_empty_timers",
        "_limit",
        "_order",
        "_running",
        "_timers",
        "_waiting",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._order = 0
        self._timers: list[Timer[Target]] = []
        #: How many entries of cancelled timers the heap has; removed once they are more than half.
        self._empty_timers: int = 0
        self._waiting: dict[Target, None] = {}  # an ordered set; a deque would have to be scanned
        self._running: set[Target] = set()
        self._again: set[Target] = set()

    def at(self, deadline: float, target: Target) -> Timer[Target]:
        """Request a flush for later."""
        self._order += 1
        timer = Timer(deadline, self._order, target)
        if self._empty_timers > len(self._timers) // 2:
            self._timers = [other for other in self._timers if other.target is not None]
            heapq.heapify(self._timers)
            self._empty_timers = 0
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer: Timer[Target]) -> None:
        """Cancel a request of ``at``, unless its time has come."""
        self._empty_timers += timer.take() is not None

    def soon(self, target: Target) -> None:
        """Request a flush at the next turn."""
        if target in self._running:
            self._again.add(target)
        else:
            self._waiting.setdefault(target)

    def forget(self, target: Target) -> None:
        """Drop the requests for a target, but not a flush that runs."""
        self._again.discard(target)
        self._waiting.pop(target, None)

    def start(self, now: float) -> list[Target]:
        """Give turns; each returned target counts as being flushed until ``finished``."""
        while self._timers and (self._timers[0].target is None or self._timers[0].deadline <= now):
            target = self._pop()
            if target is not None:
                self.soon(target)
        started = []
        while self._waiting and len(self._running) < self._limit:
            target = next(iter(self._waiting))
            del self._waiting[target]
            self._running.add(target)
            started.append(target)
        return started

    def finished(self, target: Target) -> None:
        """Say that the flush of a target ended."""
        self._running.discard(target)
        if target in self._again:
            self._again.discard(target)
            self._waiting.setdefault(target)

    def _pop(self) -> Target | None:
        target = heapq.heappop(self._timers).take()  # so that a later cancel does nothing
        self._empty_timers -= target is None
        return target

    def next_deadline(self) -> float | None:
        """Return the time of the earliest timer; None if there is none."""
        while self._timers and self._timers[0].target is None:
            self._pop()
        return self._timers[0].deadline if self._timers else None

    @property
    def busy(self) -> bool:
        """Whether a flush runs, or waits for its turn."""
        return bool(self._waiting or self._running)

    @property
    def idle(self) -> bool:
        """Whether nothing is requested and nothing runs."""
        return not self.busy and self.next_deadline() is None
