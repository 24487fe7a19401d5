"""The slow way of a write: for writes that ``write_inline`` could not store at once.

Invariants.
  1  While writes wait in the queue, no inline store touches the span from the first to the last of
      their bytes: the mapping knows its bounds (I9).
  2  Under a policy that flushes each write, stores and flush are one request of the commit queue:
      one hop, and the flush begins after the store by construction.
  3  Stores of tasks that woke together are gathered for a turn of the loop, and the first task to
      go on stores all of them (``py/gather.h``). Any other store, change of size, close or reopen
      stores them first. Those that cannot be stored inline go to the queue in the same step (I9).
  4  After the policy is replaced, writes go on through the queue that is still busy, so that none
      overtakes a write in the other queue (I9).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Iterable, Sequence
from typing import TypeAlias, cast

from .._arguments import check_range, items_of
from .._core.disk import Store, write_in_parts
from .._core.file_core import FileCore
from .._core.receipt import WriteReceipt
from .._flush.background import BackgroundFlush
from .._flush.flusher import Flusher
from .._flush.requests import Request
from .._native import PAGE_SIZE, Receipt, export_bytes
from .._ranges import align_down, align_up
from .._runtime.batching import Batch, BatchQueue, as_jobs
from .._runtime.event_loop import Waiter
from .._runtime.tracing import is_traced, traced
from .reading import YIELD_EVERY

#: How much write_many may store on the loop thread, about 0.1 ms of copying; the rest takes a hop.
INLINE_BATCH_BYTES = 512 << 10
#: What each item counts beside its bytes: even a small store takes some microseconds.
INLINE_ITEM_BYTES = 4 << 10


Late: TypeAlias = tuple[Batch[Request, int], Waiter[int | BaseException]]


class Writer:
    """Writes of one file that have to give way, wait for a worker, or fail."""

    __slots__ = (
        "_background",
        "_core",
        "_end",
        "_flusher",
        "_late",
        "_mapping",
        "_pause",
        "_queue",
        "_route",
        "_start",
        "_unsynced",
    )

    def __init__(self, core: FileCore, flusher: Flusher, background: BackgroundFlush) -> None:
        self._core = core
        # Objects of the core, kept here because each write needs them.
        self._route = core.route
        self._unsynced = core.unsynced
        self._mapping = core.mapping
        self._pause = core.workers.pause
        self._flusher = flusher
        self._background = background
        workers = core.workers
        self._queue: BatchQueue[Request, int] = BatchQueue(
            workers, as_jobs(workers, workers.stores, self._apply, self._shrink_span)
        )
        #: Gathered writes that went to the queue: the batch of each, and the waiter of its task.
        self._late: dict[Receipt, Late] = {}
        self._start = self._end = 0  # writing.1: bounds of what is queued or in flight

    async def wait_stored(self) -> None:
        """Wait until the writes submitted so far have been applied."""
        self.store_gathered()
        await self._queue.settle()

    def storing(self, offset: int, end: int) -> bool:
        """Tell whether a write to a part of a range is still under way."""
        queued = any(write.stores_to(offset, end) for write in self._queue.unfinished())
        gathered = self._mapping.gathers(offset, end)
        return gathered or queued or self._flusher.storing(offset, end)

    def write(self, offset: int, data: object) -> Awaitable[WriteReceipt]:
        """Write after ``write_inline`` answered None."""
        core = self._core
        if not self._route.durable:
            receipt = self._mapping.gather(offset, data)  # type: ignore[arg-type]
            if receipt is not None:
                return self._write_gathered(receipt, offset, data)
            core.check_loop()  # the commit queue looks at the loop itself
        self.store_gathered()
        # The most frequent case, a spent time slice and nothing else, takes the shortest way.
        asked = self._background.idle
        receipt = self._mapping.write_now(offset, data) if asked else None  # type: ignore[arg-type]
        if receipt is not None:
            return self._written(receipt)
        store = self._mapping.stage(offset, data) if self._unsynced.failure is None else None  # type: ignore[arg-type]
        if store is None:
            store = self._check(offset, data)
        full = core.own.queued_bytes or self._background.may_be_full
        if self._route.durable and not full and not is_traced():
            return self._flusher.write(store)  # writing.2
        return self._submit(Request.of(store), len(store[1])) if asked else self._write(store)

    def _check(self, offset: int, data: object) -> Store:
        """Check a write, and raise the error of the first check that fails; store nothing."""
        core = self._core
        core.check_writable("write to")
        view = export_bytes(data)
        return check_range(offset, len(view), core.mapping.size, core.shared_writable)[0], view

    async def _written(self, receipt: Receipt) -> WriteReceipt:
        await self._core.workers.checkpoint_if_due()
        return cast("WriteReceipt", receipt)

    async def _write(self, store: Store) -> WriteReceipt:
        core = self._core
        offset, view = store
        if self._background.is_full([(offset, len(view))]):
            await self._make_room([(offset, len(view))])
        # Store before giving way: a task that writes meanwhile must not come first (I9).
        receipt = core.mapping.write_now(offset, view)
        if receipt is None:
            return await self._submit(Request.of(store), len(view))
        self._background.plan()
        await core.workers.checkpoint_if_due()
        return cast("WriteReceipt", receipt)

    async def _write_gathered(self, receipt: Receipt, offset: int, data: object) -> WriteReceipt:
        """Wait a turn for stores of other tasks, then store all gathered ones (writing.3)."""
        assert self._pause is not None
        try:
            await self._pause
        except GeneratorExit:
            self._mapping.withdraw(receipt)
            raise  # the loop is gone, and nothing can be awaited any more
        except BaseException:
            if not self._mapping.withdraw(receipt) and receipt in self._late:
                await self._leave_late(receipt)
            raise
        if not receipt.sequence:
            self.store_gathered()
        if receipt.sequence:
            return cast("WriteReceipt", receipt)
        if receipt in self._late:
            return await self._wait_late(receipt)
        return await self._write(self._check(offset, data))

    def store_gathered(self) -> None:
        """Store or queue the gathered writes, so that no later write comes first (writing.3)."""
        if not self._mapping.gathered:
            return
        rest = self._mapping.store_gathered()
        if self._unsynced.failure is None and not self._core.lifecycle.closing:
            for receipt, offset, data in rest:  # else their own tasks raise the reason
                self._queue_late(receipt, Request.of((offset, data)))

    def _queue_late(self, receipt: Receipt, write: Request) -> None:
        self._core.lifecycle.begin_activity()
        self._core.own.queue(receipt.length)
        self._extend_span(write)
        self._late[receipt] = self._queue.enqueue(write)

    async def _wait_late(self, receipt: Receipt) -> WriteReceipt:
        try:
            outcome = await self._late[receipt][1]
        except GeneratorExit:
            raise
        except BaseException:
            await self._leave_late(receipt)
            raise
        self._end_late(receipt)
        if isinstance(outcome, BaseException):
            raise outcome
        return WriteReceipt(self._flusher, receipt.offset, receipt.length, outcome)

    async def _leave_late(self, receipt: Receipt) -> None:
        try:
            await self._queue.leave(*self._late[receipt], withdrawable=True)
        finally:
            self._end_late(receipt)

    def _end_late(self, receipt: Receipt) -> None:
        del self._late[receipt]
        self._core.own.unqueue(receipt.length)
        self._background.plan()
        self._core.lifecycle.end_activity()

    async def write_many(self, items: Iterable[tuple[int, object]]) -> WriteReceipt:
        """Write items in order, in one hop at most."""
        core = self._core
        core.check_writable("write to")
        with (
            core.lifecycle.activity()
        ):  # it may give way many times, and a reopen has to wait for it
            return await self._write_many(items)

    async def _write_many(self, items: Iterable[tuple[int, object]]) -> WriteReceipt:
        core = self._core
        stores: list[Store] = []
        ranges: list[tuple[int, int]] = []
        most, total = 0, 0
        first, end = core.mapping.size, 0
        for offset, data in items_of(items):
            at, view = store = self._check(offset, data)
            stores.append(store)
            first, end = min(first, at), max(end, at + len(view))
            total += len(view)
            if len(stores) <= YIELD_EVERY:
                ranges.append((at, len(view)))
            most += align_up(at + len(view), PAGE_SIZE) - align_down(at, PAGE_SIZE)
            if not len(stores) % YIELD_EVERY:
                await core.workers.checkpoint_if_due()
        core.check_writable("write to")
        first = min(first, end)
        if len(stores) > YIELD_EVERY:  # too many ranges for one turn of the loop
            ranges = [(first, end - first)]
        if self._background.is_full(ranges, most):
            await self._make_room(ranges, most)
        self.store_gathered()
        rest, total = self._store_inline(stores, total)
        self._background.plan()
        if rest:
            whole = len(rest) == len(stores)
            return await self._submit(Request(first, end, stores=rest), total, withdrawable=whole)
        sequence = core.mapping.sequence
        await core.workers.checkpoint_if_due()
        return WriteReceipt(self._flusher, first, end - first, sequence)

    def _store_inline(self, stores: Sequence[Store], total: int) -> tuple[list[Store], int]:
        """Store up to the first one that has to wait, and return the rest in order (I9).

        Args:
            total: the bytes of all stores; also returned, for the rest.
        """
        budget = INLINE_BATCH_BYTES
        for done, (offset, view) in enumerate(stores):
            budget -= len(view) + INLINE_ITEM_BYTES
            if budget < 0 or self._core.mapping.write_now(offset, view) is None:
                return list(stores[done:]), total
            total -= len(view)
        return [], 0

    async def _make_room(self, ranges: Sequence[tuple[int, int]], most: float = math.inf) -> None:
        """Wait for room under the policy's limit; the file may have been resized meanwhile."""
        await self._background.make_room(ranges, self.wait_stored, most)
        self._core.check_flushed()
        for offset, length in ranges:
            check_range(offset, length, self._core.mapping.size, self._core.shared_writable)

    async def _submit(
        self, write: Request, total: int, *, withdrawable: bool = True
    ) -> WriteReceipt:
        core = self._core
        if self._route.durable and not core.own.queued_bytes:
            return cast("WriteReceipt", await self._flusher.submit(write))
        each = core.route.policy.flush_each_write and core.shared_writable
        with core.lifecycle.activity():  # closing must not come between the store and its flush
            receipt = await self._store(write, total, withdrawable=withdrawable)
            if each:
                await self._flusher.submit(Request(write.offset, write.end, receipt))
        return receipt

    async def _store(self, write: Request, total: int, *, withdrawable: bool) -> WriteReceipt:
        core = self._core
        self._extend_span(write)
        core.own.queue(total)
        try:
            with traced("write", core.path, write.offset, write.end - write.offset) as op:
                op.hop()
                sequence = await self._queue.submit(write, withdrawable=withdrawable)
        finally:
            core.own.unqueue(total)
            self._background.plan()
        length = write.end - write.offset
        return WriteReceipt(self._flusher, write.offset, length, sequence)

    def _extend_span(self, write: Request) -> None:
        idle = self._start == self._end
        self._start = write.offset if idle else min(self._start, write.offset)
        self._end = write.end if idle else max(self._end, write.end)
        self._core.mapping.set_queued(self._start, self._end)

    def _shrink_span(self) -> None:
        waiting = self._queue.waiting()
        self._start = min((write.offset for write in waiting), default=0)
        self._end = max((write.end for write in waiting), default=0)
        self._core.mapping.set_queued(self._start, self._end)

    # From here on: worker threads only.

    def _apply(self, writes: list[Request]) -> list[int | BaseException]:
        core = self._core
        stores = [store for write in writes for store in write.stores]
        outcomes: list[Receipt | tuple[int, int]] = []
        with core.resize_mutex:
            outcomes += write_in_parts(core.disk, stores)
        core.own.count_stores(len(outcomes))
        results: list[int | BaseException] = []
        at = 0
        for write in writes:
            results.append(core.faults.outcome(write.stores, outcomes[at : at + len(write.stores)]))
            at += len(write.stores)
        self._background.plan()  # here, because the loop may be too busy to plan for long
        return results
