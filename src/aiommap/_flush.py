"""Flushes of one file: group commit, proof of durability, and the latch.

Theory of operation. Every request to make something durable goes through one lane. While a flush
runs, requests gather; the next flush serves all of them at once. A flush takes the dirty runs of
the requested ranges, writes them back and waits, then looks whether the file is still the one at
the path and still long enough: the kernel reports success also for pages of a file that was
truncated or replaced meanwhile.

Invariants.
  F1  A flush answers only requests made before it began (I4): the lane keeps them apart.
  F2  ``durable_sequence`` grows only when everything that was dirty has been flushed, and only to
      the number of the newest write applied before the flush began.
  F3  The first failure latches (I5): it is raised for every request from then on, and inline
      stores are switched off.
  F4  Stores that ask for durability ride in the flush's own hop, before it takes the dirty runs.
  F5  What changes the size of the file is an item of the same lane: no flush sees it half done,
      or mistakes our own shrinking for somebody else's.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ._core import Core, Identity
from ._errors import AccessModeError, FlushError, MappingFaultError
from ._histogram import Histogram
from ._lane import Lane
from ._listeners import Listeners
from ._logs import FLUSHES
from ._native import PAGE_SIZE
from ._observing import observed
from ._policy import FlushLedger
from ._ranges import RangeSet, align_down, align_up
from ._receipt import WriteReceipt

Done = Callable[[Sequence[BaseException | None]], None]


@dataclass(slots=True)
class Request:
    """A range to make durable, the stores of one caller in it, or both, stores first.

    In the store lane there are only stores. ``receipt`` is the receipt to mark as durable; for
    stores in the flush lane it is made when they have been applied.
    """

    offset: int
    end: int
    receipt: WriteReceipt | None = None
    stores: list[tuple[int, memoryview]] = field(default_factory=list)
    error: OSError | None = None

    def stores_to(self, offset: int, end: int) -> bool:
        """Tell whether a store touches a part of a range."""
        return any(start < end and offset < start + len(data) for start, data in self.stores)


@dataclass(slots=True)
class Change:
    """Something to do to the file between two flushes, in a worker."""

    act: Callable[[], None]
    #: Whether it is we who change the file, and not somebody else who did.
    ours: bool = True
    error: Exception | None = None

    def run(self) -> None:
        """Act, and keep what it raises for whoever waits. Worker threads only."""
        try:
            self.act()
        except Exception as error:
            self.error = error


def _acts(item: Request | Change) -> bool:
    """Tell whether an item has something to do even if nothing is dirty."""
    return isinstance(item, Change) or bool(item.stores)


def _take_error(item: Request | Change) -> Exception | None:
    """Take an item's error out: its traceback refers to the item."""
    error, item.error = item.error, None
    return error


