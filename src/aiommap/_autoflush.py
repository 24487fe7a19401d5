"""Flushes that nobody asked for, and writers that have to wait: one file's flush policy at work.

Theory of operation. Inline stores run in native code, which knows only a *trip*: counts of bytes,
writes and dirty pages that it may not reach. The store that would get there takes the slow way,
and ends up in ``plan``, which looks what is due, asks the scheduler, and sets the next trip.

Invariants.
  A1  While a file is clean and its policy has an interval, the trip is at zero: the first store
      after a flush always gets here, and sets the timer. Otherwise inline stores cost nothing.
  A2  At most one timer and one request are out for a file; both are dropped when it closes.
  A3  A writer that waits for room is passed by no other writer (I9), and the loop never waits.
  A4  Timers and requests are made on the loop thread only: a view's memory is lent in any thread,
      and a timer that no loop runs would keep all files of the hub from being flushed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio

from ._core import Core
from ._errors import FlushError
from ._flush import Flusher
from ._logs import FLUSHES
from ._native import TRIP_NEVER
from ._policy import FlushPolicy
from ._requests import Request
from ._schedule import Timer
from ._scheduler import FlushScheduler, Target

#: A flush for which there was no thread is tried again after so long.
RETRY_SECONDS = 0.25


class AutoFlush:
    """Keeps one file's flush policy; a target of its hub's scheduler."""

    __slots__ = ("_asked", "_core", "_flusher", "_queue", "_scheduler", "_timer", "_waiting")

    def __init__(self, core: Core, flusher: Flusher, scheduler: FlushScheduler) -> None:
        self._core = core
        self._flusher = flusher
        self._scheduler = scheduler
        self._timer: Timer[Target] | None = None
        self._asked = False
        self._queue: anyio.Lock | None = None
        self._waiting = 0
        flusher.after_batch = self.plan
        core.dirtied = self.plan
        self.plan()

    def replace(self, policy: FlushPolicy) -> None:
        """Go on with another policy."""
        core = self._core
        core.lanes.draining = core.lanes.durable_writes and self._flusher.busy
        core.policy = self._flusher.ledger.policy = policy
        core.choose_inline_writes()
        self._drop_timer()
        self.plan()

    def stop(self) -> None:
        """Ask for nothing more; called when the file closes."""
        self._drop_timer()
        self._asked = False
        self._scheduler.forget(self)

    def plan(self) -> None:
        """Look what is due, ask for it, and set the trip of inline stores."""
        core = self._core
        if not core.workers.on_loop():
            core.workers.call_from_thread(self.plan)  # A4
            return
        idle = core.policy.passive and not self._waiting
        failed = core.failure is not None or self._flusher.told
        if idle or not core.shared_writable or core.closing or failed:
            core.mapping.set_trip(TRIP_NEVER, TRIP_NEVER, TRIP_NEVER)
            return
        since = self._dirty_since()
        if not self._asked:
            if self._due(since):
                self._asked = True
                self._drop_timer()
                self._scheduler.soon(self)
            else:
                self._set_timer(since)
        self._set_trip(since)

    async def flush_unasked(self) -> None:
        """Take the turn that was asked for."""
        core = self._core
        self._asked = True
        self._drop_timer()
        try:
            if not core.closing and core.failure is None and self._due(self._dirty_since()):
                await self._flusher.submit(Request(0, core.mapping.size))
        except (FlushError, OSError):
            pass  # latched: whoever writes, flushes, waits or closes is told, and so are listeners
        except Exception as error:  # no thread can be started, for one
            FLUSHES.error("%s was not flushed, and will be tried again: %s", core.path, error)
            await anyio.sleep(RETRY_SECONDS)
        finally:
            self._asked = False
            self.plan()

    @property
    def may_be_full(self) -> bool:
        """Whether there is any point in asking ``is_full``."""
        return self._waiting > 0 or self._core.policy.dirty_limit is not None

    def is_full(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Tell whether stores to these (offset, length) ranges have to wait in ``make_room``."""
        return self._waiting > 0 or self._exceeds(ranges)

    async def make_room(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Wait until the stores fit under the limit, and until all who wait already do (A3)."""
        if self._queue is None:
            self._queue = anyio.Lock()
        self._waiting += 1
        self.plan()
        try:
            with self._core.activity():
                async with self._queue:
                    await self._flush_until_they_fit(ranges)
        finally:
            self._waiting -= 1
            self.plan()

    async def _flush_until_they_fit(self, ranges: Sequence[tuple[int, int]]) -> None:
        core = self._core
        while self._exceeds(ranges):
            await core.lanes.wait_stored()  # what waits in the lane is dirty only afterwards
            await self._flusher.submit(Request(0, core.mapping.size))
            if core.mapping.writable_leases:
                return  # what such a view covers is dirty again at once

    def _exceeds(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Tell whether the stores exceed the limit by being added to others' dirty bytes."""
        limit, mapping = self._core.policy.dirty_limit, self._core.mapping
        if limit is None or not self._core.shared_writable:
            return False
        others = mapping.would_dirty(0, 0) + self._core.doing.queued_bytes
        added = sum(mapping.would_dirty(*item) - mapping.would_dirty(0, 0) for item in ranges)
        return others > 0 and added > 0 and others + added > limit

    def _due(self, since: float | None) -> bool:
        mapping = self._core.mapping
        ledger = self._flusher.ledger
        return ledger.due(mapping.written_bytes, mapping.sequence, since, time.monotonic())

    def _dirty_since(self) -> float | None:
        """When the oldest byte was stored that no flush has begun to write."""
        mapping = self._core.mapping
        if not mapping.dirty_since and mapping.writable_leases:
            mapping.dirty_bytes()  # counts what such a lease covers as dirty from this moment on
        return mapping.dirty_since / 1e9 or None

    def _set_timer(self, since: float | None) -> None:
        deadline = self._flusher.ledger.deadline(since)
        if deadline is not None and self._timer is None:
            self._timer = self._scheduler.at(deadline, self)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_trip(self, since: float | None) -> None:
        policy = self._core.policy
        room = TRIP_NEVER if policy.dirty_limit is None else policy.dirty_limit
        if self._waiting:
            room = 0
        if self._asked:
            trip = (TRIP_NEVER, TRIP_NEVER)
        elif since is None and policy.due_seconds is not None:
            trip = (0, 0)
        else:
            bytes_due, writes_due = self._flusher.ledger.trip()
            trip = (
                TRIP_NEVER if bytes_due is None else bytes_due,
                TRIP_NEVER if writes_due is None else writes_due,
            )
        self._core.mapping.set_trip(*trip, room)
