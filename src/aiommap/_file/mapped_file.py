"""The mapped file: one object for reading, writing, flushing and paging one file.

It checks, takes the inline way where that can answer, and delegates everything else.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Self, SupportsIndex, cast, overload

from .._allocation.allocation_mixin import Allocators, RangedVerbs
from .._arguments import Name, check_disjoint, check_range, check_tail, flag
from .._core.file_core import FileCore
from .._core.options import check_policy
from .._core.receipt import WriteReceipt
from .._errors import FlushError, ReceiptError, UnsupportedError
from .._flush.background import BackgroundFlush
from .._flush.flusher import Flusher
from .._flush.requests import Request
from .._flush_policy import FlushPolicy
from .._ipc.file_locks import FileLocks
from .._ipc.sharing_mixin import SharedVerbs
from .._native import PAGE_SIZE
from .._pages.pager import Pager
from .._pages.paging_mixin import PagedVerbs
from .._pages.read_ahead import Chunks
from .._runtime.callbacks import Listeners, Subscription
from .closing import Closer
from .reading import Reader
from .reopening import Retired, Surroundings
from .resizing import Resizer, SizedVerbs
from .statistics import Distribution, FileStatistics, oldest_dirty_seconds, oldest_leases
from .view import View
from .watching import FileWatch, WatchedVerbs
from .writing import Writer

if TYPE_CHECKING:
    from types import TracebackType

    from .._typing import Buffer


class MappedFile(RangedVerbs, PagedVerbs, SizedVerbs, SharedVerbs, WatchedVerbs):
    """A memory-mapped file whose verbs never stall the event loop; made by ``aiommap.open``.

    Verbs that find their data in memory answer on the loop thread within a microsecond or so. They
    are no checkpoints: a task that does nothing else gives way, and sees a cancellation, once in a
    millisecond. All other verbs hop to a worker thread and are checkpoints.

    Pickled, it becomes an ``Opening`` of its path, in mode "r+" if it was writable: ``async with``
    or ``await`` that in the other process. Mode "c" is refused, as its stores would be lost.

    Concurrency: for tasks of the event loop it was opened in. Verbs on disjoint ranges do not wait
        for one another; overlapping writes are applied in the order they were submitted.
    """

    __slots__ = (
        "__weakref__",
        "_allocators",
        "_background",
        "_closer",
        "_core",
        "_flusher",
        "_hub",
        "_leave",
        "_locks",
        "_mapping",
        "_pager",
        "_reader",
        "_resizer",
        "_retired",
        "_watch",
        "_writer",
    )

    def __init__(self, core: FileCore, hub: Surroundings | None = None) -> None:
        if hub is None:
            raise TypeError(f"cannot make a MappedFile of {core!r}: use aiommap.open(path)")
        self._hub = hub
        self._retired = Retired(hub.release)
        self._watch = FileWatch(hub.watcher)
        self._assemble(core, Listeners())

    def _assemble(self, core: FileCore, failed: Listeners[FlushError]) -> None:
        """Make everything that belongs to one core; ``reopen`` does it again for another one."""
        self._core = core
        self._mapping = core.mapping
        self._flusher = Flusher(core, failed)
        self._background = BackgroundFlush(core, self._flusher, self._hub.scheduler)
        self._reader = Reader(core)
        self._writer = Writer(core, self._flusher, self._background)
        self._pager = Pager(core)
        self._resizer = Resizer(core, self._pager)
        allocators = self._allocators = Allocators(core)
        locks = self._locks = FileLocks(core)
        watch, retired, release = self._watch, self._retired, self._hub.release
        watch.core = core

        async def leave() -> None:
            allocators.close()
            await closer.give_up()
            await retired.leave(locks)

        async def let_go(core: FileCore) -> None:
            watch.end()
            allocators.close()
            await locks.aclose()
            await retired.wait()
            await release(core)

        self._leave = leave
        closer = Closer(core, self._flusher, self._background, self._resizer, let_go)
        self._closer = closer
        core.mapping.attach(self._flusher, WriteReceipt)

    async def _prepare(self) -> None:
        """Do what opening was asked to do beyond mapping."""
        options = self._core.options
        if options.advice is not None:
            await self.advise(options.advice)
        if options.lock:
            await self._pager.lock(0, self.size)
        if options.prewarm:
            await self.prewarm()
        if options.huge_pages:
            with suppress(UnsupportedError):
                await self.huge_page_bytes()

    @property
    def path(self) -> str:
        """The absolute path the file was opened at."""
        return self._core.path

    @property
    def mode(self) -> str:
        """The mode it was opened with."""
        return self._core.mode

    @property
    def size(self) -> int:
        """Bytes of the file that verbs can address; what others do to the file does not show."""
        return self._core.mapping.size

    @property
    def capacity(self) -> int:
        """Bytes of reserved address space, in whole pages: ``resize`` up to here moves nothing."""
        return self._core.mapping.capacity

    @property
    def closed(self) -> bool:
        """Whether ``aclose`` was called."""
        return self._core.lifecycle.closing

    @property
    def flush_policy(self) -> FlushPolicy:
        """When it is flushed without being asked; can be replaced while the file is open.

        A new policy holds from now on: what is dirty already counts, and ``FlushPolicy.always()``
        makes durable what is written after it was set.
        """
        return self._core.route.policy

    @flush_policy.setter
    def flush_policy(self, policy: FlushPolicy) -> None:
        self._core.check_usable()
        self._core.workers.check_loop()
        self._background.replace(check_policy(policy, "flush_policy"))

    def on_error(self, callback: Callable[[FlushError], object]) -> Subscription:
        """Have a function, sync or async, told when a flush fails, also one nobody waits for.

        It is called on the loop, at most once, as failures latch: see ``FlushError``. Whoever
        writes, flushes, waits for a receipt or closes is told of the failure anyway.

        Returns:
            A subscription; its ``cancel`` ends it.
        """
        return self._flusher.failed.add(callback)

    def __len__(self) -> int:
        return self.size

    async def read(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read bytes.

        Args:
            offset: first byte, from the start of the file; 0 <= offset <= size.
            length: number of bytes; offset + length <= size.
        Returns:
            Exactly ``length`` bytes.
        Raises:
            OutOfBoundsError: if [offset, offset + length) leaves the file.
            MappingFaultError: if the file was truncated below the range, or a page is unreadable.
            anyio.ClosedResourceError: if the file is closed.
        Cancellation: a read under way in a worker is left behind; it harms nothing.
        Source: preadv2(2) with RWF_NOWAIT, from 32 KiB on mincore(2) and a copy; else pread(2).
        """
        data = self._mapping.read_inline(offset, length)  # type: ignore[arg-type]
        if data is None:
            self._core.check_loop()
            data = await self._reader.read(offset, length)  # type: ignore[arg-type]
        return data

    async def read_into(self, offset: SupportsIndex, buffer: Buffer) -> int:
        """Fill a buffer, all of it.

        Args:
            offset: first byte, from the start of the file.
            buffer: any writable C-contiguous memory but Python objects, whatever its elements; its
                size in bytes says how much is read.
        Returns:
            The size of the buffer in bytes.
        Raises:
            OutOfBoundsError: if the range leaves the file; the buffer is untouched.
            MappingFaultError: as ``read``; the buffer then holds ``copied`` good bytes.
            TypeError: if the buffer is read-only, no buffer, or one of Python objects.
            BufferError: if it is not C-contiguous.
        Cancellation: waits for a worker that has begun, since it writes into the buffer.
        """
        done = self._mapping.read_into_inline(offset, buffer)  # type: ignore[arg-type]
        if done is None:
            self._core.check_loop()
            done = await self._reader.read_into(offset, buffer)  # type: ignore[arg-type]
        return done

    def read_nowait(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read bytes that are in memory, without giving way to the loop.

        Raises:
            anyio.WouldBlock: if a page of the range is not in memory, or this cannot be told
                (file systems without NOWAIT reads).
            OutOfBoundsError, anyio.ClosedResourceError: as ``read``.
        """
        return self._reader.read_nowait(offset, length)  # type: ignore[arg-type]

    async def read_many(self, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        """Read several ranges, in one hop to a worker at most.

        Args:
            ranges: (offset, length) pairs, as for ``read``.
        Returns:
            One bytes object a pair, in the order of the pairs.
        Raises:
            As ``read``; every range is checked before any is read.
        Cancellation: as ``read``.
        """
        self._core.check_loop()
        return await self._reader.read_many(ranges)

    async def write(self, offset: SupportsIndex, data: Buffer) -> WriteReceipt:
        """Write bytes within the file.

        When it returns, the bytes are visible to every mapper and reader of the file (in mode
        "c": to this object only). How durable they are is the flush policy's and the receipt's
        matter.

        Args:
            offset: first byte, from the start of the file.
            data: any C-contiguous memory but Python objects, whatever its elements; a view of this
                same file must not overlap the range.
        Raises:
            OutOfBoundsError: if the range leaves the file; use ``resize`` first.
            AccessModeError: in mode "r".
            FlushError: if a flush failed, now or earlier.
            MappingFaultError: if the file was truncated below the range.
            TypeError: if the data is no buffer, or one of Python objects.
            BufferError: if it is not C-contiguous.
            OSError: ENOSPC if the disk is full behind a sparse file. Nothing was stored then, or
                the first pages, if only later ones had no blocks.
        Cancellation: a write not yet begun is withdrawn and never applied; one that has begun is
            applied whole before the cancellation is delivered.
        Durability: visible; durable on return under ``FlushPolicy.always()``.
        """
        receipt = self._mapping.write_inline(offset, data)  # type: ignore[arg-type]
        if receipt is None:
            if not self._core.route.durable:  # the commit queue looks at the loop itself
                self._core.check_loop()
            return await self._writer.write(offset, data)  # type: ignore[arg-type]
        return cast("WriteReceipt", receipt)

    async def write_many(self, items: Iterable[tuple[int, Buffer]]) -> WriteReceipt:
        """Write several pieces in order, in one hop to a worker at most.

        Args:
            items: (offset, data) pairs, as for ``write``.
        Returns:
            One receipt for all: it spans from the lowest offset to the highest end.
        Raises:
            As ``write``; every range is checked before any is written. A ``resize`` under way
                that cuts later items off may let the first ones be stored.
        Cancellation: withdrawn whole if nothing was stored yet; once a part was, the rest is
            applied before the cancellation is delivered.
        Durability: as ``write``.
        """
        self._core.check_loop()
        return await self._writer.write_many(items)

    async def flush(self) -> None:
        """Make everything written so far durable.

        Covers data, size, and for a new file its directory entry. Returns at once when nothing
        was written since the last flush, and in modes "r" and "c", where there is nothing to do.

        Raises:
            FlushError: if this or an earlier flush failed, or if what was flushed is no longer
                part of a file that has a name. Latches: see ``FlushError``.
        Cancellation: a flush that has begun is waited out.
        Durability: durable, data and metadata, if the device honours flushes.
        Source: fdatasync(2), or fsync(2) after a change of size; fsync(2) of the directory.
        """
        self._core.check_usable()
        if self._core.shared_writable:
            await self._flusher.submit(Request(0, self.size))

    @overload
    async def flush_range(self, offset: WriteReceipt, /) -> None: ...
    @overload
    async def flush_range(self, offset: SupportsIndex, length: SupportsIndex) -> None: ...
    async def flush_range(
        self, offset: SupportsIndex | WriteReceipt, length: SupportsIndex | None = None
    ) -> None:
        """Make a range, or the bytes of one receipt, durable.

        The range is rounded outward to pages. Others stay dirty, unless the size was changed.

        Args:
            offset: a receipt of this file; or the first byte, from the start of the file.
            length: number of bytes, if the offset is no receipt.
        Raises:
            ReceiptError: if the receipt is another file's.
            OutOfBoundsError: if the range leaves the file.
            FlushError: as ``flush``.
        Cancellation: as ``flush``.
        Durability: durable for the range; metadata as far as reading the range back needs it.
        Source: msync(2) with MS_SYNC; as ``flush`` where nothing else is dirty.
        """
        self._core.check_usable()
        if isinstance(offset, WriteReceipt):
            await self._flush_receipt(offset)
            return
        if length is None:
            raise TypeError("flush_range takes a receipt, or an offset and a length")
        start, count = check_range(offset, length, self.size)
        if self._core.shared_writable:
            await self._flusher.submit(Request(start, start + count))

    async def _flush_receipt(self, receipt: WriteReceipt) -> None:
        if receipt._owner is not self._flusher:  # noqa: SLF001  the two are one mechanism
            raise ReceiptError(f"{receipt!r} is not a receipt of {self.path}: ask its own file")
        if self._core.shared_writable:
            await receipt.wait_durable()

    def view(
        self,
        offset: SupportsIndex = 0,
        length: SupportsIndex | None = None,
        *,
        growable: bool = False,
    ) -> View:
        """Make a view: a range with verbs of its own and, as ``memory``, its bytes uncopied.

        A growable view reaches up to ``capacity``. Touching its ``memory`` beyond the end of the
        file makes the file longer, by as much again as it has, at least 64 KiB and at most 512 KiB
        (64 MiB if sparse); ``size`` follows. ``aclose`` cuts off what was not used: bytes are used
        up to the last size that ``resize`` or ``ensure`` set, or verb wrote, and beyond that up to
        the end of the last page that is not all zeros. So ``resize`` to the exact length before
        closing.

        Args:
            offset: first byte, from the start of the file.
            length: number of bytes; None means to the end, of the capacity if growable.
            growable: let stores make the file longer; see also ``ensure``.
        Raises:
            OutOfBoundsError: if the range leaves the file, or the capacity if growable; or if
                growable and the file was opened without capacity beyond its size.
            AccessModeError: if growable in modes "r" and "c".
            AlignmentError: if growable, and the file does not end at a page boundary: ``ensure``
                makes it do so.
        """
        self._core.check_usable()
        self._core.check_mapped()
        if not flag(growable, "growable"):
            span = check_tail(offset, length, self.size, self._core.shared_writable)
            return View(self, self._core, *span)
        self._core.check_growable("grow")
        self._resizer.check_room(self._core.options.capacity)
        start, count = check_tail(offset, length, self.capacity)
        make = partial(View, self, self._core, start, count, growable=True)
        return self._resizer.with_whole_pages(make)

    def carve(self, parts: Mapping[Name, tuple[SupportsIndex, SupportsIndex]]) -> dict[Name, View]:
        """Make named views of disjoint parts of the file, all of them or none.

        Args:
            parts: (offset, length) by name, in any order, with gaps or without. Parts may begin
                and end at any byte; ``flush``, ``prewarm`` and the like round to pages.
        Returns:
            One view a part, under the same names in the same order.
        Raises:
            OutOfBoundsError: if a part leaves the file.
            OverlapError: if two parts share a byte. Its message names both.
            TypeError: if a part is no pair of integers. Its message names it.
        """
        self._core.check_usable()
        checked = check_disjoint(parts, self.size)
        return {name: View(self, self._core, *part) for name, part in checked.items()}

    def chunks(self, size: SupportsIndex) -> AsyncIterator[bytes]:
        """Iterate over the file in pieces, the next being read in while you hold this one.

        Args:
            size: bytes a chunk; at least 1. The last chunk is shorter where it does not divide.
        Raises:
            ValueError: if the size is not positive.
            As ``read``, from the iteration.
        """
        self._core.check_usable()
        return Chunks(self, self._core, size, 0, lambda: self.size)

    def pages(self) -> AsyncIterator[bytes]:
        """Iterate over the file in pieces of one page of memory (``aiommap.PAGE_SIZE`` bytes)."""
        return self.chunks(PAGE_SIZE)

    def statistics(self) -> FileStatistics:
        """Count what the file has done so far; also after it was closed."""
        core, mapping, flusher = self._core, self._core.mapping, self._flusher
        poisoned = mapping.first_bad is not None
        return FileStatistics(
            inline_reads=mapping.inline_reads,
            offloaded_reads=self._reader.offloaded,
            fell_back_reads=mapping.fell_back_reads,
            inline_writes=mapping.inline_writes_done,
            offloaded_writes=core.own.offloaded_writes,
            fell_back_writes=mapping.fell_back_writes,
            dirty_bytes=mapping.dirty_bytes(),
            oldest_dirty_seconds=oldest_dirty_seconds(mapping),
            flushes=flusher.writeback.seconds.count,
            flush_requests=int(flusher.writeback.groups.total),
            flushed_bytes=flusher.writeback.flushed_bytes,
            flush_group=Distribution.of(flusher.writeback.groups),
            flush_seconds=Distribution.of(flusher.writeback.seconds),
            faults=mapping.faults + mapping.foreign_faults,
            huge_page_bytes=self._pager.huge_page_bytes,
            leases=mapping.lease_count,
            leased=oldest_leases(mapping.leases),
            flush_failed=core.unsynced.failure is not None or (poisoned and core.shared_writable),
            poisoned=poisoned,
        )

    async def aclose(self) -> None:
        """Wait for verbs under way, flush unless the policy is ``never()``, and close.

        The file is closed also when the flush fails. Views keep their pages. A second call waits
        for the first, does nothing, and raises what that one did.

        Raises:
            FlushError: if the flush fails, or an earlier one did.
            MappingFaultError: if a load or store through a view met a page that the file lost.
        Cancellation: waited out; the file is closed before the cancellation is delivered.
        Durability: as ``flush``, or none under ``FlushPolicy.never()``.
        """
        await self._closer.aclose()

    async def __aenter__(self) -> Self:
        self._core.check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._closer.leave(error)

    def __del__(self) -> None:
        # Missing when __init__ failed.
        closer = getattr(self, "_closer", None)
        if closer is not None and not self.closed and not self._mapping.forked:
            warnings.warn(
                f"{self!r} was never closed: nothing was flushed; use async with, or aclose()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    # What pickling makes of it stands beside ``open``, in ``_hub/hub``.
    def __copy__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be copied: share it, or open its path again")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size} bytes"
        return f"<MappedFile {self.path} mode={self.mode!r} {state}>"
