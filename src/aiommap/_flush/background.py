"""One file's flush policy at work: background flushes, and writers that wait for room.

Theory of operation. Native code runs the inline stores. It knows the *inline limits*: counts of
bytes, writes and dirty pages that a store may not reach. A store that would reach one takes the
slow way and calls ``plan``. That decides what is due (``FlushTrigger``), asks the hub's scheduler
for a turn or a timer, and sets the next limits. Planning and flushing need no
loop: it may be busy, or at rest between two runs.

Invariants.
  1  While a file is clean and its policy has an interval, the inline limits are zero. So the first
      store after a flush always gets here and sets the timer. Other inline stores cost nothing.
  2  A file has at most one timer and one request with the scheduler. It drops both when it closes.
  3  No other writer passes a writer that waits for room (I9), and the loop never waits.
  4  Whatever makes the file dirty, or leaves it dirty, plans in its own thread before it returns.
      So while the file is open, its oldest dirty byte has a timer (background.1) or is being
      flushed.
  5  ``plan`` sets the limits before it looks at what is due, because the loop may store meanwhile.
     So the look sees a store, or the store meets the limits. A store that is under way at that
     moment may do neither. So the loop plans as well, after each background flush.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence

import anyio

from .._core.file_core import FileCore
from .._flush_policy import FlushPolicy
from .._logs import FLUSHES
from .._native import NO_LIMIT
from .._runtime.callbacks import nothing
from .._runtime.kept_threads import clock
from .._runtime.threads import ReentrantMutex
from .flush_queue import Timer
from .flusher import Flusher
from .requests import Request
from .scheduler import FlushScheduler, Target

#: A flush that failed without latching, for want of memory for instance, is tried again after this.
RETRY_SECONDS = 0.25


class BackgroundFlush:
    """Carries out one file's flush policy; a target of its hub's scheduler."""

    __slots__ = (
        "__weakref__",
        "_asked",
        "_core",
        "_flusher",
        "_not_before",
        "_planning",
        "_queue",
        "_release_clock",
        "_route",
        "_scheduler",
        "_timer",
        "_waiting",
        "idle",
        "may_be_full",
    )

    def __init__(self, core: FileCore, flusher: Flusher, scheduler: FlushScheduler) -> None:
        self._core = core
        self._route = core.route
        self._flusher = flusher
        self._scheduler = scheduler
        self._timer: Timer[Target] | None = None
        self._asked = False
        #: When a flush that failed without latching may be tried again.
        self._not_before = 0.0
        #: Held while ``plan`` decides what is due.
        self._planning = ReentrantMutex()
        self._release_clock: Callable[[], object] = nothing
        self._queue: anyio.Lock | None = None
        self._waiting = 0
        #: Whether there is any point in asking ``is_full``.
        self.may_be_full: bool
        #: Whether there is nothing to plan: the policy asks for nothing, and nobody waits for room.
        self.idle: bool
        self._note_room()
        if core.shared_writable:
            self._keep_clock(core.route.policy)
        flusher.on_batch(self.plan)
        self.plan()

    def replace(self, policy: FlushPolicy) -> None:
        """Go on with another policy."""
        core = self._core
        if core.shared_writable:
            self._keep_clock(policy)
        core.route.replace_policy(policy, flushing=self._flusher.busy)
        self._note_room()
        self._flusher.trigger.replace_policy(policy)
        self._drop_timer()
        self.plan()

    def stop(self) -> None:
        """Ask for nothing more; called when the file closes."""
        with self._planning:
            self._drop_timer()
            self._asked = False
            self._scheduler.forget(self)
        self._release_clock()

    def _keep_clock(self, policy: FlushPolicy) -> None:
        """Keep the thread of the clock for as long as the policy may need it."""
        release, self._release_clock = self._release_clock, nothing
        if not policy.passive:
            self._release_clock = clock.keep(self)
        release()

    def plan(self) -> None:
        """Decide what is due, ask for it, and set the limits of inline stores."""
        core = self._core
        with self._planning:
            if self.idle or not core.shared_writable or core.lifecycle.closing or not core.sound:
                core.mapping.set_inline_limits(NO_LIMIT, NO_LIMIT, NO_LIMIT)
                return
            if not self._asked:
                self._set_inline_limits(self._dirty_since())
                since = self._dirty_since()  # background.5: looked at again
                if self._due(since):
                    self._ask()
                else:
                    self._set_timer(since)
            if self._asked:
                self._set_inline_limits(None)

    def _ask(self) -> None:
        self._drop_timer()
        if self._not_before > time.monotonic():
            self._timer = self._scheduler.at(self._not_before, self)
        else:
            self._asked = True
            self._scheduler.soon(self)

    def take_turn(self) -> None:
        """Flush if a flush is still due, and plan again. Worker threads only."""
        with self._planning:
            self._asked = True
            self._drop_timer()
        begun, again = False, True
        try:
            begun, again = self._flusher.flush_if_due(lambda: self._due(self._dirty_since()))
        except Exception as error:  # no memory, for instance
            FLUSHES.error("%s was not flushed, and will be tried again: %s", self._core.path, error)
        with self._planning:
            self._not_before = time.monotonic() + RETRY_SECONDS if again else 0.0
            self._asked = False
            self.plan()
        if begun:
            self._flusher.tell_loop()  # background.5: only now

    def _note_room(self) -> None:
        """Set ``may_be_full`` and ``idle``: not properties, because many writes read them."""
        policy = self._route.policy
        self.may_be_full = self._waiting > 0 or policy.dirty_limit is not None
        self.idle = policy.passive and not self._waiting

    def is_full(
        self, ranges: Sequence[tuple[int, int]], most: float = math.inf, more: int = 0
    ) -> bool:
        """Tell whether stores have to wait in ``make_room``.

        Args:
            ranges: (offset, length) of the stores; of very many, one range that includes them all.
            most: the most bytes that the stores can make dirty.
            more: bytes that a store behind the end of the file adds.
        """
        return self._waiting > 0 or self._exceeds(ranges, most, more)

    async def make_room(
        self,
        ranges: Sequence[tuple[int, int]],
        wait_stored: Callable[[], Awaitable[None]],
        most: float = math.inf,
        more: int = 0,
    ) -> None:
        """Wait until earlier writers have room, and then until these stores fit (background.3).

        Args:
            ranges, most, more: as for ``is_full``.
            wait_stored: waits until the writes submitted so far have been applied.
        """
        if self._queue is None:
            self._queue = anyio.Lock()
        self._waiting += 1
        self._note_room()
        self.plan()
        try:
            with self._core.lifecycle.activity():
                async with self._queue:
                    await self._flush_until_they_fit(ranges, wait_stored, most, more)
        finally:
            self._waiting -= 1
            self._note_room()
            self.plan()

    async def _flush_until_they_fit(
        self,
        ranges: Sequence[tuple[int, int]],
        wait_stored: Callable[[], Awaitable[None]],
        most: float,
        more: int,
    ) -> None:
        core = self._core
        while self._exceeds(ranges, most, more):
            await wait_stored()  # queued stores become dirty only when they are applied
            await self._flusher.submit(Request(0, core.mapping.size))
            if core.mapping.writable_leases:
                return  # the range of a writable lease is dirty again at once

    def _exceeds(self, ranges: Sequence[tuple[int, int]], most: float, more: int) -> bool:
        """Tell whether the stores and the bytes that are dirty already exceed the limit."""
        limit, mapping = self._route.policy.dirty_limit, self._core.mapping
        if limit is None or not self._core.shared_writable:
            return False
        others = mapping.would_dirty(0, 0) + self._core.own.queued_bytes
        added = more + sum(
            mapping.would_dirty(*item) - mapping.would_dirty(0, 0) for item in ranges
        )
        return others > 0 and added > 0 and others + min(added, most) > limit

    def _due(self, since: float | None) -> bool:
        mapping = self._core.mapping
        trigger = self._flusher.trigger
        return trigger.due(mapping.written_bytes, mapping.sequence, since, time.monotonic())

    def _dirty_since(self) -> float | None:
        """Return when the oldest byte was stored that no flush has begun to write; None if none."""
        mapping = self._core.mapping
        if not mapping.dirty_since and mapping.writable_leases:
            mapping.dirty_bytes()  # this counts the range of such a lease as dirty from now on
        return mapping.dirty_since / 1e9 or None

    def _set_timer(self, since: float | None) -> None:
        deadline = self._flusher.trigger.deadline(since)
        if deadline is not None and self._timer is None:
            self._timer = self._scheduler.at(deadline, self)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._scheduler.cancel(self._timer)
            self._timer = None

    def _set_inline_limits(self, since: float | None) -> None:
        policy = self._route.policy
        room = NO_LIMIT if policy.dirty_limit is None else policy.dirty_limit
        if self._waiting:
            room = 0
        if self._asked:
            limits = (NO_LIMIT, NO_LIMIT)
        elif since is None and policy.due_seconds is not None:
            limits = (0, 0)
        else:
            bytes_due, writes_due = self._flusher.trigger.limits()
            limits = (
                NO_LIMIT if bytes_due is None else bytes_due,
                NO_LIMIT if writes_due is None else writes_due,
            )
        self._core.mapping.set_inline_limits(*limits, room)
