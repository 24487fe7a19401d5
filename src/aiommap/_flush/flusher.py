"""Flushes of one file: group commit, proof of durability, and the latch.

Theory of operation. Every request to make something durable goes through the commit queue. While a
flush runs, requests gather; the next flush serves all of them at once. A flush takes the dirty runs
of the requested ranges, writes them back and waits. Then it looks whether the file is still long
enough and still has a name: the kernel reports success also for pages of a file that was truncated
or removed meanwhile.

Invariants.
  1  A flush answers only requests made before it began (I4): the queue keeps them apart.
  2  ``durable_sequence`` grows only when everything that was dirty has been flushed, and only to
      the number of the newest write applied before the flush began.
  3  The first failure latches (I5): it is raised for every request from then on, and inline
      stores are switched off.
  4  Stores that ask for durability ride in the flush's own hop, before it takes the dirty runs.
  5  What changes the size of the file is an item of the same queue: no flush sees it half done,
      or mistakes our own shrinking for somebody else's.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

from .._core.disk import Store, write_in_parts
from .._core.file_core import FileCore
from .._core.paths import NameNotSyncedError
from .._core.receipt import WriteReceipt
from .._errors import AccessModeError, FlushError, MappingFaultError
from .._logs import FLUSHES
from .._native import PAGE_SIZE, Receipt
from .._ranges import RangeSet, align_down, align_up
from .._runtime.batching import BatchQueue
from .._runtime.callbacks import Listeners
from .._runtime.threads import Mutex
from .._runtime.tracing import traced
from .histogram import Histogram
from .requests import (
    Change,
    Done,
    Item,
    Outcome,
    Request,
    acts,
    bounds,
    is_error,
    settle,
    stores_of,
    touch,
)
from .trigger import FlushTrigger


class Flusher:
    """Makes ranges of one file durable; also the owner that its receipts ask."""

    __slots__ = (
        "_core",
        "_passing",
        "_queue",
        "_turn",
        "after_batch",
        "failed",
        "flushed_bytes",
        "groups",
        "seconds",
        "told",
        "trigger",
        "write",
    )

    def __init__(self, core: FileCore, failed: Listeners[FlushError]) -> None:
        self._core = core
        self._queue: BatchQueue[Item, WriteReceipt | None] = BatchQueue(core.workers, self._begin)
        #: Held by whoever flushes or changes the size: the queue's batch, or who flushes unasked.
        self._turn = Mutex()
        #: What the last flush failed of, if the next one can try again. For who has the turn.
        self._passing: FlushError | None = None
        core.lanes.wait_served = self._queue.settle
        #: A failure was told to whoever listens; nothing is flushed any more.
        self.told = False
        #: Stores and makes durable in the next flush, for a file none of whose flushes failed, and
        #: unobserved. The queue's own function, as every step between costs each durable write.
        self.write = cast("Callable[[Store], Awaitable[WriteReceipt]]", self._queue.submit)
        self.trigger = FlushTrigger(core.route.policy)
        #: Told after every batch, and where a flush left something dirty.
        self.after_batch: Callable[[], None] = core.dirtied
        #: Told on the loop of the failure that latches, or of a poisoned mapping.
        self.failed = failed
        # Kept by the flush worker, one at a time.
        self.flushed_bytes = 0
        self.groups = Histogram()
        self.seconds = Histogram()

    @property
    def durable_sequence(self) -> int:
        """Every write up to this number is durable."""
        return self._core.mapping.durable_sequence

    async def flush_receipt(self, receipt: WriteReceipt) -> None:
        """Make one write durable."""
        self._core.check_usable()
        if not self._core.shared_writable:
            remedy = 'its stores never reach the file: use "r+"'
            raise AccessModeError("make durable what was written to", self._core.mode, remedy)
        await self.submit(Request(receipt.offset, receipt.offset + receipt.length, receipt))

    async def submit(self, request: Request) -> WriteReceipt | None:
        """Serve a request in the next flush; the receipt of its stores, if it has any."""
        self._core.check_flushed()
        return await self._observe(request)

    @property
    def busy(self) -> bool:
        """Whether anything is being served or waits for it."""
        return self._queue.busy or self._turn.locked()

    async def quiesce(self) -> None:
        """Wait out a flush that nobody asked for; for a file for which no other one can begin."""
        if self._turn.locked():
            await self.change(_nothing, ours=False)

    async def change(self, act: Callable[[], None], *, ours: bool = True) -> None:
        """Run what changes the size or the blocks, or takes a new size over (flusher.5)."""
        await self._queue.submit(Change(act, ours))

    async def flush_everything(self) -> None:
        """Make everything durable; for a file that no verb can reach any more."""
        await self._observe(Request(0, self._core.mapping.size))

    async def _observe(self, request: Request) -> WriteReceipt | None:
        name = "write" if request.stores else "flush"
        length = request.end - request.offset
        with traced(name, self._core.path, request.offset, length) as op:
            op.hop_if(lambda: bool(request.stores) or self.has_work())
            return await self._queue.submit(request)

    def storing(self, offset: int, end: int) -> bool:
        """Tell whether stores to a part of a range are still under way here (flusher.4)."""
        return any(
            not isinstance(item, Change) and touch(stores_of(item), offset, end)
            for item in self._queue.unfinished()
        )

    def has_work(self) -> bool:
        """Tell whether a flush would do anything, or wait for one under way; on the loop."""
        if not self._turn.acquire(blocking=False):
            return True
        try:
            return self._finds_work()
        finally:
            self._turn.release()

    def _finds_work(self) -> bool:
        """Tell whether anything is not durable; for who has the turn."""
        core = self._core
        if core.mapping.take_growth():  # by stores beyond the end, through a growable view
            core.unsynced.note_resize()
        return core.unsynced.size_changed or core.unsynced.created or core.mapping.dirty_bytes() > 0

    def _begin(self, items: list[Item], done: Done) -> None:
        workers = self._core.workers
        idle = not any(map(acts, items)) and not self.has_work()
        if idle or not self._core.sound:
            self._ended(items, done, [None for _ in items], None)
            return
        kinds = {*map(type, items)}
        limiter = workers.control if kinds == {Change} else workers.flushes
        serve: Callable[[Any], list[Outcome]] = self._serve if Change in kinds else self._flush
        workers.start(
            limiter, partial(self._in_turn, serve, items), partial(self._ended, items, done)
        )

    def _ended(
        self,
        items: list[Item],
        done: Done,
        outcomes: list[Outcome] | None,
        error: BaseException | None,
    ) -> None:
        core = self._core
        if error is not None or not core.sound:
            failure = error or self._failure()
            outcomes = outcomes or [failure] * len(items)
            outcomes = [o if is_error(o) else failure for o in outcomes]
            self._tell()
        elif Request in {*map(type, items)}:
            assert outcomes is not None
            asked = zip(items, outcomes, strict=True)
            settle([i.receipt for i, o in asked if isinstance(i, Request) and not is_error(o)])
        assert outcomes is not None
        if core.route.draining and not self._queue.waiting():
            core.route.end_draining()
        self.after_batch()
        done(outcomes)

    def _failure(self) -> FlushError | MappingFaultError | None:
        try:
            self._core.check_whole()
            self._core.check_flushed()
        except (FlushError, MappingFaultError) as error:
            return error
        return None

    def _tell(self) -> None:
        """Tell whoever listens, once, that flushes fail from now on."""
        core = self._core
        failure, damage = core.unsynced.failure, core.faults.damage()
        if failure is None and damage is not None:
            ranges = tuple(core.mapping.dirty_runs())
            failure = FlushError(core.path, str(damage), ranges, damage.errno or errno.EFAULT)
        if failure is not None and not self.told:
            self.told = True
            FLUSHES.error("%s", failure)
            self.failed.tell(failure)

    def _unasked_ended(self) -> None:
        if not self._core.sound:
            self._tell()
        self.after_batch()

    # Worker threads only, from here on; one has the turn at a time.

    def flush_unasked(self, due: Callable[[], bool]) -> bool:
        """Make everything durable if that is due; tell whether it has to be tried again.

        Beside the queue, which needs the loop. The loop is told when it has time.
        """
        core, failure = self._core, None
        with self._turn:
            if core.lifecycle.closing or core.lifecycle.retired:
                return False
            if core.sound:
                if not due():
                    return False
                self._make_durable([Request(0, core.mapping.size)], [None], clean=False)
                failure = self._passing
        core.workers.call_from_thread(self._unasked_ended)
        if failure is not None:
            FLUSHES.warning("%s", failure)
        return failure is not None

    def _in_turn(self, serve: Callable[[Any], list[Outcome]], items: list[Item]) -> list[Outcome]:
        with self._turn:
            return serve(items)

    def _serve(self, items: list[Item]) -> list[Outcome]:
        """Do what is in a batch with changes, in its order."""
        outcomes: list[Outcome] = []
        for changes, group in itertools.groupby(items, lambda item: isinstance(item, Change)):
            if self._core.unsynced.failure is not None:
                break
            if changes:
                outcomes += self._change(cast("Iterable[Change]", group))
            else:
                outcomes += self._flush(cast("list[Store | Request]", list(group)))
        try:
            return [*outcomes, *[None] * (len(items) - len(outcomes))]
        finally:
            del outcomes  # the traceback of an error in it refers to this frame

    def _change(self, changes: Iterable[Change]) -> list[Outcome]:
        with self._core.resize_mutex:
            return [self._act(change) for change in changes]

    def _act(self, change: Change) -> Exception | None:
        with self._core.own.resizing() if change.ours else nullcontext():
            return change.run()

    def _flush(self, requests: list[Store | Request]) -> list[Outcome]:
        """Store what is to be stored, and make it durable with what else was asked for."""
        core = self._core
        plain = core.disk is core.mapping and Request not in {*map(type, requests)}
        if plain and not self._finds_work():
            outcomes = self._commit(cast("list[Store]", requests))
            if outcomes is not None:
                return outcomes
        clean = not core.mapping.dirty_bytes()
        outcomes = self._store(requests)
        self._make_durable(requests, outcomes, clean=clean)
        failure = self._passing
        if failure is None:
            return outcomes
        self.after_batch()  # here: what is dirty again must not wait for the loop
        return [o if is_error(o) else failure for o in outcomes]

    def _commit(self, stores: list[Store]) -> list[Outcome] | None:
        """Store and make durable in one native call; None if something else became dirty first.

        The way of nearly all groups of durable writes: the general one is a dozen steps of Python,
        which cost a single writer a tenth of its rate (docs/decisions.md).
        """
        core, mapping = self._core, self._core.mapping
        start = time.monotonic()
        with core.own.storing(len(stores)):
            try:
                done = mapping.commit(stores)
            except OSError as error:
                self._latch(error)
                return [None for _ in stores]
        if done is None:
            return None
        if isinstance(done, list):  # a store stopped short; the others are to be flushed
            outcomes = self._outcomes(stores, done)
            self._make_durable(stores, outcomes, clean=True)
            return outcomes
        receipts, alone, flushed, end, seen = done
        try:
            self._verify(end, seen)
            if mapping.cut_suspected:
                self._check_holes(map(bounds, stores))
        except (OSError, MappingFaultError) as error:
            self._give_up(error, [*map(bounds, stores)])
            return cast("list[Outcome]", receipts)
        mapping.flush_end([])
        self.flushed_bytes += flushed
        if alone:
            sequence = receipts[-1].sequence
            self.trigger.began(mapping.written_bytes, sequence)
            mapping.durable_sequence = max(mapping.durable_sequence, sequence)
        else:
            settle(receipts)
        self._record(len(stores), start)
        return cast("list[Outcome]", receipts)

    def _make_durable(
        self, requests: Sequence[Store | Request], outcomes: Sequence[Outcome], *, clean: bool
    ) -> None:
        core, mapping = self._core, self._core.mapping
        self._passing = None
        if not self._finds_work():
            settle(outcomes)
            return
        start = time.monotonic()
        # flusher.2: before the runs are taken.
        written, sequence = mapping.written_bytes, mapping.sequence
        dirty = mapping.dirty_runs()
        # Where all was clean, only these stores are dirty. And only fsync(2) syncs a size, and it
        # writes everything.
        asked = None if clean or core.unsynced.size_changed else self._spans(requests, outcomes)
        if asked is None or all(asked.covers(*run) for run in dirty):
            self.trigger.began(written, sequence)
            if not self._write_out([(dirty[0][0], dirty[-1][1])] if dirty else [], whole=True):
                return
            mapping.durable_sequence = max(mapping.durable_sequence, sequence)
        else:
            if not self._write_out([*asked], whole=False):
                return
            settle(outcomes)
        self._record(len(requests), start)

    def _record(self, requests: int, start: float) -> None:
        self.groups.record(requests)
        self.seconds.record(max(time.monotonic() - start, 1e-9))

    def _store(self, requests: list[Store | Request]) -> list[Outcome]:
        """Apply the stores (flusher.4); the receipt or error of each request, None without any."""
        core = self._core
        mixed = Request in {*map(type, requests)}
        stores = (
            [store for request in requests for store in stores_of(request)] if mixed else requests
        )
        if not stores:
            return [None for _ in requests]
        with core.own.storing(len(stores)):
            results = write_in_parts(core.disk, cast("list[Store]", stores))
        if not mixed and tuple not in {*map(type, results)}:
            return cast("list[Outcome]", results)
        return self._outcomes(requests, results)

    def _outcomes(
        self,
        requests: Sequence[Store | Request],
        results: Iterable[Receipt | tuple[int, int]],
    ) -> list[Outcome]:
        found = iter(results)
        return [self._outcome(request, found) for request in requests]

    def _outcome(
        self, request: Store | Request, results: Iterator[Receipt | tuple[int, int]]
    ) -> Outcome:
        stores = stores_of(request)
        if not stores:
            return None
        outcome = self._core.faults.outcome(stores, list(itertools.islice(results, len(stores))))
        if isinstance(outcome, OSError):
            return outcome
        offset, end = bounds(request)
        return WriteReceipt(self, offset, end - offset, outcome)

    def _spans(self, requests: Sequence[Store | Request], outcomes: Sequence[Outcome]) -> RangeSet:
        """Round the ranges of requests to pages and merge them, within the file."""
        size = self._core.mapping.size
        spans = RangeSet()
        for request, outcome in zip(requests, outcomes, strict=True):
            if not isinstance(outcome, BaseException):
                offset, end = bounds(request)
                spans.add(align_down(offset, PAGE_SIZE), min(align_up(end, PAGE_SIZE), size))
        return spans

    def _write_out(self, spans: list[tuple[int, int]], *, whole: bool) -> bool:
        """Write the dirty pages of the spans back and wait; tell whether they are durable."""
        mapping = self._core.mapping
        taken = [mapping.flush_begin(offset, end - offset) for offset, end in spans]
        runs = [run for runs in taken for run in runs]
        try:
            # One call from the first to the last dirty page of each span: what lies between them
            # is clean, and each call waits for the device anew.
            self._sync([(runs[0][0], runs[-1][1]) for runs in taken if runs], whole=whole)
            if mapping.cut_suspected:
                self._check_holes(runs)
        except BaseException as error:
            self._give_up(error, runs)
            if not isinstance(error, (OSError, MappingFaultError)):
                raise
            return False
        mapping.flush_end([])
        self.flushed_bytes += sum(end - offset for offset, end in runs)
        return True

    def _give_up(self, error: BaseException, runs: list[tuple[int, int]]) -> None:
        """Note why what was being flushed is dirty as before."""
        self._core.mapping.flush_end(runs)
        if isinstance(error, NameNotSyncedError):
            self._passing = self._failure_of(error, latched=False)
        elif not isinstance(error, MappingFaultError):  # every verb tells of that until a reopen
            self._latch(error)

    def _sync(self, hulls: list[tuple[int, int]], *, whole: bool) -> None:
        core = self._core
        changes = changed, resized = core.unsynced.take_changes()
        last = hulls[-1][1] if hulls else 0
        end = core.mapping.size if resized else last
        try:
            self._sync_to(hulls, end, whole=whole, changed=changed)
        except BaseException:
            core.unsynced.restore_changes(changes)
            raise
        if core.made is not None and core.unsynced.created:
            core.name_is_durable()

    def _sync_to(
        self, hulls: list[tuple[int, int]], end: int, *, whole: bool, changed: bool
    ) -> None:
        core = self._core
        if whole and (hulls or changed):
            core.disk.sync(changed)
        elif not whole:
            for offset, stop in hulls:
                core.disk.sync_range(offset, stop - offset)
        if core.made is not None and core.unsynced.created:
            core.made.sync(core.mapping.fd)
        self._verify(end)

    def _verify(self, end: int, seen: tuple[int, int] | None = None) -> None:
        """Check that what was flushed is still part of a file that has a name (I4)."""
        core = self._core
        core.check_whole()
        size, names = seen or core.mapping.stat()
        if size < end:
            raise OSError(
                errno.EIO,
                f"the file was truncated to {size} bytes while bytes up to {end} were dirty",
            )
        if names:
            core.unsynced.note_name()
        elif core.unsynced.named:
            raise OSError(
                errno.ESTALE,
                "the file was removed or replaced and has no name left, so the flushed data is "
                "orphaned: it is gone once the file is closed",
            )

    def _check_holes(self, runs: Iterable[tuple[int, int]]) -> None:
        """Check that no hole is where bytes were flushed: a store may have hidden a truncation.

        What others cut off, a write behind it makes long again with holes. A file system that has
        none never tells of one.
        """
        mapping = self._core.mapping
        for start, end in runs:
            hole = end if start == end else os.lseek(mapping.fd, start, os.SEEK_HOLE)
            if hole < end:
                raise OSError(
                    errno.EIO,
                    f"the file was truncated and made longer again while bytes at {hole} were "
                    "dirty: they are zeros now",
                )
        mapping.cut_suspected = bool(mapping.dirty_bytes())

    def _latch(self, error: BaseException) -> None:
        self._core.unsynced.latch(self._failure_of(error))
        self._core.route.choose()

    def _failure_of(self, error: BaseException, *, latched: bool = True) -> FlushError:
        reason, number = str(error), None
        if isinstance(error, OSError):
            reason, number = error.strerror or reason, error.errno
        ranges = tuple(self._core.mapping.dirty_runs())
        failure = FlushError(self._core.path, reason, ranges, number or errno.EIO, latched=latched)
        failure.__cause__ = error
        return failure


def _nothing() -> None:
    """Stand in for a change where only its turn is waited for."""
