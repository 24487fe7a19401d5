"""Flushes of one file, the half in worker threads: write-back, proof of durability, the latch.

Theory of operation. A flush takes the dirty runs of the requested ranges, writes them back and
waits. Then it looks whether the file is still long enough and still has a name: the kernel reports
success also for pages of a file that was truncated or removed meanwhile. Stores that ride along are
applied first.

Invariants.
  1  Whoever flushes or changes the size has the *turn*, a mutex. It is a batch of the commit queue,
      or a background flush. Every field here is written by whoever has the turn.
  2  ``durable_sequence`` grows only when everything that was dirty has been flushed, and only to
      the number of the newest write applied before the flush began.
  3  Whoever gets the turn after a flush that failed does nothing: a background flush may have had
     it before the batch. A second flush would report success for pages that the kernel dropped
     (I5). The loop answers the batch with the failure (``Flusher._end``).
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from .._core.disk import Store, write_in_parts
from .._core.file_core import FileCore
from .._core.paths import NameNotSyncedError
from .._core.receipt import ReceiptOwner, WriteReceipt
from .._errors import FlushError, MappingFaultError
from .._native import PAGE_SIZE, Receipt
from .._ranges import RangeSet, align_down, align_up
from .._runtime.threads import Mutex
from .histogram import Histogram
from .requests import ApplyAppends, Change, Outcome, Request, is_error
from .trigger import FlushTrigger


class Writeback:
    """Stores, writes back and verifies for one file; for worker threads unless it says otherwise.

    Attributes:
        flushed_bytes: bytes written back.
        groups: how many requests each flush answered.
        seconds: how long each flush took.
    """

    __slots__ = (
        "_core",
        "_left_dirty",
        "_owner",
        "_passing",
        "_trigger",
        "_turn",
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
        #: What receipts ask.
        self._owner = owner
        self._trigger = trigger
        #: Called after a flush that failed, and may be tried again.
        self._left_dirty = left_dirty
        self._turn = Mutex()
        #: Why the last flush failed, if the next one may be tried.
        self._passing: FlushError | None = None
        self.flushed_bytes: int = 0
        self.groups: Histogram = Histogram()
        self.seconds: Histogram = Histogram()

    @property
    def busy(self) -> bool:
        """Whether somebody has the turn; in any thread."""
        return self._turn.locked()

    def has_work(self) -> bool:
        """Tell whether a flush would do anything, or wait for one under way; on the loop."""
        if not self._turn.acquire(blocking=False):
            return True
        try:
            return self._finds_work()
        finally:
            self._turn.release()

    def commit(self, stores: list[Store]) -> list[Outcome]:
        """Store and make durable: the batch of durable writes."""
        with self._turn:
            if not self._core.sound:
                return [None for _ in stores]  # writeback.3
            outcomes = None
            if self._core.disk is self._core.mapping and not self._finds_work():
                outcomes = self._commit(stores)
            return self._flush([*map(Request.of, stores)]) if outcomes is None else outcomes

    def flush_receipts(self, receipts: list[WriteReceipt]) -> list[Outcome]:
        """Make writes durable that were stored before: the batch of those who wait for receipts."""
        with self._turn:
            if not self._core.sound:
                return [None for _ in receipts]  # writeback.3
            if self._core.disk is self._core.mapping and self._flush_receipts(receipts):
                return [None for _ in receipts]
            outcomes = self._flush([*map(Request.of_receipt, receipts)])
            if self._core.sound:  # else the loop answers all of them with the failure
                asked = zip(receipts, outcomes, strict=True)
                settle(receipt for receipt, outcome in asked if not is_error(outcome))
            return outcomes

    def flush(self, requests: list[Request]) -> list[Outcome]:
        """Store what is to be stored, and make it durable with what else was asked for."""
        with self._turn:
            if not self._core.sound:
                return [None for _ in requests]  # writeback.3
            return self._flush(requests)

    def append(self, apply: ApplyAppends, items: list[bytes | memoryview]) -> list[Outcome]:
        """Append, and make it durable if the policy says so: in the same hop."""
        core = self._core
        with self._turn:
            if not core.sound:
                return [None for _ in items]  # writeback.3
            with core.resize_mutex, core.own.resizing():
                applied = apply(items)
            core.unsynced.note_resize()
            if applied is not None and not core.route.policy.flush_each_write:
                return applied
            outcomes: list[Outcome] = applied or [None for _ in items]
            self._make_durable([Request(0, core.mapping.size)], outcomes, clean=False)
            failure = self._passing
            if failure is None:
                return outcomes
            self._left_dirty()
            return [o if is_error(o) else failure for o in outcomes]

    def change(self, changes: list[Change]) -> list[Outcome]:
        """Run changes of the file, in their order."""
        with self._turn, self._core.resize_mutex:
            if not self._core.sound:
                return [None for _ in changes]  # writeback.3
            return [change.run() for change in changes]

    def flush_if_due(self, due: Callable[[], bool]) -> tuple[bool, FlushError | None]:
        """Make everything durable if that is due.

        Returns:
            Whether the loop has to hear of it, and an error if it may be tried again.
        """
        core = self._core
        with self._turn:
            if core.lifecycle.closing or core.lifecycle.retired:
                return False, None
            if not core.sound:
                return True, None
            if not due():
                return False, None
            self._make_durable([Request(0, core.mapping.size)], [None], clean=False)
            return True, self._passing

    # For whoever has the turn, from here on.

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
        outcomes = self._store(requests)
        self._make_durable(requests, outcomes, clean=clean)
        failure = self._passing
        if failure is None:
            return outcomes
        self._left_dirty()  # here: what is dirty again must not wait for the loop
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
            requests = [*map(Request.of, stores)]
            outcomes = self._outcomes(requests, done)
            self._make_durable(requests, outcomes, clean=True)
            return outcomes
        receipts, alone, flushed, end, seen = done
        if not self._ends_well(flushed, end, seen, receipts):
            return cast("list[Outcome]", receipts)
        if alone:
            sequence = receipts[-1].sequence
            self._trigger.began(mapping.written_bytes, sequence)
            self._note_durable(sequence)
        else:
            settle(receipts)
        self._record(len(stores), start)
        return cast("list[Outcome]", receipts)

    def _flush_receipts(self, receipts: list[WriteReceipt]) -> bool:
        """Make durable in one native call, and tell whether that is over.

        The way of nearly all groups that wait: False if more is to be done than what they ask for.
        """
        mapping = self._core.mapping
        if self._has_changed():
            return False
        start = time.monotonic()
        # writeback.2: before the runs are taken.
        written, sequence = mapping.written_bytes, mapping.sequence
        try:
            done = mapping.flush_receipts(receipts)
        except OSError as error:
            self._latch(error)
            return True
        if done is None:
            return False
        if self._ends_well(*done, receipts):
            self._trigger.began(written, sequence)
            self._note_durable(sequence)
            self._record(len(receipts), start)
        return True

    def _ends_well(
        self, flushed: int, end: int, seen: tuple[int, int], receipts: Sequence[Receipt]
    ) -> bool:
        """End a flush of one native call; tell whether what it wrote is durable."""
        mapping = self._core.mapping
        try:
            self._verify(end, seen)
            if mapping.cut_suspected:
                self._check_holes(_runs(receipts))
        except (OSError, MappingFaultError) as error:
            self._give_up(error, [*_runs(receipts)])
            return False
        mapping.flush_end([])
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
        # writeback.2: before the runs are taken.
        written, sequence = mapping.written_bytes, mapping.sequence
        dirty = mapping.dirty_runs()
        # Where all was clean, only these stores are dirty. And only fsync(2) syncs a size, and it
        # writes everything.
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
        """Every write up to this number is durable (writeback.2)."""
        mapping = self._core.mapping
        mapping.durable_sequence = max(mapping.durable_sequence, sequence)

    def _record(self, requests: int, start: float) -> None:
        self.groups.record(requests)
        self.seconds.record(max(time.monotonic() - start, 1e-9))

    def _store(self, requests: list[Request]) -> list[Outcome]:
        """Apply the stores (flusher.4); the receipt or error of each request, None without any."""
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
        taken = [mapping.flush_begin(offset, end - offset) for offset, end in spans]
        runs = [run for runs in taken for run in runs]
        try:
            # One call from the first to the last dirty page of each span: what lies between them
            # is clean, and each call waits for the device once.
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
        """Check that what was flushed is still part of a file that has a name (I4)."""
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
        """Check that no hole is where bytes were flushed: a store may have hidden a truncation.

        If another process truncates the file, and a write behind the end makes it long again, the
        part between is a hole. A file system without holes never reports one.
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


def settle(receipts: Iterable[object]) -> None:
    """Mark receipts whose own ranges are durable, though ``durable_sequence`` may not say so."""
    for receipt in receipts:
        if isinstance(receipt, WriteReceipt):
            receipt._settled = True  # noqa: SLF001  the two are one mechanism


def _runs(receipts: Iterable[Receipt]) -> Iterator[tuple[int, int]]:
    """Say where each write begins and ends."""
    return ((receipt.offset, receipt.offset + receipt.length) for receipt in receipts)
