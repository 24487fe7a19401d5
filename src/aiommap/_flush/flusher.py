"""Flushes of one file, the half on the loop: group commit, and the report of failures.

Theory of operation. Every request to make something durable, and every change of size, goes
through the commit queue (``_runtime/batching``). While a batch runs, requests gather. The next
batch answers all of them with one flush: that is group commit. ``Writeback`` does the work, in a
thread of the engine, or in a worker if it is more than a few system calls.

    loop     Flusher: the commit queue, at most one batch in flight
               |                      ^
               | begin                | _end: outcomes, receipts, listeners
               v                      |
    threads  Writeback, by turns: one batch, or one background flush
               ^
               | flush_if_due
    worker   BackgroundFlush, given its turn by the hub's FlushScheduler
               ^
    clock    a thread of the process: wakes the scheduler for deadlines

A background flush does not use the queue, because the queue needs the loop, and the loop may be
busy, or at rest between two runs. The mutex in ``Writeback``, the *turn*, keeps the two apart.
Workers wait for the turn. The loop never waits: if the turn is taken, it leaves the batch to a
worker.

Invariants.
  1  A flush answers only requests made before it began (I4): the queue adds to no batch in flight.
  2  A batch has only stores, receipts, requests, changes or appends: a change of size is a barrier
      in the queue. So no flush sees a change half done, or takes our own shrinking for somebody
      else's.
  3  The first failure latches (I5): every request from then on raises it, and inline stores are
      switched off. Listeners hear of it once.
  4  A store that asks for durability is applied in the hop of its flush, before the flush looks for
      dirty pages.
  5  A batch that has begun is answered once, whatever fails at its end. Listeners, logs and plans
      come before the outcome, but an error of theirs does not keep it from the waiters.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

from .._core.disk import Store
from .._core.file_core import FileCore
from .._core.receipt import WriteReceipt
from .._errors import AccessModeError, FlushError, MappingFaultError, UnsupportedError
from .._logs import FLUSHES
from .._runtime.batching import BatchQueue, Kind, Widen
from .._runtime.callbacks import Listeners, nothing
from .._runtime.event_loop import Waiter
from .._runtime.tracing import is_traced, traced
from .._runtime.workers import Limiter
from .flight import Asked, Ended, settle
from .requests import ApplyAppends, Change, Done, Outcome, Request, is_error, touch
from .trigger import FlushTrigger
from .writeback import Writeback

Item = TypeVar("Item")
Waiting: TypeAlias = Waiter[WriteReceipt | BaseException | None]
#: Looked up once, because each durable write would pay for the lookup.
RECEIPT = Kind.OTHER_PLAIN

#: Makes requests of stores and receipts when they share a batch with requests.
_WIDEN: Widen = {Kind.PLAIN: Request.of, Kind.OTHER_PLAIN: Request.of_receipt}


def _no_appends(items: Sequence[object]) -> list[Outcome]:
    """Append nothing; for a file to which nothing can be appended."""
    return [None for _ in items]


class Flusher:
    """Makes ranges of one file durable; also the owner of the receipts of that file."""

    __slots__ = (
        "_after_batch",
        "_apply_appends",
        "_core",
        "_flushable",
        "_mapping",
        "_queue",
        "_shared",
        "_told",
        "_unsynced",
        "failed",
        "trigger",
        "write",
        "writeback",
    )

    def __init__(self, core: FileCore, failed: Listeners[FlushError]) -> None:
        self._core = core
        # Values of the core, kept here because each receipt needs them.
        self._mapping = core.mapping
        self._shared = core.shared_writable
        self._flushable = core.flushable
        self._unsynced = core.unsynced
        self.trigger: FlushTrigger = FlushTrigger(core.route.policy)
        self.writeback: Writeback = Writeback(core, self, self.trigger, self._call_after_batch)
        self._queue: BatchQueue[Any, WriteReceipt | None] = BatchQueue(
            core.workers, self._begin_batch, widen=_WIDEN
        )
        #: Whether listeners have heard of a failure.
        self._told = False
        #: Stores bytes and makes them durable in the next flush. Only while no flush has failed and
        #: nobody traces. It is the queue's own function: each step more slows each durable write.
        self.write: Callable[[Store], Awaitable[WriteReceipt]] = cast(
            "Callable[[Store], Awaitable[WriteReceipt]]", self._queue.submit
        )
        self._after_batch: Callable[[], None] = nothing
        self._apply_appends: ApplyAppends = _no_appends
        #: The listeners: called on the loop with the failure that latches, or with the damage of a
        #: poisoned mapping.
        self.failed: Listeners[FlushError] = failed

    def on_batch(self, callback: Callable[[], None]) -> None:
        """Call a function after every batch, and when a failed flush left pages dirty."""
        self._after_batch = callback

    def on_append(self, apply: ApplyAppends) -> None:
        """Set the function that a worker calls for each batch of appends."""
        self._apply_appends = apply

    async def append(self, data: bytes | memoryview) -> WriteReceipt:
        """Append in the next batch of appends."""
        self._core.check_flushed()
        return cast("WriteReceipt", await self._queue.submit(data, kind=Kind.APPEND))

    async def wait_served(self) -> None:
        """Wait until all items submitted so far have been served."""
        await self._queue.settle()

    def _call_after_batch(self) -> None:
        self._after_batch()

    @property
    def durable_sequence(self) -> int:
        """Every write up to this number is durable."""
        return self._core.mapping.durable_sequence

    def begin_flush(self, receipt: WriteReceipt) -> Waiting | None:
        """Begin to make one write durable, and others with it if that costs little.

        Return None if the write is durable, or if the caller has to use ``flush_pages_of``.
        """
        if (
            self._mapping.awaits_flush(receipt)
            and self._flushable
            and self._unsynced.failure is None
            and not is_traced()
        ):
            return self._queue.join(receipt, RECEIPT)
        return None

    async def end_flush(self, error: BaseException | None, waiter: Waiting) -> None:
        """End a wait of ``begin_flush`` that failed, or that was answered without a hop."""
        if error is None:
            await self._core.workers.checkpoint_if_due()
        elif not isinstance(error, GeneratorExit):  # else the loop is gone
            await self._queue.leave_early(waiter)

    async def flush_pages_of(self, receipt: WriteReceipt) -> None:
        """Make one write durable, and flush only its pages."""
        if receipt.durable:
            return
        self._core.check_usable()
        if self._core.volatile:
            reason = "it is memory, which is gone with its last descriptor"
            raise UnsupportedError(f"make {self._core.path} durable", reason)
        if not self._shared:
            remedy = 'its stores never reach the file: use "r+"'
            raise AccessModeError("make durable what was written to", self._core.mode, remedy)
        await self.submit(Request.of_receipt(receipt))

    async def submit(self, request: Request) -> WriteReceipt | None:
        """Serve a request in the next flush; return the receipt of its stores, if it has any."""
        self._core.check_flushed()
        return await self._submit(request)

    async def flush_everything(self) -> None:
        """Make everything durable; for a file that no verb can reach any more."""
        await self._submit(Request(0, self._core.mapping.size))

    async def _submit(self, request: Request) -> WriteReceipt | None:
        name = "write" if request.stores else "flush"
        length = request.end - request.offset
        with traced(name, self._core.path, request.offset, length) as op:
            op.hop_if(lambda: bool(request.stores) or self.has_work())
            return await self._queue.submit(request, kind=Kind.GENERAL)

    async def change(self, act: Callable[[], None], *, ours: bool = True) -> None:
        """Run a function that changes the size or the blocks, or takes over a size (flusher.2)."""
        change = Change(act, self._core.own.resizing) if ours else Change(act)
        await self._queue.submit(change, kind=Kind.BARRIER)

    @property
    def busy(self) -> bool:
        """Whether any item is being served or waits for that."""
        return self._queue.busy or self.writeback.busy

    async def quiesce(self) -> None:
        """Wait for a background flush to end; only when no other one can begin."""
        if self.writeback.busy:
            await self.change(nothing, ours=False)

    def storing(self, offset: int, end: int) -> bool:
        """Tell whether the queue still has stores to a part of a range (flusher.4)."""
        stores, requests = self._queue.unfinished(), self._queue.unfinished(Kind.GENERAL)
        return touch(stores, offset, end) or any(r.stores_to(offset, end) for r in requests)

    def has_work(self) -> bool:
        """Tell whether a flush would do anything, or wait for one under way."""
        return self.writeback.has_work()

    def _begin_batch(self, kind: Kind, items: list[Any], done: Done) -> None:
        if not items:
            self._end(0, done, [], None)
            return
        match kind:
            case Kind.PLAIN:
                self._begin_stores(items, done)
            case Kind.OTHER_PLAIN:
                self._begin_receipts(items, done)
            case Kind.GENERAL:
                self._begin_requests(items, done)
            case Kind.BARRIER:
                self._begin_changes(items, done)
            case Kind.APPEND:
                self._begin_appends(items, done)

    def _begin_stores(self, stores: list[Store], done: Done) -> None:
        self._begin_in_engine(
            partial(self.writeback.begin_commit, stores),
            len(stores),
            done,
            lambda: self._begin_in_worker([*map(Request.of, stores)], done),
        )

    def _begin_receipts(self, receipts: list[WriteReceipt], done: Done) -> None:
        if self._core.workers.pause is not None:
            done = partial(self._wake_together, len(receipts), done)
        if not self.has_work():
            settle(receipts)
            self._end(len(receipts), done, [None for _ in receipts], None)
            return
        asked: list[Asked] = [*receipts]
        self._begin_in_engine(
            partial(self.writeback.begin_flush, asked, len(asked)),
            len(asked),
            done,
            lambda: self._begin_in_worker([*map(Request.of_receipt, receipts)], done),
        )

    def _wake_together(self, count: int, done: Done, outcomes: Sequence[Outcome]) -> None:
        """Wake the tasks that waited for receipts; native code may gather what they write next."""
        self._mapping.expect_stores(count)
        done(outcomes)

    def _begin_requests(self, requests: list[Request], done: Done) -> None:
        mapping, count = self._mapping, len(requests)
        if any(request.stores for request in requests):
            self._begin_in_worker(requests, done)
        elif not self.has_work():
            done = partial(self._settle_receipts, requests, done)
            self._end(len(requests), done, [None for _ in requests], None)
        elif any(not request.offset and request.end >= mapping.size for request in requests):
            self._begin_in_engine(
                lambda ended: self.writeback.begin_flush([*mapping.dirty_runs()], count, ended),
                count,
                partial(self._settle_receipts, requests, done),
                lambda: self._begin_in_worker(requests, done),
            )
        else:  # the engine flushes the whole file, and these ask for some pages only
            self._begin_in_worker(requests, done)

    def _begin_in_worker(self, requests: list[Request], done: Done) -> None:
        done = partial(self._settle_receipts, requests, done)
        self._begin(self._core.workers.flushes, self.writeback.flush, requests, done)

    def _begin_in_engine(
        self,
        begin: Callable[[Ended], bool],
        count: int,
        done: Done,
        otherwise: Callable[[], None],
    ) -> None:
        """Begin a batch in the engine when the limiter allows; ``otherwise`` if it declines."""
        limiter = self._core.workers.flushes

        def ended(outcomes: Sequence[Outcome] | None, error: BaseException | None) -> None:
            try:
                self._end(count, done, outcomes, error)
            finally:
                limiter.give()

        def start() -> None:
            begun = False
            with suppress(Exception):  # the worker tries again, and reports the error
                begun = begin(ended)
            if not begun:
                limiter.give()
                otherwise()

        limiter.begin(start)

    def _begin_appends(self, items: list[bytes | memoryview], done: Done) -> None:
        workers = self._core.workers
        limiter = workers.flushes if self._core.route.durable else workers.stores
        self._begin(limiter, partial(self.writeback.append, self._apply_appends), items, done)

    def _begin_changes(self, changes: list[Change], done: Done) -> None:
        self._begin(self._core.workers.control, self.writeback.change, changes, done)

    def _begin(
        self,
        limiter: Limiter,
        serve: Callable[[list[Item]], list[Outcome]],
        items: list[Item],
        done: Done,
    ) -> None:
        if self._core.sound:
            ended = partial(self._end, len(items), done)
            self._core.workers.start(limiter, partial(serve, items), ended)
        else:
            self._end(len(items), done, [None for _ in items], None)

    def _end(
        self,
        count: int,
        done: Done,
        outcomes: Sequence[Outcome] | None,
        error: BaseException | None,
    ) -> None:
        core = self._core
        if error is not None or not core.sound:
            failure = error or self._failure()
            outcomes = [o if is_error(o) else failure for o in outcomes or [failure] * count]
        assert outcomes is not None
        try:
            if not core.sound:
                self._tell()
            if core.route.draining and not self._queue.waiting():
                core.route.end_draining()
            self._after_batch()
        finally:
            done(outcomes)  # flusher.5

    def _settle_receipts(
        self, requests: list[Request], done: Done, outcomes: Sequence[Outcome]
    ) -> None:
        asked = zip(requests, outcomes, strict=True)
        settle([request.receipt for request, outcome in asked if not is_error(outcome)])
        done(outcomes)

    def _failure(self) -> FlushError | MappingFaultError | None:
        try:
            self._core.check_whole()
            self._core.check_flushed()
        except (FlushError, MappingFaultError) as error:
            return error
        return None

    def _tell(self) -> None:
        """Tell the listeners, once, that every flush fails from now on (flusher.3)."""
        core = self._core
        failure, damage = core.unsynced.failure, core.faults.damage()
        if failure is None and damage is not None:
            ranges = tuple(core.mapping.dirty_runs())
            failure = FlushError(core.path, str(damage), ranges, damage.errno or errno.EFAULT)
        if failure is not None and not self._told:
            self._told = True
            FLUSHES.error("%s", failure)
            self.failed.tell(failure)

    def flush_if_due(self, due: Callable[[], bool]) -> tuple[bool, bool]:
        """Make everything durable if a flush is due. For worker threads.

        Returns:
            Whether the loop has to hear of it, and whether the flush has to be tried again.
        """
        begun, failure = self.writeback.flush_if_due(due)
        if failure is not None:
            FLUSHES.warning("%s", failure)
        return begun, failure is not None

    def tell_loop(self) -> None:
        """Have the loop plan, and tell listeners of a failure, after a background flush."""
        self._core.workers.call_from_thread(self._background_ended)

    def _background_ended(self) -> None:
        if not self._core.sound:
            self._tell()
        self._after_batch()
