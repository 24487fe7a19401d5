"""The flush scheduler: one per hub, which gives its files their turns for background flushes.

No background flush needs the loop: it runs while the loop is busy, or at rest between two runs. The
thread of the clock wakes the scheduler for the next deadline, and each flush runs in a worker
thread. Clean files cost nothing. Any thread may call every method.

The loop does one thing: while flushes are due, a task that nothing cancels waits for them. So
``asyncio.run`` and ``trio.run`` return only after the flushes that were due before their end.
"""

from __future__ import annotations

import math
import time
import weakref
from functools import partial
from typing import Protocol

from .._runtime.event_loop import Event
from .._runtime.kept_threads import clock, run_in_some_thread
from .._runtime.loops import spawn, wait_out
from .._runtime.threads import ReentrantMutex
from .._runtime.workers import Workers
from .flush_queue import FlushQueue, Timer

#: How many files of a hub flush in the background at a time. A disk that hangs holds that many
#: threads.
BACKGROUND_FLUSHES = 3


class Target(Protocol):
    """A file that the scheduler flushes."""

    def take_turn(self) -> None:
        """Flush, in a worker thread, if that is still due; must not raise."""

    def __hash__(self) -> int: ...


class FlushScheduler:
    """Gives turns in the order of a ``FlushQueue``. A file that asks for turns keeps the clock."""

    __slots__ = ("__weakref__", "_done", "_mutex", "_queue", "_wake_at", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        #: Ends the task that keeps the loop from ending; None while no flush is due.
        self._done: Event | None = None
        self._mutex = ReentrantMutex()
        self._queue: FlushQueue[Target] = FlushQueue(BACKGROUND_FLUSHES)
        self._wake_at = math.inf

    def at(self, deadline: float, target: Target) -> Timer[Target]:
        """Flush a file at a time of ``time.monotonic``."""
        with self._mutex:
            timer = self._queue.at(deadline, target)
            self._set_alarm()
        return timer

    def cancel(self, timer: Timer[Target]) -> None:
        """Cancel a request of ``at``."""
        with self._mutex:
            self._queue.cancel(timer)

    def soon(self, target: Target) -> None:
        """Flush a file at its next turn."""
        with self._mutex:
            self._queue.soon(target)
        self._give_turns()

    def forget(self, target: Target) -> None:
        """Drop the requests for a file, but not a flush that runs."""
        with self._mutex:
            self._queue.forget(target)

    @property
    def idle(self) -> bool:
        """Whether nothing is requested and nothing runs."""
        with self._mutex:
            return self._queue.idle

    def _give_turns(self) -> None:
        for target in self._start():
            self._launch(target)

    def _start(self) -> list[Target]:
        with self._mutex:
            started = self._queue.start(time.monotonic())
            self._set_alarm()
            self._keep_loop()
        return started

    def _keep_loop(self) -> None:
        """Keep a task on the loop for as long as flushes are due."""
        if self._queue.busy and self._done is None:
            done = self._done = self._workers.event()
            self._workers.call_on_loop(lambda: spawn(wait_out, done))
        elif self._done is not None and not self._queue.busy:
            done, self._done = self._done, None
            self._workers.call_on_loop(done.set)

    def _launch(self, target: Target) -> None:
        run_in_some_thread(partial(self._take_turns, target))

    def _set_alarm(self) -> None:
        """Set the clock for the next deadline, unless it is set for an earlier time."""
        deadline = self._queue.next_deadline()
        if deadline is not None and deadline < self._wake_at:
            self._wake_at = deadline
            clock.call_at(deadline, weakref.WeakMethod(self._wake))

    def _wake(self) -> None:
        with self._mutex:
            self._wake_at = math.inf
        self._give_turns()

    def _take_turns(self, target: Target) -> None:
        """Flush a file, and then each file that gets the next turn."""
        turns = [target]
        while turns:
            target, *others = turns
            for other in others:
                self._launch(other)
            target.take_turn()
            with self._mutex:
                self._queue.finished(target)
            turns = self._start()
