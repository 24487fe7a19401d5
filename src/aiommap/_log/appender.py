"""The loop half of a log's writer: inline appends, the queue of batches, background flushes.

Theory of operation. Appends that have to be durable, and all appends made while a batch is in
flight, gather in a queue. A batch makes one store, at most one flush and one publication, and then
answers every append in it. It runs in a thread of the engine, or in a worker if it needs more than
those three steps. While no batch is in flight, the loop thread stores an append that need not be
durable at once. If such an inline store had to wait, other threads store for a while.

An inline append that finds nothing in the way grants the next ones: up to an offset of the segment,
and as long as nothing is submitted to the queue, one native call stores and answers them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

from .._flush.trigger import FlushTrigger
from .._flush_policy import FlushPolicy
from .._native import LogGather, PoolCommit, PoolQueue
from .._runtime.batching import BatchQueue, Kind, as_jobs
from .._runtime.event_loop import Event, Waiter
from .._runtime.loops import call_later, spawn
from .._runtime.threads import this_thread
from .._runtime.workers import OnCancel, Workers
from .._typing import Buffer
from .format import RESERVED_BYTES, frame_bytes
from .items import Flush, Item, Outcome
from .receipt import LogReceipt, LogStatistics, ReceiptOwner
from .writer import Tell, Writer

#: How long workers store after an inline store had to wait.
SLOW_NS = 100_000_000
#: Fewer appends than this always share one commit: each would cost the device more in two.
SHARED_AT_LEAST = 64
#: About how many tasks that append a loop can wake in a second.
WOKEN_A_SECOND = 250_000

_FLUSH = Flush()

_ready: WeakSet[Appender] = WeakSet()


def _refuse_in_child() -> None:
    for appender in _ready:
        appender.refuse()  # I10


os.register_at_fork(after_in_child=_refuse_in_child)


def most_together(appending: int, seconds: float) -> int:
    """Say how many of the tasks that append should share a commit.

    Half of them, if waking the other half takes the loop as long as the commit takes: then the loop
    wakes one half while the device commits the other. If all shared one commit, the loop would wait
    for the device, and then the device for the loop.
    """
    half = (appending + 1) // 2
    pays = half >= max(SHARED_AT_LEAST, seconds * WOKEN_A_SECOND)
    return half if pays else sys.maxsize


class _SlowWait:
    """What a task awaits for a receipt on a loop whose tasks cannot await a ``LogWait``."""

    __slots__ = ("_owner", "_waiter", "done", "set_result")

    def __init__(self, owner: ReceiptOwner, waiter: Waiter[int | BaseException]) -> None:
        self._owner = owner
        self._waiter = waiter
        self.done: Callable[[], bool] = waiter.done
        self.set_result: Callable[[int | BaseException], None] = waiter.set_result

    def __await__(self) -> Generator[Any, None, LogReceipt]:
        outcome = yield from self._waiter.__await__()
        if isinstance(outcome, BaseException):
            try:
                raise outcome
            finally:
                del self._waiter, outcome  # the traceback of the error refers to this frame
        return LogReceipt(self._owner, outcome)


def _join_nothing(_owner: ReceiptOwner, _data: object) -> None:
    """Stand in for ``LogGather.join``."""


class Appender:
    """Hands what is appended to a ``Writer``; for one event loop.

    Attributes:
        ready: whether appends need no further check: the log is open, nothing has latched, and
            this process opened it.
        may_inline: whether records may be stored on the loop thread at all.
        max_record: bytes of the largest record.
        append_granted: stores a record inline if that needs no look at the log, and returns its
            receipt; else it returns None.
        join: has a record join the batch that gathers, and returns what to await for its receipt;
            None if it has to come by the queue.
        wait: makes what to await for the receipt of a record that comes by the queue.
        thread: the loop thread.
    """

    __slots__ = (
        "__weakref__",
        "_began_bytes",
        "_began_records",
        "_begin_in_worker",
        "_cancel_timer",
        "_device",
        "_dirty_since",
        "_flush_spawned",
        "_gather",
        "_native",
        "_passive",
        "_place",
        "_policy",
        "_prepared",
        "_preparing",
        "_queue",
        "_seconds",
        "_trigger",
        "_workers",
        "_writer",
        "append_granted",
        "join",
        "max_record",
        "may_inline",
        "ready",
        "thread",
        "wait",
    )

    def __init__(
        self,
        workers: Workers,
        writer: Writer,
        policy: FlushPolicy,
        segment_size: int,
        *,
        inline_writes: bool,
    ) -> None:
        self._workers = workers
        self._writer = writer
        self._native = writer.native
        self._native.bind_loop_thread(LogReceipt)
        self.append_granted: Callable[[ReceiptOwner, object], LogReceipt | None]
        self.append_granted = self._native.append_granted
        self.thread: int = this_thread()
        self._policy = policy
        self._passive = policy.passive
        self.max_record: int = segment_size - RESERVED_BYTES
        self.may_inline: bool = inline_writes and writer.local and not policy.flush_each_write
        self._gather = self._make_gather()
        self._queue: BatchQueue[Item, int] = BatchQueue(workers, self._begin, gather=self._gather)
        self._begin_in_worker = as_jobs(workers, workers.flushes, writer.run, self._ran)
        self._device = writer.device
        #: The place of the log in the engine; made by the first batch.
        self._place: PoolQueue | None = None
        #: How many seconds commits took lately: an average.
        self._seconds = 0.0
        self._trigger = FlushTrigger(policy)
        self._trigger.began(self._native.position, writer.last)
        self._dirty_since: float | None = None
        self._cancel_timer: Callable[[], object] | None = None
        self._flush_spawned = False
        self._preparing = False
        #: Set when the next segment is ready, or there was no room; None while none is being made.
        self._prepared: Event | None = None
        self._began_bytes = self._native.position
        self._began_records = writer.last
        self.ready: bool = True
        _ready.add(self)

    def _make_gather(self) -> LogGather | None:
        workers, loop = self._workers, self._workers.future_loop
        self.join: Callable[[ReceiptOwner, object], Awaitable[LogReceipt] | None] = _join_nothing
        self.wait: Callable[[ReceiptOwner], Awaitable[LogReceipt]]
        self.wait = lambda owner: _SlowWait(owner, workers.waiter())
        if loop is None:
            return None
        gather = LogGather(LogReceipt, loop, workers.call_soon, self.max_record)
        self.join, self.wait = gather.join, gather.wait
        return gather

    def refuse(self) -> None:
        """Have every append check the state of the log from now on."""
        self.ready = False
        self._grant(0)
        if self._gather is not None:
            self._gather.refuse()

    def _refuse_if_failed(self) -> None:
        if self._writer.failure is not None:
            self.refuse()

    def append_inline(self, owner: ReceiptOwner, data: bytes | memoryview) -> LogReceipt | None:
        """Store on the loop thread if possible; return None if the record has to be queued.

        Then grant the next appends what this one has checked.
        """
        writer, native = self._writer, self._native
        if not self.ready or self._queue.busy or writer.needs_life or self._is_slow():
            return None
        if self._policy.dirty_limit is not None and not self._has_room(len(data)):
            return None
        try:
            receipt: LogReceipt | None = native.append(owner, data)
        except OSError as error:
            self.note_failed_store(error)
            raise
        if receipt is None:
            return None
        if not self._preparing and writer.wants_standby:
            self._prepare_standby()
        if not self._passive:
            self._plan_flush()
        elif not self._is_slow():
            whole = self._preparing or writer.has_standby
            self._grant(native.limit if whole else native.limit // 2)
        return receipt

    def _grant(self, until: int) -> None:
        """Let appends that end up to an offset of the segment be stored without another check."""
        self._native.granted_until = until

    def note_failed_store(self, error: OSError) -> None:
        """Note that an inline store failed; raise instead what latched, if it did."""
        try:
            self._writer.note_failed_store(error)
        finally:
            self._refuse_if_failed()

    def _is_slow(self) -> bool:
        waited = self._native.waited_ns
        return waited != 0 and time.monotonic_ns() < waited + SLOW_NS

    def _has_room(self, length: int) -> bool:
        limit = self._policy.dirty_limit
        return limit is None or self._writer.dirty_bytes + frame_bytes(length) <= limit

    def enqueue(self, owner: ReceiptOwner, data: Buffer) -> Awaitable[LogReceipt]:
        """Have a record come by the queue; return what to await for its receipt."""
        if this_thread() != self.thread:
            self._workers.check_loop("a log")
        wait = self.wait(owner)
        self._grant(0)
        self._queue.enqueue(data, waiter=wait)
        return wait

    def submit(self, item: Item, *, withdrawable: bool = True) -> Awaitable[int]:
        """Have an item come by the queue; return what to await, at once, for its result."""
        self._grant(0)
        return self._queue.submit(item, withdrawable=withdrawable)

    async def abandon(self, error: BaseException, waiter: object) -> None:
        """Withdraw what a cancelled task appended, or wait it out."""
        # After GeneratorExit the loop is gone, and nothing can be awaited.
        if not isinstance(error, GeneratorExit):
            await self._queue.leave_early(waiter)

    async def flush(self, sequence: int) -> None:
        """Make all records durable, unless those up to ``sequence`` are already."""
        if self._writer.durable < sequence:
            await self.submit(_FLUSH)

    @property
    def pending(self) -> int:
        """The sequence that a flush has to reach; it counts records in flight or in the queue."""
        return self._writer.last + self._queue.busy

    def _begin(
        self, kind: Kind, items: list[Item], done: Callable[[Sequence[Outcome]], None]
    ) -> None:
        """Begin one batch, once it is the turn of this log."""
        limiter, begun = self._workers.flushes, time.perf_counter()

        def landed(job: PoolCommit) -> Callable[[], object] | None:
            outcomes: Sequence[Outcome]
            self._share(len(items), time.perf_counter() - begun)
            try:
                outcomes = self._writer.end_commit(job)
            except BaseException as error:
                outcomes = [error] * len(items)
            if self._workers.ended:
                return None
            try:
                return self._answer(outcomes, done)
            finally:
                limiter.give()

        def start() -> None:
            if not self._begin_in_engine(items, landed):
                limiter.give()
                self._begin_in_worker(kind, items, done)

        limiter.begin(start)

    def _answer(
        self, outcomes: Sequence[Outcome], done: Callable[[Sequence[Outcome]], None]
    ) -> Callable[[], object] | None:
        """End a batch; return what wakes its tasks. That is for the engine, which has no Python.

        So no frame of ours lies below theirs, which profilers and detectors of calls that block
        would see.
        """
        gather = self._gather
        if gather is not None:
            gather.hold()
        try:
            try:
                self._ran()
            finally:
                done(outcomes)  # batching.4
        except BaseException:
            if gather is not None:
                gather.wake()
            raise
        return None if gather is None else gather.wake

    def _share(self, landed: int, seconds: float) -> None:
        """Decide how many appends may share the next commit."""
        self._seconds += (seconds - self._seconds) / 8
        self._queue.limit(most_together(landed + self._queue.gathered, self._seconds))

    def _begin_in_engine(self, items: list[Item], landed: Tell) -> bool:
        try:
            if self._place is None:
                self._place = self._workers.flush_queue(self._device)
            return self._place is not None and self._writer.begin_commit(self._place, items, landed)
        except Exception:
            return False  # a worker runs the batch instead, and raises what is wrong

    def _ran(self) -> None:
        """Plan the next flush and the next segment after a batch; on the loop."""
        writer = self._writer
        self._refuse_if_failed()
        if not self._passive:
            self._plan_flush()
        if not self._preparing and self.ready and writer.wants_standby:
            self._prepare_standby()

    # Background flushes.

    def _plan_flush(self) -> None:
        writer, native, now = self._writer, self._native, time.monotonic()
        if writer.durable >= writer.last:
            self._dirty_since = None
            self._trigger.began(native.position, writer.last)
            self._stop_timer()
            return
        if self._dirty_since is None:
            self._dirty_since = now
        if self._trigger.due(native.position, writer.last, self._dirty_since, now):
            self._flush_soon()
        elif self._cancel_timer is None:
            deadline = self._trigger.deadline(self._dirty_since)
            if deadline is not None:
                self._cancel_timer = call_later(max(deadline - now, 0.0), self._on_timer)

    def _on_timer(self) -> None:
        self._cancel_timer = None
        if self.ready:
            self._plan_flush()

    def _stop_timer(self) -> None:
        if self._cancel_timer is not None:
            self._cancel_timer()
            self._cancel_timer = None

    def _flush_soon(self) -> None:
        if self._flush_spawned or self._writer.failure is not None:
            return
        self._flush_spawned = True
        self._trigger.began(self._native.position, self._writer.last)
        self._dirty_since = None
        spawn(self._flush_unasked)

    async def _flush_unasked(self) -> None:
        try:
            await self.submit(_FLUSH)
        except Exception:  # noqa: S110  the failure latched: append, flush and close raise it
            pass
        finally:
            self._flush_spawned = False
        if self.ready and not self._workers.forked:
            self._plan_flush()  # what was appended since the flush began was not planned for

    # Segments, and the end.

    def _prepare_standby(self) -> None:
        self._preparing = True
        prepared = self._prepared = self._workers.event()

        def ended(_: object, error: BaseException | None) -> None:
            # If there was no room, only the roll tries again.
            self._preparing = error is not None or self._writer.standby_error is not None
            self._prepared = None
            prepared.set()

        self._workers.start(self._workers.control, self._writer.prepare_standby, ended)

    def counted(self) -> LogStatistics:
        """Return the writer's share of the statistics; the log adds those of its readers."""
        writer, counts = self._writer, self._writer.counts
        return LogStatistics(
            appended_records=writer.last - self._began_records,
            appended_bytes=self._native.position - self._began_bytes,
            inline_appends=self._native.inline_appends,
            batches=counts.batches,
            flushes=counts.flushes,
            flush_group=counts.flushed_records / counts.flushes if counts.flushes else 0.0,
            rolls=counts.rolls,
            roll_seconds=counts.roll_seconds,
            slowest_roll_seconds=counts.slowest_roll,
            standby_ready=writer.has_standby,
            segments=len(writer.sizes),
            write_path="inline" if self.may_inline and not self._is_slow() else "worker",
        )

    def stop(self) -> None:
        """Begin to close: refuse appends and plan no more flushes."""
        self.refuse()
        self._stop_timer()

    async def close(self) -> None:
        """Finish what was begun, flush unless the policy is ``never()``, and close the writer."""
        writer, workers = self._writer, self._workers
        while self._queue.busy:
            await self._queue.settle()
        failure: BaseException | None = writer.failure
        clean = self._policy.flush_at_close
        if clean and failure is None and writer.durable < writer.last:
            try:
                await self.submit(_FLUSH, withdrawable=False)
            except Exception as error:
                failure = error
        if self._prepared is not None:
            await self._prepared.wait()
        await workers.run(
            workers.control, partial(writer.close, clean=clean), on_cancel=OnCancel.WAIT
        )
        if failure is not None:
            raise failure