class Flusher:
    """Makes ranges of one file durable; also the owner that its receipts ask."""

    __slots__ = (
        "_core",
        "_lane",
        "after_batch",
        "failed",
        "flushed_bytes",
        "groups",
        "ledger",
        "seconds",
        "told",
    )

    def __init__(self, core: Core, failed: Listeners[FlushError]) -> None:
        self._core = core
        self._lane: Lane[Request | Change, None] = Lane(core.workers, self._begin)
        #: A failure was told to whoever listens; nothing is flushed any more.
        self.told = False
        self.ledger = FlushLedger(core.policy)
        #: Told on the loop after every batch.
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

    async def submit(self, request: Request) -> None:
        """Serve a request in the next flush."""
        core = self._core
        core.check_flushed()
        core.begin_activity()
        try:
            await self._observe(request)
        finally:
            core.end_activity()

    async def change(self, act: Callable[[], None], *, ours: bool = True) -> None:
        """Run what changes the size or the blocks of the file, or takes a new size over (F5)."""
        await self._lane.submit(Change(act, ours))

    async def flush_everything(self) -> None:
        """Make everything durable; for a file that no verb can reach any more."""
        await self._observe(Request(0, self._core.mapping.size))

    async def _observe(self, request: Request) -> None:
        name = "write" if request.stores else "flush"
        length = request.end - request.offset
        with observed(name, self._core.path, request.offset, length) as seen:
            seen.hop_if(lambda: bool(request.stores) or self.has_work())
            await self._lane.submit(request)

    def storing(self, offset: int, end: int) -> bool:
        """Tell whether stores to a part of a range are still under way here (F4)."""
        return any(
            isinstance(item, Request) and item.stores_to(offset, end)
            for item in self._lane.unfinished()
        )

    def has_work(self) -> bool:
        """Tell whether a flush would do anything."""
        core = self._core
        if core.mapping.take_growth():  # by stores beyond the end, through a growable view
            core.size_changed = core.resized = True
        return core.size_changed or core.created or core.mapping.dirty_bytes() > 0

    def _begin(self, items: list[Request | Change], done: Done) -> None:
        core = self._core
        idle = not self.has_work() and not any(_acts(item) for item in items)
        if idle or self._failure() is not None:
            self._ended(items, done, None, None)
        else:
            workers = core.workers
            flushing = any(isinstance(item, Request) for item in items)
            limiter = workers.flushes if flushing else workers.control
            workers.start(limiter, partial(self._serve, items), partial(self._ended, items, done))

    def _ended(
        self,
        items: list[Request | Change],
        done: Done,
        _: None,
        error: BaseException | None,
    ) -> None:
        failure = error or self._failure()
        for item in items:
            if failure is None and isinstance(item, Request) and item.receipt is not None:
                item.receipt._settled = True  # noqa: SLF001  the two are one mechanism
        self._tell()
        self.after_batch()
        done([_take_error(item) or failure for item in items])

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
        failure, damage = core.failure, core.damage()
        if failure is None and damage is not None:
            ranges = tuple(core.mapping.dirty_runs())
            failure = FlushError(core.path, str(damage), ranges, damage.errno or errno.EFAULT)
        if failure is not None and not self.told:
            self.told = True
            FLUSHES.error("%s", failure)
            self.failed.tell(failure)

    # Worker threads only, from here on; one batch is in flight at a time.

    def _serve(self, items: list[Request | Change]) -> None:
        for kind, group in itertools.groupby(items, type):
            if self._core.failure is not None:
                return
            if kind is Request:
                self._flush([item for item in group if isinstance(item, Request)])
                continue
            for change in group:
                assert isinstance(change, Change)
                with self._core.changes:
                    self._core.size_changes += change.ours
                    change.run()
                    self._core.size_changes += change.ours

    def _flush(self, requests: list[Request]) -> None:
        self._store(requests)
        if not self.has_work():
            return
        mapping = self._core.mapping
        start = time.monotonic()
        written, sequence = mapping.written_bytes, mapping.sequence  # F2: before the runs are taken
        spans = self._spans([request for request in requests if request.error is None])
        outside = [run for run in mapping.dirty_runs() if not spans.covers(*run)]
        taken = [mapping.flush_begin(offset, end - offset) for offset, end in spans]
        runs = [run for runs in taken for run in runs]
        if not outside:
            self.ledger.began(written, sequence)
        try:
            # One call from the first to the last dirty page of each span: what lies between them
            # is clean, and each call waits for the device anew.
            hulls = [(runs[0][0], runs[-1][1]) for runs in taken if runs]
            self._write_out(hulls, everything=not outside)
        except BaseException as error:
            mapping.flush_end(runs)
            if isinstance(error, MappingFaultError):
                return  # poisoned: every verb says so, until the file is reopened
            self._latch(error)
            if not isinstance(error, OSError):
                raise
            return
        mapping.flush_end([])
        if not outside:
            mapping.durable_sequence = max(mapping.durable_sequence, sequence)
        self.flushed_bytes += sum(end - offset for offset, end in runs)
        self.groups.record(len(requests))
        self.seconds.record(max(time.monotonic() - start, 1e-9))

    def _spans(self, requests: list[Request]) -> RangeSet:
        """Round the requested ranges to pages and merge them, within the file."""
        size = self._core.mapping.size
        if self._core.size_changed:
            return RangeSet([(0, size)])  # only fsync(2) syncs a size, and it writes everything
        return RangeSet(
            (align_down(request.offset, PAGE_SIZE), min(align_up(request.end, PAGE_SIZE), size))
            for request in requests
        )

    def _store(self, requests: list[Request]) -> None:
        core = self._core
        stores = [store for request in requests for store in request.stores]
        if not stores:
            return
        outcomes = iter(core.mapping.write_many(stores))
        core.offloaded_writes += len(stores)
        sequence = 0
        for request in requests:
            for offset, data in request.stores:
                copied, sequence, number = next(outcomes)
                if copied < len(data) and request.error is None:
                    request.error = core.store_fault(offset, len(data), copied, number)
            if request.stores:
                length = request.end - request.offset
                request.receipt = WriteReceipt(self, request.offset, length, sequence)

    def _write_out(self, hulls: list[tuple[int, int]], *, everything: bool) -> None:
        core = self._core
        end = max((end for _, end in hulls), default=0)
        if core.resized:
            end = core.mapping.size
        if everything and (hulls or core.size_changed):
            core.mapping.sync(core.size_changed)
        elif not everything:
            for offset, stop in hulls:
                core.mapping.sync_range(offset, stop - offset)
        if core.created:
            # Of the file itself: the path may be a symbolic link that was there before.
            sync_directory(os.path.dirname(os.path.realpath(core.path)))
        self._verify(end)
        core.size_changed = core.created = core.resized = False

    def _verify(self, end: int) -> None:
        """Check that what was flushed is still part of the file at the path (I4)."""
        core = self._core
        core.check_whole()
        size = os.fstat(core.mapping.fd).st_size
        if size < end:
            raise OSError(
                errno.EIO,
                f"the file was truncated to {size} bytes while bytes up to {end} were dirty",
            )
        try:
            found: Identity | None = Identity.of(os.stat(core.path))
        except FileNotFoundError:
            found = None
        if found != core.identity:
            what = "was removed" if found is None else "now names another file"
            raise OSError(errno.ESTALE, f"the path {what}, so the flushed data is orphaned")

    def _latch(self, error: BaseException) -> None:
        core = self._core
        reason, number = str(error), None
        if isinstance(error, OSError):
            reason, number = error.strerror or reason, error.errno
        core.failure = FlushError(
            core.path, reason, tuple(core.mapping.dirty_runs()), number or errno.EIO
        )
        core.failure.__cause__ = error
        core.choose_inline_writes()


def sync_directory(path: str) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
