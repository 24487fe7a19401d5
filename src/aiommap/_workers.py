"""Worker threads: the only module that enters one, and the rules for leaving a wait early.

Terms. A *hop* is one trip to a worker thread and back, about 0.1 ms. A *job* is one hop that runs
to its end once a thread has begun it.

Invariants.
  W1  Every hop takes a token of one of our own limiters, never of the application's (I12); reads,
      stores, flushes and opening or closing have separate ones, so none can starve another.
  W2  A job that was begun is finished before the cancellation of its waiter is delivered; one
      that was not begun is withdrawn and never runs (I8). This also holds for asyncio's own
      ``Task.cancel``, from which an anyio cancel scope does not shield.
  W3  Background tasks belong to no scope of the caller: a file may be closed in another task than
      the one that opened it, and what fails in them reaches a waiter, never the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.lowlevel
import anyio.to_thread

from . import _native

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DEFAULT_READERS = 16
STORE_WORKERS = 4
FLUSH_WORKERS = 4
CONTROL_WORKERS = 2

#: asyncio keeps only weak references to tasks; these live until they are done.
_background: set[asyncio.Task[None]] = set()


def spawn(function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
    """Start a background task on the running loop; the function must not raise (W3)."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        import trio  # noqa: PLC0415  an optional peer: only loaded when it is what runs us

        trio.lowlevel.spawn_system_task(function, *args)
        return

    async def run() -> None:
        await function(*args)

    task = asyncio.create_task(run())
    _background.add(task)
    task.add_done_callback(_background.discard)


def _turn_of_this_loop() -> Callable[[], Awaitable[None]]:
    """Choose what gives way to other tasks and sees a pending cancellation.

    On asyncio and uvloop ``sleep(0)`` does all that anyio's checkpoint does, in half the time, and
    inline verbs pay for nothing else.
    """
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        return partial(asyncio.sleep, 0)
    return anyio.lowlevel.checkpoint


async def wait_or_withdraw(done: anyio.Event, withdraw: Callable[[], bool]) -> None:
    """Wait; on cancellation withdraw what has not begun, or else wait it out first (W2)."""
    cancelled = anyio.get_cancelled_exc_class()
    try:
        await done.wait()
    except cancelled:
        if withdraw():
            raise
        with anyio.CancelScope(shield=True):
            while not done.is_set():
                try:
                    await done.wait()
                except cancelled:  # asyncio's own cancel again; the first one is delivered below
                    continue
        raise


class _Job:
    """One hop with a claim: whoever takes it first, the thread or the cancellation, decides."""

    __slots__ = ("_claim", "done", "error", "result")

    def __init__(self) -> None:
        self._claim = threading.Lock()
        self.done = anyio.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def claim(self) -> bool:
        return self._claim.acquire(blocking=False)


class Workers:
    """The limiters of one hub, and the two ways to run something in a worker thread."""

    __slots__ = ("_turn", "control", "flushes", "reads", "stores")

    def __init__(self, readers: int | None = None) -> None:
        self._turn = _turn_of_this_loop()
        self.reads = anyio.CapacityLimiter(readers or DEFAULT_READERS)
        self.stores = anyio.CapacityLimiter(STORE_WORKERS)
        self.flushes = anyio.CapacityLimiter(FLUSH_WORKERS)
        self.control = anyio.CapacityLimiter(CONTROL_WORKERS)

    async def give_way(self) -> bool:
        """Let other tasks run, and see a cancellation, if the slice is spent; tell if it was."""
        if not _native.slice_spent():
            return False
        before = _native.slice_yield()
        await self._turn()
        _native.slice_renew(before)
        return True

    async def read(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Run what only fills a buffer of its own; a cancelled caller leaves it behind."""
        return await anyio.to_thread.run_sync(
            function, *args, limiter=self.reads, abandon_on_cancel=True
        )

    async def finish(
        self,
        limiter: anyio.CapacityLimiter,
        function: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> T:
        """Run a job (W2)."""
        job = _Job()

        def run() -> None:
            if job.claim():
                job.result = function(*args)

        spawn(_serve, job, limiter, run)
        await wait_or_withdraw(job.done, job.claim)
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    async def batch(
        self,
        limiter: anyio.CapacityLimiter,
        function: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> T:
        """Run on behalf of several waiters, from a background task that nobody cancels."""
        return await anyio.to_thread.run_sync(function, *args, limiter=limiter)


async def _serve(job: _Job, limiter: anyio.CapacityLimiter, run: Callable[[], None]) -> None:
    try:
        await anyio.to_thread.run_sync(run, limiter=limiter)
    except Exception as error:
        job.error = error
    finally:
        # Also when the loop is being torn down around us: no waiter may hang.
        job.done.set()
