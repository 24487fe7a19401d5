"""Prewarm, residency, advice and locking: which pages are in memory, and how they get there.

Invariants.
  1  The pager publishes a range only while every page of it is locked; reads of a published range
     make no system call. While pages are being remapped, published ranges do not count until the
     pager has locked them again.
  2  If pages are remapped while a range is being locked, the pager locks the range again from its
     start: ``_generation`` shows that.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from .._advice import Advice
from .._core.faults import FULL
from .._core.file_core import FileCore
from .._core.mapping_limit import mapping_limit, naming_the_limit
from .._errors import OutOfBoundsError, UnsupportedError, name_file
from .._native import PAGE_SIZE, PIECE_BYTES
from .._ranges import RangeCounts, RangeSet, align_down, align_up
from .._runtime.threads import Mutex
from .._runtime.tracing import traced
from .._runtime.workers import OnCancel
from .holes import holes, keeps_holes, next_data
from .huge_pages import count_huge_bytes
from .read_ahead import ReadAhead, kernel_reads_far_ahead
from .residency import Residency

#: How long one hop of a prewarm works: short enough to cancel and to report progress, long enough
#: for the hop itself not to count.
STRETCH_SECONDS = 0.01
#: How far read-ahead runs ahead of the page that is mapped.
READ_AHEAD_BYTES = 32 * PIECE_BYTES

Progress = Callable[[int, int], object]


class LockedRange(NamedTuple):
    """One range of whole pages that ``lock`` has locked."""

    offset: int
    end: int
    #: Whether every page of it was present; if not, it has holes and is never published.
    whole: bool


class Pager:
    """Paging verbs of one file. The caller checks ranges."""

    __slots__ = (
        "_core",
        "_counting",
        "_generation",
        "_locking",
        "_sparse",
        "_wanted",
        "_whole",
        "huge_page_bytes",
    )

    def __init__(self, core: FileCore) -> None:
        self._core = core
        #: The last count of bytes that are mapped by huge pages.
        self.huge_page_bytes: int | None = None
        #: Serializes locking and unlocking of pages. Only worker threads take it.
        self._locking = Mutex()
        #: Guards the counts; any thread holds it for moments.
        self._counting = Mutex()
        #: Ranges that are locked or being locked: the end of another block must not unlock them.
        self._wanted = RangeCounts()
        #: Locked ranges of which every page was present, and the others.
        self._whole = RangeCounts()
        self._sparse = RangeCounts()
        #: How often pages were remapped. Only the worker that remaps writes it; one does at a time.
        self._generation = 0

    async def prewarm(
        self, offset: int, length: int, *, write: bool, progress: Progress | None
    ) -> int:
        """Make a range resident and return how many of its bytes are."""
        core, at, end = self._core, offset, offset + length
        ahead = await self._read_ahead(offset, end)
        with traced("prewarm", core.path, offset, length) as op:
            while at < end:
                core.check_usable()
                if ahead is not None:
                    ahead.reach(at)
                op.hop()
                at = await core.run(core.workers.reads, self._stretch, at, end, write)
                if progress is not None:
                    progress(at - offset, length)
        try:
            found = await self.residency(offset, length)
        except UnsupportedError:
            return length
        if write or found.resident == found.total:
            return found.resident_bytes
        return await core.run(core.workers.reads, self._reached, found, end)

    async def _read_ahead(self, offset: int, end: int) -> ReadAhead | None:
        """Make the read-ahead of a prewarm; None if it would not make the prewarm faster."""
        core = self._core
        if end - offset <= PIECE_BYTES or await core.run(
            core.workers.reads, kernel_reads_far_ahead, core.identity.device
        ):
            return None
        return ReadAhead(core, offset, end, READ_AHEAD_BYTES)

    async def residency(self, offset: int, length: int) -> Residency:
        """Ask the kernel which pages of a range are in memory."""
        core = self._core
        try:
            if core.mapping.residency_visible:
                return await core.run(core.workers.reads, self._resident, offset, length)
        except OSError:
            if core.mapping.residency_visible:
                raise
        raise UnsupportedError(
            f"see which pages of {core.path} are in memory",
            "the kernel shows that only to its owner or to who may write it, and a sandbox may "
            "refuse mincore(2) to everybody",
            errno.EPERM,
        )

    async def count_huge_pages(self) -> int:
        """Count the bytes that are mapped by huge pages."""
        core = self._core
        count = await core.run(core.workers.reads, count_huge_bytes, core)
        self.huge_page_bytes = count
        return count

    async def advise(self, advice: Advice, offset: int, length: int) -> None:
        """Pass advice on to the mapping and to the descriptor."""
        core = self._core
        if advice is Advice.DONT_NEED and core.mode == "c":
            raise UnsupportedError(
                f"drop private pages of {core.path}", 'in mode "c" they hold its only stores'
            )
        if advice.madvise is None:
            raise UnsupportedError(f"advise {advice.name}", "this platform has no such advice")
        await core.run(core.workers.control, self._advise, advice, offset, length)

    async def start_writeback(self, offset: int, length: int) -> None:
        """Begin the write-back of dirty pages."""
        core = self._core
        try:
            await core.run(core.workers.flushes, core.mapping.start_writeback, offset, length)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            reason = "the kernel has no sync_file_range(2), or a sandbox refuses it"
            what = f"start write-back of {core.path}"
            raise UnsupportedError(what, reason, errno.ENOSYS) from error

    async def lock(self, offset: int, length: int) -> LockedRange:
        """Lock the pages of a range; the caller passes the result to ``unlock``."""
        end = align_up(offset + length, PAGE_SIZE)
        span = (align_down(offset, PAGE_SIZE), end) if length else (offset, offset)
        with self._counting:
            self._wanted.add(*span)
        try:
            while True:
                generation = self._generation
                locked = LockedRange(*span, await self._lock_pieces(offset, offset + length))
                # Add the range before reading the generation: a remap increments the generation,
                # then locks the ranges that were added.
                with self._counting:
                    self._alike(locked).add(*span)
                if generation == self._generation:
                    break
                self._forget(locked)
        except BaseException:
            with self._counting:
                self._wanted.remove(*span)
            await self._unlock_span(span)
            raise
        if locked.whole:
            self._core.mapping.set_locked(span[0], span[1] - span[0], True)
        return locked

    async def _lock_pieces(self, at: int, end: int) -> bool:
        """Lock a range piece by piece; tell whether every page is present and none is a hole."""
        core = self._core
        whole = True
        while at < end:
            core.check_usable()
            piece = min(PIECE_BYTES, end - at)
            whole &= await core.run(core.workers.reads, self._lock_piece, at, piece)
            at += piece
        return whole

    async def unlock(self, locked: LockedRange) -> None:
        """Unlock a range, except for bytes that other locks still cover."""
        span = (locked.offset, locked.end)
        self._forget(locked)
        with self._counting:
            self._wanted.remove(*span)
        await self._unlock_span(span)

    def _alike(self, locked: LockedRange) -> RangeCounts:
        return self._whole if locked.whole else self._sparse

    def _forget(self, locked: LockedRange) -> None:
        """Stop counting a range, and withdraw the parts that no other locked range publishes."""
        offset, end, whole = locked
        with self._counting:
            self._alike(locked).remove(offset, end)
            bare = self._whole.gaps(offset, end) if whole else ()
        for start, stop in bare:
            self._core.mapping.set_locked(start, stop - start, False)

    async def _unlock_span(self, span: tuple[int, int]) -> None:
        core = self._core
        # Closing unmaps, and that unlocks; a forked child inherits no locks (mlock(2)).
        if not core.lifecycle.closing and not core.mapping.forked:
            with core.lifecycle.activity():
                try:
                    await core.workers.run(
                        core.workers.control, self._unlock_rest, span, on_cancel=OnCancel.WAIT
                    )
                except OSError as error:
                    name_file(error, core.path)
                    raise

    # From here on: worker threads only.

    @contextmanager
    def remapping(self) -> Iterator[None]:
        """Allow the block to remap pages; at its end lock again what was locked (pager.1)."""
        mapping = self._core.mapping
        mapping.remapping = True
        try:
            yield
        finally:
            self._generation += 1
            self._relock()
            mapping.remapping = False

    def _relock(self) -> None:
        with self._locking:
            size = self._core.mapping.size
            with self._counting:
                sparse = [(*span, True) for span in self._sparse.within(0, size)]
                whole = [(*span, False) for span in self._whole.within(0, size)]
            for offset, end, later in (*sparse, *whole):
                try:
                    lock = self._core.mapping.lock_later if later else self._core.mapping.lock
                    lock(offset, end - offset)
                except OSError as error:
                    raise self._explain_lock(error, offset, end - offset) from error

    def _stretch(self, at: int, end: int, write: bool, seconds: float = STRETCH_SECONDS) -> int:
        """Map pages for at most some seconds, and return the next byte to map."""
        stop = time.monotonic() + seconds
        mapping = self._core.mapping
        sparse = not write and keeps_holes(mapping)
        while at < end and time.monotonic() < stop:
            at, until = next_data(mapping.fd, at, end) if sparse else (at, end)
            if at < until:
                at += self._populate(at, until - at, write)
        return at

    def _resident(self, offset: int, length: int) -> Residency:
        resident, total, runs = self._core.mapping.residency(offset, length)
        return Residency(resident, total, tuple(runs), offset, length)

    def _reached(self, found: Residency, end: int) -> int:
        """Count resident bytes, and bytes of holes, which reads never wait for.

        In a worker, because there may be very many runs.
        """
        mapping = self._core.mapping
        free = holes(mapping.fd, found.offset, end) if keeps_holes(mapping) else ()
        return RangeSet([*found.runs, *free]).total()

    def _populate(self, offset: int, length: int, write: bool) -> int:
        try:
            return self._core.disk.populate(offset, length, write)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN):
                return 0
            if error.errno in FULL:
                raise self._core.faults.no_room(error.errno, offset, length) from error
            if error.errno == errno.EFAULT:
                make = self._core.faults.not_stored if write else self._core.faults.lost
                raise make(offset, min(length, PIECE_BYTES), 0) from error
            raise

    def _advise(self, advice: Advice, offset: int, length: int) -> None:
        mapping = self._core.mapping
        assert advice.madvise is not None
        try:
            with naming_the_limit(self._core.path):
                mapping.advise(offset, length, advice.madvise)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EAGAIN, errno.EPERM, errno.ENOSYS):
                raise
            reason = "this kernel has no such advice, or a sandbox refuses it"
            if error.errno == errno.EAGAIN:
                # madvise(2) turns the ENOMEM for one mapping too many into this.
                reason = (
                    "advice for a part of a file takes mappings of its own, and the process has "
                    "as many as vm.max_map_count allows: advise the whole file, map fewer files, "
                    "or raise that limit"
                )
            elif self._is_wanted(offset, offset + length):
                reason = (
                    "pages of the range are locked, by locked() or lock=True: unlock them first"
                )
            what = f"advise {advice.name} of {self._core.path}"
            raise UnsupportedError(what, reason, error.errno) from error
        # Reads go through the descriptor, which has one read-ahead mode for the whole file.
        whole = length == mapping.size
        ranged = advice in (Advice.WILL_NEED, Advice.DONT_NEED)
        if advice.fadvise is not None and length and (whole or ranged):
            try:
                os.posix_fadvise(mapping.fd, offset, length, advice.fadvise)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOSYS):  # a sandbox refused this hint
                    raise

    def _lock_piece(self, offset: int, length: int) -> bool:
        later = keeps_holes(self._core.mapping)  # then the kernel locks pages when they appear
        # Read first: mlock2(2) of a page that cannot be read never returns (seen on Linux 6.18).
        with suppress(UnsupportedError):
            self._stretch(offset, offset + length, write=False, seconds=math.inf)
        try:
            with self._locking:
                lock = self._core.mapping.lock_later if later else self._core.mapping.lock
                lock(offset, length)
        except OSError as error:
            raise self._explain_lock(error, offset, length) from error
        return not later

    def _is_wanted(self, offset: int, end: int) -> bool:
        with self._counting:
            return bool(self._wanted.within(offset, end))

    def _explain_lock(self, error: OSError, offset: int, length: int) -> OSError:
        number = error.errno or errno.ENOMEM
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        unlimited = limit == resource.RLIM_INFINITY or os.geteuid() == 0
        short = os.fstat(self._core.mapping.fd).st_size < offset + length
        if not short and number == errno.ENOMEM and (full := mapping_limit()):
            reason = f"cannot lock {length} bytes at {offset}: {full}"
            return OSError(number, reason, self._core.path)
        # ENOMEM also means that the file was shorter at that moment; it may have grown again.
        if short or (unlimited and number == errno.ENOMEM):
            return self._core.faults.lost(offset, length, 0)
        found = "no limit" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
        reason = (
            f"{os.strerror(number)} while locking {length} bytes at {offset}; RLIMIT_MEMLOCK is "
            f"{found}: raise it, or lock less (CAP_IPC_LOCK lifts it)"
        )
        return OSError(number, reason, self._core.path)

    def _unlock_rest(self, span: tuple[int, int]) -> None:
        offset, end = span
        with self._locking:
            with self._counting:
                free = self._wanted.gaps(offset, min(end, self._core.mapping.size))
            for start, stop in free:
                with suppress(OutOfBoundsError):  # a tail that was cut off is not locked
                    self._core.mapping.unlock(start, stop - start)
