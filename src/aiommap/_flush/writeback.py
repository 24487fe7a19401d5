"""Flushes of one file, the half that waits: write-back, proof of durability, the latch.

Theory of operation. A flush takes the dirty runs of the requested ranges, writes them back and
waits. Then it checks that the file is still long enough and still has a name: the kernel reports
success even for pages of a file that was truncated or removed meanwhile. If the batch has stores,
they are applied first.

Nearly all batches need only stores and fdatasync(2), or fdatasync(2) alone. Such a batch is a
*flight*: a thread of the engine makes the calls, and the loop does the work before and after them.
Worker threads do all other batches, and the end of a flight that met anything unusual.

Invariants.
  1  A batch of the commit queue, or a background flush, has the *turn*, a mutex, while it flushes
      or changes the size. Only the holder of the turn writes the fields here. The loop holds it
      only for moments. A thread that gets the turn during a flight waits for that and ends it.
  2  ``durable_sequence`` grows only when everything that was dirty has been flushed, and only to
      the number of the newest write applied before the flush began.
  3  After a flush that failed, the holder of the turn does nothing; the flush may have been one in
     the background just before this batch. A second flush would report success for pages that the
     kernel dropped (I5). The loop answers the batch with the failure (``Flusher._end``).
  4  A flight always ends and reports, even if its accounting fails: then all its requests get that
     error.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from .._core.disk import STORES_A_CALL, Store, find_hole, write_in_parts
from .._core.file_core import FileCore
from .._core.paths import NameNotSyncedError
from .._core.receipt import ReceiptOwner, WriteReceipt
from .._errors import FlushError, MappingFaultError
from .._native import PAGE_SIZE, PoolCommit, PoolQueue, Receipt
from .._ranges import RangeSet, align_down, align_up
from .._runtime.kept_threads import run_in_some_thread
from .._runtime.threads import Mutex
from .flight import Asked, Committed, Ended, Flight, Flushed, Run, run_of, settle
from .histogram import Histogram
from .requests import ApplyAppends, Change, Outcome, Request, is_error
from .trigger import FlushTrigger


class Writeback:
    """Stores, writes back and verifies for one file; for worker threads unless a member says more.

    Attributes:
        flushed_bytes: bytes written back.
        groups: how many requests each flush answered.
        seconds: how long each flush took.
    """

    __slots__ = (
        "_core",
        "_flight",
        "_left_dirty",
        "_mutex",
        "_owner",
        "_passing",
        "_queue",
        "_trigger",
        "flushed_bytes",
        "groups",
        "seconds",
    )

    def __init__(
        self,
        core: FileCore,
        owner: ReceiptOwner,
        trigger: FlushTrigger,
        left_dirty: Callable[[], None],
    ) -> None:
        self._core = core
        #: The owner of the receipts that this makes.
        self._owner = owner
        self._trigger = trigger
        #: Called after a flush that failed and may be tried again.
        self._left_dirty = left_dirty
        self._mutex = Mutex()
        self._flight: Flight | None = None
        #: The place of the file in the engine; made by the first batch.
        self._queue: PoolQueue | None = None
        #: Why the last flush failed, if the next one may be tried.
        self._passing: FlushError | None = None
        self.flushed_bytes: int = 0
        self.groups: Histogram = Histogram()
        self.seconds: Histogram = Histogram()

    @property
    def busy(self) -> bool:
        """Whether a thread has the turn, or a flight is under way; in any thread."""
        return self._mutex.locked() or self._flight is not None

    def has_work(self) -> bool:
        """Tell whether a flush would do anything, or wait for one under way; on the loop."""
        if not self._mutex.acquire(blocking=False):
            return True
        try:
            return self._flight is not None or self._finds_work()
        finally:
            self._mutex.release()

    # Flights.

    def begin_commit(self, stores: list[Store], ended: Ended) -> bool:
        """Have the engine store and make durable; on the loop. False if a worker has to do it.

        That is rare: a worker does it if other bytes of the file are dirty, too.
        """
        mapping = self._core.mapping
        if len(stores) > STORES_A_CALL:
            return False
        flight = Flight(len(stores), stores, mapping, ended)
        return self._begin(flight, lambda queue: mapping.begin_commit(queue, stores, self._landed))

    def begin_flush(self, asked: list[Asked], count: int, ended: Ended) -> bool:
        """Have the engine flush everything that is dirty, for these requests; on the loop.

        False if a worker has to do it: if much more is dirty than the requests ask for, or if the
        size or the name is not durable. ``count`` is the number of requests.
        """
        mapping = self._core.mapping
        flight = Flight(count, [], mapping, ended)
        return self._begin(flight, lambda queue: mapping.begin_flush(queue, asked, self._landed))

    def _begin(self, flight: Flight, begin: Callable[[PoolQueue], PoolCommit | None]) -> bool:
        core = self._core
        if core.disk is not core.mapping or not self._mutex.acquire(blocking=False):
            return False
        try:
            if self._flight is not None or not core.sound or self._has_changed():
                return False
            if self._queue is None:
                self._queue = core.workers.flush_queue(core.identity.device)
            if self._queue is None:
                return False
            if flight.stores:
                core.own.storing(flight.count)
            flight.job = begin(self._queue)
            if flight.job is not None:
                self._flight = flight
        finally:
            if flight.stores and flight.job is None:
                core.own.end_storing(applied=False)
            self._mutex.release()
        return flight.job is not None

    def _landed(self, job: PoolCommit) -> None:
        """End the flight whose calls were made; on the loop."""
        flight = self._flight
        if flight is None or flight.job is not job:
            return  # a thread that got the turn has ended it
        if not job.succeeded:
            run_in_some_thread(self._end_in_worker)  # it may have to wait
        elif self._mutex.acquire(blocking=False):  # else the holder of the turn ends it
            try:
                ends = self._flight is flight
                if ends:
                    self._end_flight(flight)
            finally:
                self._mutex.release()
            if ends and not self._core.workers.ended:
                flight.tell()

    def _end_in_worker(self) -> None:
        with self._turn():
            pass

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the turn, once no flight is under way."""
        with self._mutex:
            flight = self._flight
            if flight is not None and flight.job is not None:
                flight.job.wait()
                self._end_flight(flight)
                self._core.workers.call_from_thread(flight.tell)
            yield

    def flush(self, requests: list[Request]) -> list[Outcome]:
        """Apply the stores of the requests, and make these and the requested ranges durable."""
        with self._turn():
            if not self._core.sound:
                return [None for _ in requests]  # writeback.3
            return self._flush(requests)

    def append(self, apply: ApplyAppends, items: list[bytes | memoryview]) -> list[Outcome]:
        """Append; if the policy flushes each write, make it durable in the same hop."""
        core = self._core
        with self._turn():
            if not core.sound:
                return [None for _ in items]  # writeback.3
            with core.resize_mutex, core.own.resizing():
                applied = apply(items)
            core.unsynced.note_resize()
            if applied is not None and not core.route.policy.flush_each_write:
                return applied
            outcomes: list[Outcome] = applied or [None for _ in items]
            everything = [Request(0, core.mapping.size)]
            return self._make_stored_durable(everything, outcomes, clean=False)

    def change(self, changes: list[Change]) -> list[Outcome]:
        """Run changes of the file, in their order."""
        with self._turn(), self._core.resize_mutex:
            if not self._core.sound:
                return [None for _ in changes]  # writeback.3
            return [change.run() for change in changes]

    def flush_if_due(self, due: Callable[[], bool]) -> tuple[bool, FlushError | None]:
        """Make everything durable if a flush is due.

        Returns:
            Whether the loop has to hear of it; and the error of a flush that may be tried again.
        """
        core = self._core
        with self._turn():
            if core.lifecycle.closing or core.lifecycle.retired:
                return False, None
            if not core.sound:
                return True, None
            if not due():
                return False, None
            self._make_durable([Request(0, core.mapping.size)], [None], clean=False)
            return True, self._passing

    # From here on: only for the holder of the turn.

    def _finds_work(self) -> bool:
        """Tell whether anything is not durable."""
        return self._has_changed() or self._core.mapping.dirty_bytes() > 0

    def _has_changed(self) -> bool:
        """Tell whether the size or the name is not durable."""
        core = self._core
        if core.mapping.take_growth():  # by stores beyond the end, through a growable view
            core.unsynced.note_resize()
        return core.unsynced.size_changed or core.unsynced.created

    def _flush(self, requests: list[Request]) -> list[Outcome]:
        clean = not self._core.mapping.dirty_bytes()
        return self._make_stored_durable(requests, self._store(requests), clean=clean)

    def _make_stored_durable(
        self, requests: Sequence[Request], outcomes: list[Outcome], *, clean: bool
    ) -> list[Outcome]:
        self._make_durable(requests, outcomes, clean=clean)
        failure = self._passing
        if failure is None:
            return outcomes
        self._left_dirty()  # in this thread: a plan for dirty pages must not wait for the loop
        return [o if is_error(o) else failure for o in outcomes]

    def _end_flight(self, flight: Flight) -> None:
        """Account for what the engine did, and check that it is durable (writeback.4)."""
        assert flight.job is not None
        self._flight = None
        try:
            if flight.stores:
                self._core.own.end_storing(applied=True)
            flight.end(self._outcomes_of(flight, flight.job.outcome()))
        except BaseException as error:
            flight.fail(error)

    def _outcomes_of(self, flight: Flight, done: Committed | Flushed) -> Sequence[Outcome]:
        if isinstance(done, int):
            self._latch(OSError(done, os.strerror(done)))
            return [None] * flight.count
        if isinstance(done, list):  # a store stopped short; flush the others here
            requests = [*map(Request.of, flight.stores)]
            return self._make_stored_durable(requests, self._outcomes(requests, done), clean=True)
        if len(done) == 4:
            self._end_flush(flight, *done)
            return [None] * flight.count
        self._end_commit(flight, *done)
        return cast("list[Outcome]", done[0])

    def _end_commit(
        self,
        flight: Flight,
        receipts: list[Receipt],
        alone: bool,
        flushed: int,
        end: int,
        seen: tuple[int, int],
    ) -> None:
        if not self._ends_well(flushed, end, seen, receipts):
            return
        if alone:
            sequence = receipts[-1].sequence
            self._trigger.began(self._core.mapping.written_bytes, sequence)
            self._note_durable(sequence)
        else:
            settle(receipts)
        self._record(flight.count, flight.start)

    def _end_flush(
        self, flight: Flight, flushed: int, end: int, seen: tuple[int, int], runs: list[Run]
    ) -> None:
        if self._ends_well(flushed, end, seen, runs):
            self._trigger.began(flight.written, flight.sequence)
            self._note_durable(flight.sequence)
            self._record(flight.count, flight.start)

    def _ends_well(
        self, flushed: int, end: int, seen: tuple[int, int], written: Sequence[Receipt | Run]
    ) -> bool:
        """End a flush of the engine; tell whether everything that it wrote is durable."""
        mapping = self._core.mapping
        try:
            self._verify(end, seen)
            if mapping.cut_suspected:
                self._check_holes(map(run_of, written))
        except BaseException as error:
            self._give_up(error, [*map(run_of, written)])
            if not isinstance(error, (OSError, MappingFaultError)):
                raise
            return False
        mapping.end_writeback([])
        self.flushed_bytes += flushed
        return True

    def _make_durable(
        self, requests: Sequence[Request], outcomes: Sequence[Outcome], *, clean: bool
    ) -> None:
        core, mapping = self._core, self._core.mapping
        self._passing = None
        if not self._finds_work():
            settle(outcomes)
            return
        start = time.monotonic()
        # Read the counts before the runs (writeback.2).
        written, sequence = mapping.written_bytes, mapping.sequence
        dirty = mapping.dirty_runs()
        # Flush everything if all was clean, because then only these stores are dirty; and after a
        # change of size, because only fsync(2) syncs a size, and it writes everything.
        asked = None if clean or core.unsynced.size_changed else self._spans(requests, outcomes)
        if asked is None or all(asked.covers(*run) for run in dirty):
            self._trigger.began(written, sequence)
            if not self._write_out([(dirty[0][0], dirty[-1][1])] if dirty else [], whole=True):
                return
            self._note_durable(sequence)
        else:
            if not self._write_out([*asked], whole=False):
                return
            settle(outcomes)
        self._record(len(requests), start)

    def _note_durable(self, sequence: int) -> None:
        """Note that every write up to this number is durable (writeback.2)."""
        mapping = self._core.mapping
        mapping.durable_sequence = max(mapping.durable_sequence, sequence)

    def _record(self, requests: int, start: float) -> None:
        self.groups.record(requests)
        self.seconds.record(max(time.monotonic() - start, 1e-9))

    def _store(self, requests: list[Request]) -> list[Outcome]:
        """Apply the stores (flusher.4); return the receipt or error of each request, else None."""
        core = self._core
        stores = [store for request in requests for store in request.stores]
        if not stores:
            return [None for _ in requests]
        with core.own.storing(len(stores)):
            results = write_in_parts(core.disk, stores)
        return self._outcomes(requests, results)

    def _outcomes(
        self, requests: Sequence[Request], results: Iterable[Receipt | tuple[int, int]]
    ) -> list[Outcome]:
        found = iter(results)
        return [self._outcome(request, found) for request in requests]

    def _outcome(self, request: Request, results: Iterator[Receipt | tuple[int, int]]) -> Outcome:
        stores = request.stores
        if not stores:
            return None
        outcome = self._core.faults.outcome(stores, list(itertools.islice(results, len(stores))))
        if isinstance(outcome, OSError):
            return outcome
        return WriteReceipt(self._owner, request.offset, request.end - request.offset, outcome)

    def _spans(self, requests: Sequence[Request], outcomes: Sequence[Outcome]) -> RangeSet:
        """Round the ranges of requests to pages and merge them, within the file."""
        size = self._core.mapping.size
        spans = RangeSet()
        for request, outcome in zip(requests, outcomes, strict=True):
            if not isinstance(outcome, BaseException):
                end = min(align_up(request.end, PAGE_SIZE), size)
                spans.add(align_down(request.offset, PAGE_SIZE), end)
        return spans

    def _write_out(self, spans: list[tuple[int, int]], *, whole: bool) -> bool:
        """Write the dirty pages of the spans back and wait; tell whether they are durable."""
        mapping = self._core.mapping
        taken = [mapping.begin_writeback(offset, end - offset) for offset, end in spans]
        runs = [run for runs in taken for run in runs]
        try:
            # One call from the first to the last dirty page of each span: pages between the runs
            # are clean, and each call waits for the device once.
            self._sync([(runs[0][0], runs[-1][1]) for runs in taken if runs], whole=whole)
            if mapping.cut_suspected:
                self._check_holes(runs)
        except BaseException as error:
            self._give_up(error, runs)
            if not isinstance(error, (OSError, MappingFaultError)):
                raise
            return False
        mapping.end_writeback([])
        self.flushed_bytes += sum(end - offset for offset, end in runs)
        return True

    def _give_up(self, error: BaseException, runs: list[tuple[int, int]]) -> None:
        """Count the runs as dirty again after a failed flush, and keep or latch its error."""
        self._core.mapping.end_writeback(runs)
        if isinstance(error, NameNotSyncedError):
            self._passing = self._failure_of(error, latched=False)
        elif not isinstance(error, MappingFaultError):  # every verb raises that until a reopen
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
        """Check that the flushed bytes are still part of a file that has a name (I4)."""
        core = self._core
        core.check_whole()
        size, names = seen or core.mapping.stat()
        if size < core.mapping.size:
            core.mapping.cut_suspected = True
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
        """Check that the flushed runs have no hole, which would show a hidden truncation.

        If another process truncates the file, and a write behind its end makes it long again, the
        part between is a hole.
        """
        mapping = self._core.mapping
        for start, end in runs:
            if (hole := find_hole(mapping.fd, start, end)) < end:
                what = "the file was truncated, and perhaps made longer again"
                reason = f"{what}, while bytes at {hole} were dirty: they are lost"
                raise OSError(errno.EIO, reason)
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
