"""The flush scheduler: one per hub, which flushes any number of files when it is their turn.

It is a timer for the next deadline and a short task for each flush that runs, so that clean files
cost nothing and a hub needs no end. Every file's flush is a request in that file's own flush lane,
where it shares a group commit with whoever else asks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from ._schedule import Schedule, Timer
from ._workers import FLUSH_WORKERS, call_later, spawn

#: One worker stays free for those who wait for a flush that they asked for.
BACKGROUND_FLUSHES = FLUSH_WORKERS - 1


class Target(Protocol):
    """A file that the scheduler flushes."""

    async def flush_unasked(self) -> None:
        """Flush if that is still due; keep errors to itself."""

    def __hash__(self) -> int: ...


class FlushScheduler:
    """Runs the flushes of a ``Schedule``; for one event loop."""

    __slots__ = ("_cancel", "_schedule", "_wake_at")

    def __init__(self) -> None:
        self._schedule: Schedule[Target] = Schedule(BACKGROUND_FLUSHES)
        self._wake_at = math.inf
        self._cancel: Callable[[], object] | None = None

    def at(self, deadline: float, target: Target) -> Timer[Target]:
        """Flush a file at a time of ``time.monotonic``."""
        timer = self._schedule.at(deadline, target)
        self._sleep()
        return timer

    def soon(self, target: Target) -> None:
        """Flush a file at its next turn."""
        self._schedule.soon(target)
        self._look()

    def forget(self, target: Target) -> None:
        """Drop what was requested for a file."""
        self._schedule.forget(target)

    @property
    def idle(self) -> bool:
        """Whether nothing is requested and nothing runs."""
        return self._schedule.idle

    def _look(self) -> None:
        for target in self._schedule.start(time.monotonic()):
            spawn(self._take_turns, target)
        self._sleep()

    def _sleep(self) -> None:
        """See to it that the next deadline is not missed; an earlier waking does no harm."""
        deadline = self._schedule.next_deadline()
        if deadline is None or deadline >= self._wake_at:
            return
        if self._cancel is not None:
            self._cancel()
        self._wake_at = deadline
        self._cancel = call_later(max(deadline - time.monotonic(), 0), self._wake)

    def _wake(self) -> None:
        self._wake_at, self._cancel = math.inf, None
        self._look()

    async def _take_turns(self, target: Target) -> None:
        """Flush a file, and then whichever is next.

        In one task: one that began only when the loop was being ended would be stuck.
        """
        turns = [target]
        while turns:
            target, *others = turns
            for other in others:
                spawn(self._take_turns, other)
            await target.flush_unasked()
            self._schedule.finished(target)
            turns = self._schedule.start(time.monotonic())
        self._sleep()
