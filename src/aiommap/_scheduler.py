"""The flush scheduler: one task per hub that flushes any number of files when it is their turn.

The task exists only while something is requested or runs, so that clean files cost nothing and a
hub needs no end. Every file's flush is a request in that file's own flush lane, where it shares a
group commit with whoever else asks.
"""

from __future__ import annotations

import time
from typing import Protocol

import anyio

from ._schedule import Schedule, Timer
from ._workers import FLUSH_WORKERS, spawn

#: One worker stays free for those who wait for a flush that they asked for.
BACKGROUND_FLUSHES = FLUSH_WORKERS - 1


class Target(Protocol):
    """A file that the scheduler flushes."""

    async def flush_unasked(self) -> None:
        """Flush if that is still due; keep errors to itself."""

    def __hash__(self) -> int: ...


class FlushScheduler:
    """Runs the flushes of a ``Schedule``; for one event loop."""

    __slots__ = ("_alive", "_schedule", "_woken")

    def __init__(self) -> None:
        self._schedule: Schedule[Target] = Schedule(BACKGROUND_FLUSHES)
        self._alive = False
        self._woken: anyio.Event | None = None

    def at(self, deadline: float, target: Target) -> Timer[Target]:
        """Flush a file at a time of ``time.monotonic``."""
        timer = self._schedule.at(deadline, target)
        self._wake()
        return timer

    def soon(self, target: Target) -> None:
        """Flush a file at its next turn."""
        self._schedule.soon(target)
        self._wake()

    def forget(self, target: Target) -> None:
        """Drop what was requested for a file."""
        self._schedule.forget(target)

    def _wake(self) -> None:
        if not self._alive:
            self._alive = True
            spawn(self._run)
        elif self._woken is not None:
            self._woken.set()

    async def _run(self) -> None:
        try:
            while not self._schedule.idle:
                for target in self._schedule.start(time.monotonic()):
                    spawn(self._flush, target)
                self._woken = anyio.Event()
                deadline = self._schedule.next_deadline()
                delay = float("inf") if deadline is None else deadline - time.monotonic()
                with anyio.move_on_after(max(delay, 0)):
                    await self._woken.wait()
        finally:
            self._alive = False
            self._woken = None

    async def _flush(self, target: Target) -> None:
        try:
            await target.flush_unasked()
        finally:
            self._schedule.finished(target)
            self._wake()
