"""The mapped file: one object for reading, writing, flushing and paging one file.

``range_verbs`` and ``read_verbs`` have the verbs that files share with views, and document them. A
verb checks its arguments, answers inline where it can, and leaves the rest to the ``OpenFile``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Self, SupportsIndex

import anyio

from .._allocation.allocator import RangeAllocator
from .._allocation.table import AllocatedRange
from .._arguments import (
    byte_count,
    check_range,
    check_tail,
    flag,
    integer,
    time_limit,
)
from .._core.file_core import FileCore
from .._core.options import check_policy, check_volatile_policy
from .._core.receipt import WriteReceipt
from .._errors import AccessModeError, FlushError, OutOfBoundsError, UnsupportedError
from .._flush.requests import Request
from .._flush_policy import FlushPolicy
from .._ipc.async_lock import LockableFile
from .._ipc.atomics import AtomicU32
from .._ipc.file_locks import FileLocks, LockRequest
from .._native import export_bytes
from .._runtime.blocks import Block
from .._runtime.callbacks import Listeners, Subscription
from .._watch.changes import Change
from .._watch.subscriptions import DEFAULT_BUFFER, Changes, ErrorCallback, call_on_change
from .._watch.watched_path import TICK_NS
from .open_file import HubServices, OpenFile
from .range_verbs import RangeVerbs
from .statistics import (
    Distribution,
    FileStatistics,
    oldest_dirty_seconds,
    oldest_leases,
)
from .view import Carving, View
from .watching import FileWatch

if TYPE_CHECKING:
    from types import TracebackType

    from .._typing import Buffer


class MappedFile(Carving, RangeVerbs, LockableFile):
    """A memory-mapped file whose verbs keep the disk off the loop; made by ``aiommap.open``.

    A verb that finds its data in memory answers on the loop thread within a microsecond or so. It
    is not a checkpoint: a task that calls only such verbs gives way, and sees a cancellation, once
    in a millisecond. Every other verb waits for another thread and is a checkpoint.

    Pickling a file gives an ``Opening`` of its path: use ``async with`` or ``await`` on that in the
    other process. Modes "w+" and "x+" become "r+", because the file exists by then. A file in mode
    "c" cannot be pickled, because its stores would be lost.

    Concurrency: for tasks of the event loop in which the file was opened. Verbs on disjoint ranges
        do not wait for one another. Overlapping writes are applied in the order in which they were
        submitted.
    """

    __slots__ = ("__weakref__", "_hub", "_mapping", "_moving")

    def __init__(self, core: FileCore, hub: HubServices | None = None) -> None:
        if hub is None:
            raise TypeError(f"cannot make a MappedFile of {core!r}: use aiommap.open(path)")
        self._hub = hub
        #: Held while ``reopen`` moves the file; made when first needed, as few files are moved.
        self._moving: anyio.Lock | None = None
        self._use(OpenFile(core, hub, Listeners(), FileWatch(hub.watcher)))

    def _use(self, opened: OpenFile) -> None:
        """Send verbs to this open file from now on."""
        super().__init__(opened)
        self._mapping = opened.core.mapping

    async def _prepare(self) -> None:
        """Apply the options of opening that need the mapping."""
        options = self._core.options
        if options.advice is not None:
            await self.advise(options.advice)
        if options.lock:
            await self._open.pager.lock(0, self.size)
        if options.prewarm:
            await self.prewarm()
        if options.huge_pages:
            with suppress(UnsupportedError):
                await self.huge_page_bytes()

    @property
    def path(self) -> str | None:
        """The absolute path at which the file was opened.

        For a file that was opened by a descriptor: the path that the system knew for it then, or
        None if it had no path (a removed file, or anonymous memory).
        """
        return self._core.path if self._core.options.has_path else None

    def fileno(self) -> int:
        """Return the descriptor of the file, for calls that take one.

        You can pass it to other processes (``socket.send_fds``, ``pass_fds``), which may open it
        by ``aiommap.open(fd)``; to ``os.sendfile``, ``os.pread`` and others that take an offset;
        and to fcntl(2). The library moves its file position at any time: for a position of your
        own, open ``/proc/self/fd/N``, where N is this number. ``aclose`` closes the descriptor.
        After a ``reopen`` that moved, the file has another descriptor.

        Raises:
            anyio.ClosedResourceError: if the file is closed.
            ForkedError: if another process opened it.
        """
        self._core.check_open()
        return self._mapping.fd

    @property
    def mode(self) -> str:
        """The mode with which the file was opened."""
        return self._core.mode

    @property
    def size(self) -> int:
        """Bytes of the file that verbs can address; ``refresh`` takes over a size set by others."""
        return self._mapping.size

    @property
    def capacity(self) -> int:
        """Bytes of reserved address space, in whole pages; ``resize`` up to here moves nothing."""
        return self._mapping.capacity

    @property
    def closed(self) -> bool:
        """Whether ``aclose`` was called."""
        return self._core.lifecycle.closing

    @property
    def flush_policy(self) -> FlushPolicy:
        """When background flushes are due; can be replaced while the file is open.

        A new policy takes effect at once. Bytes that are dirty already count toward its limits.
        ``FlushPolicy.always()`` makes durable the writes that begin after it was set.
        """
        return self._core.route.policy

    @flush_policy.setter
    def flush_policy(self, policy: FlushPolicy) -> None:
        self._core.check_usable()
        self._core.workers.check_loop()
        checked = check_policy(policy, "flush_policy")
        if self._core.volatile:
            check_volatile_policy(checked, self._core.path)
        self._open.background.replace(checked)

    def on_error(self, callback: Callable[[FlushError], object]) -> Subscription:
        """Register a callback for flush failures, including those of background flushes.

        The callback, sync or async, runs on the loop. It runs at most once, because a failure
        latches: see ``FlushError``. Writing, flushing, waiting for a receipt and closing raise the
        failure as well.

        Returns:
            A subscription; its ``cancel`` unregisters the callback.
        """
        return self._open.failed.add(callback)

    @property
    def orphaned(self) -> bool:
        """Whether the path was last seen to name another file, or none.

        The watcher finds this out while the path is watched, and so does ``reopen``. You can read,
        write and flush an orphan for as long as the file has any name: a renamed file has one. Once
        the file has no name, flushing it raises ``FlushError``, because its bytes are gone at
        close.
        """
        return self._core.orphaned

    def __len__(self) -> int:
        return self._mapping.size

    def _place(self, offset: SupportsIndex, length: SupportsIndex) -> tuple[int, int]:
        return check_range(offset, length, self.size, self._core.shared_writable)

    def _places(self, ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
        return ranges  # offsets in the file already; the reader checks them

    def _placed_items(self, items: Iterable[tuple[int, Buffer]]) -> Iterable[tuple[int, Buffer]]:
        return items

    def _tail(self, offset: SupportsIndex, length: SupportsIndex | None) -> tuple[int, int]:
        self._check()
        return check_tail(offset, length, self.size)

    async def read(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        data = self._mapping.read_inline(offset, length)  # type: ignore[arg-type]
        if data is None:
            self._core.check_loop()
            data = await self._open.reader.read(offset, length)  # type: ignore[arg-type]
        return data

    async def read_into(self, offset: SupportsIndex, buffer: Buffer) -> int:
        done = self._mapping.read_into_inline(offset, buffer)  # type: ignore[arg-type]
        if done is None:
            self._core.check_loop()
            done = await self._open.reader.read_into(offset, buffer)  # type: ignore[arg-type]
        return done

    async def write(self, offset: SupportsIndex, data: Buffer) -> WriteReceipt:
        receipt = self._mapping.write_inline(offset, data)  # type: ignore[arg-type]
        if receipt is None:
            return await self._open.writer.write(offset, data)  # type: ignore[arg-type]
        return receipt  # type: ignore[return-value]

    async def append(self, data: Buffer) -> WriteReceipt:
        """Write bytes behind the end of the file, which makes it longer by exactly these bytes.

        Any number of tasks may append at once. Each append gets a range of its own, in the order
        in which the tasks asked, and appends that wait at the same time share a hop.
        ``receipt.offset`` says where the range begins: at the end that the file has at that
        moment, whoever made it so long. Readers see nothing behind the last append, neither
        reserved room nor zeros, unless there is a growable view or ``ensure`` was called.

        In mode "a+" any number of processes may append at once, to a file on a local file system:
        each append is one write(2), like that of any program that opens the file with O_APPEND.
        ``size`` includes what other processes appended only after our next append, or after
        ``refresh``. In the other modes this process must be the only one that changes the length.

        Args:
            data: any C-contiguous memory but Python objects, whatever its elements.
        Raises:
            AccessModeError: in modes "r" and "c".
            FlushError: if a flush failed, now or earlier; or if others cut off bytes that were
                written here and not flushed, which latches.
            OSError: ENOSPC if the disk is full, EFBIG beyond RLIMIT_FSIZE; the file is then as it
                was. In mode "a+" the first bytes may be left in it, if the disk had room for them:
                the message says how many and where. EBUSY, except in mode "a+", if others change
                the length all the time.
            OutOfBoundsError: beyond 2 GiB less a page in mode "a+", the limit of write(2).
            TypeError, BufferError: as ``write``.
        Cancellation: as ``write``.
        Durability: as ``write``; the size is durable with the bytes.
        Source: pwritev(2); in mode "a+" writev(2) with O_APPEND.
        """
        self._core.check_loop()
        return await self._open.appender.append(data)

    async def flush(self) -> None:
        """Make everything written so far durable.

        This covers the data, the size and, for a new file, its directory entry. It returns at once
        if nothing was written since the last flush, and in modes "r" and "c".

        Raises:
            FlushError: if this or an earlier flush failed, or if the flushed bytes are not part of
                a file that has a name. It latches: see ``FlushError``.
        Cancellation: waits for a flush that has begun.
        Durability: durable, data and metadata, if the device honours flushes.
        Source: fdatasync(2), or fsync(2) after a change of size; fsync(2) of the directory.
        """
        self._core.check_usable()
        if self._core.flushable:
            await self._open.flusher.submit(Request(0, self.size))

    async def resize(self, new_size: SupportsIndex) -> None:
        """Change the size of the file.

        Up to ``capacity`` nothing moves. Beyond it the file is mapped again, and views made before
        keep the old mapping of the same bytes. If a part is cut off, views of it read zeros.

        If several tasks resize at once, the last call decides the size. So a task that only needs
        room calls ``ensure``: with ``resize`` it might cut off what another task wrote. To write
        at the end, use ``append``.

        Args:
            new_size: the new size, in bytes.
        Raises:
            AccessModeError: in modes "r" and "c".
            ValueError: if the size is negative, or more than a process can map.
            FlushError: if a flush failed earlier; or if others cut off bytes that were written
                here and not flushed, which latches.
            OSError: ENOSPC if the disk is full; the file then has its old size.
        Cancellation: waits for a change that has begun.
        Durability: visible; the next ``flush``, of any range, makes the size durable.
        """
        self._core.check_growable("resize")
        size = byte_count(new_size, "new_size")
        await self._open.change_size(partial(self._open.resizer.resize, size))

    async def ensure(self, size: SupportsIndex) -> None:
        """Make the file at least ``size`` bytes long, with blocks reserved unless sparse.

        Use it to grow a file from many tasks: it never makes the file shorter, and nothing moves.
        Use it also before a system call (``recv_into``, ``readinto``) stores beyond the end through
        a growable view: the kernel does not grow the file for those, and they fail with EFAULT.
        From then on the file ends at a page boundary while it is open, except in mode "a+".

        Args:
            size: bytes; at most ``capacity``.
        Raises:
            AccessModeError: in modes "r" and "c".
            OutOfBoundsError: if the size is more than ``capacity``.
            FlushError: as ``resize``.
            OSError: ENOSPC if the disk is full; the file then has its old size.
        Cancellation: waits for a change that has begun.
        Durability: as ``resize``.
        """
        self._core.check_growable("grow")
        wanted, _ = check_range(size, 0, self.capacity)
        await self._open.change_size(partial(self._open.resizer.ensure, wanted))

    async def punch_hole(self, offset: SupportsIndex, length: SupportsIndex) -> None:
        """Give the blocks of a range back to the file system; the bytes then read as zeros.

        Args:
            offset: first byte, from the start of the file.
            length: number of bytes.
        Raises:
            AccessModeError: in modes "r" and "c".
            OutOfBoundsError: if the range leaves the file.
            UnsupportedError: if the file system has no holes.
        Cancellation: waits for a hole that is being punched.
        Durability: visible; the next ``flush``, of any range, makes it durable.
        Source: fallocate(2) with FALLOC_FL_PUNCH_HOLE.
        """
        self._core.check_writable("punch a hole in", 'open it with "r+"')
        if self._core.mode == "c":
            raise AccessModeError("punch a hole in", "c", 'private changes are not files: use "r+"')
        start, count = check_range(offset, length, self.size)
        with self._core.lifecycle.activity():
            await self._open.writer.wait_stored()
            await self._open.flusher.change(partial(self._open.resizer.punch_hole, start, count))

    def view(
        self,
        offset: SupportsIndex = 0,
        length: SupportsIndex | None = None,
        *,
        growable: bool = False,
    ) -> View:
        """Make a view: a range with verbs of its own and, as ``memory``, its bytes without a copy.

        A growable view reaches up to ``capacity``. Touching its ``memory`` beyond the end makes the
        file longer: it doubles its size, but adds at least 64 KiB and at most 512 KiB (64 MiB if
        sparse). ``size`` follows. ``aclose`` cuts off the bytes that nobody used. It keeps all
        bytes up to the size that ``resize`` or ``ensure`` set, or a verb wrote; beyond that, it
        keeps those up to the end of the last page that is not all zeros. So ``resize`` to the exact
        length before closing.

        Args:
            offset: first byte, from the start of the file.
            length: number of bytes; None means to the end of the file, or of the capacity if
                growable.
            growable: let stores make the file longer; see also ``ensure``.
        Raises:
            OutOfBoundsError: if the range leaves the file, or the capacity if growable; or if
                growable and the file was opened without capacity beyond its size.
            AccessModeError: if growable in modes "r", "c" and "a+".
            AlignmentError: if growable, and the file does not end at a page boundary; call
                ``ensure`` first.
        """
        self._core.check_usable()
        self._core.check_mapped()
        if not flag(growable, "growable"):
            span = check_tail(offset, length, self.size, self._core.shared_writable)
            return self._part(*span)
        self._core.check_growable("grow")
        if self._core.options.mode.appends:
            remedy = 'others append where its stores would be: use "r+", or append'
            raise AccessModeError("make a growable view of", "a+", remedy)
        self._open.resizer.check_room(self._core.options.capacity)
        start, count = check_tail(offset, length, self.capacity)
        make = partial(View, self._open, start, count, growable=True, keeps=self)
        return self._open.resizer.with_whole_pages(make)

    def _part(self, offset: int, length: int) -> View:
        return View(self._open, offset, length, keeps=self)

    def _memory_of(self, offset: int, length: int) -> memoryview:
        return self._part(offset, length).memory

    def allocator(
        self,
        start: SupportsIndex | None = None,
        alignment: SupportsIndex | None = None,
        *,
        end: SupportsIndex | None = None,
        state: Buffer | None = None,
    ) -> RangeAllocator:
        """Make an allocator for a span of the file.

        Args:
            start: first byte of the span, from the start of the file; the whole span counts as
                free. It may be left out, and is then 0, for the first allocator of a file opened
                with "w+" or "x+". Any other file may hold ranges that were handed out before, so
                the caller has to say where free bytes begin.
            alignment: offsets of ranges are multiples of this; a power of two, often
                ``aiommap.PAGE_SIZE``. None means 1.
            end: first byte behind the span; None means the size of the file at this moment. The
                bytes by which the file grows later can have an allocator of their own.
            state: bytes that ``RangeAllocator.state`` returned, instead of the other three.
        Raises:
            ValueError: if neither start nor state is given where one is needed, if both are given,
                or if the state is damaged or belongs to a longer file.
            OutOfBoundsError: if the span leaves the file.
            OverlapError: if the span shares bytes with that of another open allocator of the file.
        """
        return self._open.allocators.make(start, alignment, end, state)

    async def write_range(self, allocated: AllocatedRange, data: Buffer) -> WriteReceipt:
        """Write a whole allocated range; otherwise as ``write``.

        Args:
            allocated: a valid range of this file. It has to stay valid until this returns.
            data: any C-contiguous buffer of exactly ``allocated.length`` bytes.
        Returns:
            The receipt for exactly the bytes of the range.
        Raises:
            ReceiptError: if the range was freed or split, or belongs to another file. Nothing was
                written.
            OutOfBoundsError: if the data and the range have different lengths, or if the file was
                cut off below the end of the range. Nothing was written.
            As ``write``.
        Cancellation: as ``write``.
        """
        self._core.check_writable("write to")
        offset, length = self._open.allocators.locate(allocated)
        view = export_bytes(data)
        count = len(view)
        if count != length:
            raise OutOfBoundsError(
                offset,
                count,
                length,
                f"{count} bytes for {allocated!r}: exactly {length} are needed",
            )
        return await self.write(offset, view)

    async def read_range(self, allocated: AllocatedRange) -> bytes:
        """Read a whole allocated range; otherwise as ``read``.

        Args:
            allocated: a valid range of this file.
        Raises:
            ReceiptError: if the range was freed or split, or belongs to another file.
            As ``read``.
        Cancellation: as ``read``.
        """
        self._core.check_usable()
        return await self.read(*self._open.allocators.locate(allocated))

    def file_lock(
        self,
        offset: SupportsIndex,
        length: SupportsIndex,
        shared: bool = False,
        timeout: float | None = None,
    ) -> AbstractAsyncContextManager[None]:
        """Lock a range for the length of the block, against tasks and processes that lock it too.

        The lock keeps nobody from reading or writing, only from locking. It ends when its process
        dies. It also excludes programs that lock the same bytes by F_OFD_SETLK, or by the older
        F_SETLK, of fcntl(2). It does not exclude flock(2), which is another kind of lock.

        Args:
            offset: first byte, from the start of the file.
            length: number of bytes.
            shared: let others lock the range at the same time, if they share it too.
            timeout: how long to wait, in seconds; None means no limit, and 0 tries only once.
        Raises:
            TimeoutError: if others still hold a part of the range when the timeout ends.
            RuntimeError: without a timeout, if this same task holds a part of the range already.
            OutOfBoundsError: if the range leaves the file.
            AccessModeError: in modes "r" and "c" unless shared.
            UnsupportedError: if the system has no such locks.
            anyio.ClosedResourceError: if the file is closed, or ``reopen`` moved it to another one,
                before or while this waits.
        Cancellation: at any time; nothing stays locked.
        Concurrency: tasks of one file get overlapping ranges in the order in which they asked. The
            lock is not reentrant. ``reopen`` inside the block leaves bytes of the old file locked,
            and locks none of the new one. While another process has the range, this asks the kernel
            again every 20 ms at the latest; ``AsyncLock`` is quicker.
        Source: fcntl(2), F_OFD_SETLK.
        """

        async def lock() -> tuple[FileLocks, LockRequest]:
            core = self._core
            start, count = self._range(offset, integer(length, "length"))
            limit = time_limit(timeout)
            if not flag(shared, "shared") and not core.shared_writable:
                remedy = 'use shared=True, or open it with "r+"'
                raise AccessModeError("lock bytes for oneself in", core.mode, remedy)
            locks = self._open.locks  # at hand for unlocking: a reopen replaces self._open
            return locks, await locks.acquire(start, count, shared=shared, timeout=limit)

        async def unlock(locked: tuple[FileLocks, LockRequest]) -> None:
            locks, request = locked
            await locks.release(request)

        return Block(lock, unlock)

    def _lock_parts(
        self, offset: SupportsIndex, length: int
    ) -> tuple[FileCore, FileLocks, AtomicU32, AtomicU32]:
        start, _ = self._range(offset, length)
        return self._core, self._open.locks, self.atomic_u32(start), self.atomic_u32(start + 4)

    async def huge_page_bytes(self) -> int:
        """Count the bytes of the file that are mapped by huge pages at this moment.

        Opening with ``huge_pages=True`` asks the kernel for huge pages once, and counts those that
        it gave. Whether it gives any depends on the file system, the mount options and free memory.
        It may also do so later, in the background. ``statistics()`` has the last count.

        Raises:
            UnsupportedError: if the kernel does not tell.
        Cancellation: waits for a count that has begun.
        Source: proc_pid_smaps(5); AnonHugePages, ShmemPmdMapped and FilePmdMapped.
        """
        self._core.check_usable()
        return await self._open.pager.count_huge_pages()

    def watch(self, *, buffer: int = DEFAULT_BUFFER, poll_interval: float | None = None) -> Changes:
        """Watch the path for changes by others: ``async with f.watch() as changes: async for ...``.

        Watching has begun when the block begins. The writes, flushes and resizes of this hub are
        not reported. If the path already names another file than the mapped one, or a file of
        another size, this is the first change. See docs/watching for the limits.

        Args:
            buffer: how many changes may wait to be fetched; more are merged.
            poll_interval: seconds between polls for changes of which the kernel tells nobody, such
                as stores of another process through a mapping. By default 0.25, or more for many
                files.
        Raises:
            ValueError: if an argument is not positive.
            anyio.ClosedResourceError: if the file is closed; on entering, also if the hub is.
        Cancellation: ends the subscription and affects nothing else.
        Concurrency: any number of subscriptions; each gets every change, and none waits for
            another.
        Source: inotify(7), stat(2).
        """
        self._core.check_usable()
        self._core.check_path("watch")
        return self._open.watched.subscribe(self._core, buffer=buffer, poll_interval=poll_interval)

    def on_change(
        self,
        callback: Callable[[Change], object],
        *,
        on_error: ErrorCallback | None = None,
        buffer: int = DEFAULT_BUFFER,
        poll_interval: float | None = None,
    ) -> Subscription:
        """Call a function, sync or async, on the loop with each change by others.

        One call ends before the next begins; meanwhile changes are buffered as for ``watch``.

        Args:
            callback: a function of one argument, the change.
            on_error: called with the exception that the callback raised, and the change. If
                watching could not begin, it gets that exception, and None instead of a change. By
                default the exception is logged.
            buffer, poll_interval: as for ``watch``.
        Returns:
            A subscription; its ``cancel`` ends the calls.
        Raises:
            ValueError, TypeError: if an argument is not valid.
            anyio.ClosedResourceError: if the file is closed.
        """
        self._core.check_usable()
        self._core.check_path("watch")
        called = time.time_ns()
        if not self._core.mapping.sequence:  # after a write of ours, this would report it
            called -= TICK_NS
        changes = self._open.watched.subscribe(
            self._core, buffer=buffer, poll_interval=poll_interval, called_ns=called
        )
        return call_on_change(changes, callback, on_error)

    async def refresh(self) -> None:
        """Take over the size that others gave to the file; ``size`` is then its true size.

        You can then read and write what others appended. Up to ``capacity`` nothing moves; beyond
        it the file is mapped again, as by ``resize``. If others cut the file off, ``size`` shrinks,
        and views of the lost part read zeros. If overlayfs has copied the file up, the copy is
        mapped instead, as by ``reopen``.

        Raises:
            AccessModeError: in mode "c", whose size is fixed.
            FlushError: if others cut off bytes that were written here and not flushed; it latches.
            UnsupportedError: if overlayfs has copied the file up, and the path does not lead to the
                copy.
        Cancellation: waits for a change that has begun.
        Durability: none.
        """
        core = self._core
        core.check_usable()
        if core.mode == "c":
            raise AccessModeError("refresh", "c", "a private file has a fixed size: open it again")
        if not core.mapping.current:
            await self._map_copy()
            return
        await self._open.change_size(self._open.resizer.follow, ours=False)

    async def reopen(self, *, discard: bool = False) -> None:
        """Move to the file that the path names by now; if it is the same file, only ``refresh``.

        In mode "a+" this creates the file if there is none: rename a log file, then ``reopen``.

        A poisoned file gets a new mapping and is usable again, even if the path still names the
        same file. So does a file that overlayfs has copied up.

        Verbs that have begun finish on the old file. Views, atomics and allocators that were made
        before belong to the old file: make new ones. The memory of an old view goes on showing the
        old file, and its verbs raise ``anyio.ClosedResourceError``. Locks belong to the old file,
        too. A task inside a ``file_lock`` or an ``AsyncLock`` stays inside until its block ends. A
        task that waits for a lock or a word gets ``anyio.ClosedResourceError``. Make each
        ``AsyncLock`` again. Subscriptions and ``on_error`` go on. Statistics, advice and locked
        pages begin anew.

        Args:
            discard: give up the bytes that were written to the old file and are not durable, also
                if a flush of it failed before. Their receipts never become durable.
        Raises:
            FlushError: if bytes written to the old file cannot be made durable, because it has no
                name left. Nothing is lost yet: the old file stays until ``discard=True``. Not
                raised under ``FlushPolicy.never()``, which gives such bytes up.
            AccessModeError: in mode "c" if there are private stores, which would be lost.
            MappingFaultError: if the file is poisoned and was, or could be, stored to. Its stores
                would be lost: pass ``discard=True``.
            FileNotFoundError, PermissionError, UnsupportedError: as ``aiommap.open``; the old
                file stays.
        Cancellation: until the move, the old file stays; after it there is nothing to wait for.
        Durability: what was written before is durable, or discarded.
        """
        flag(discard, "discard")
        self._core.check_open()
        self._core.check_path("reopen")
        async with self._turn_to_move():
            old = self._core
            old.check_open()
            new = await self._hub.open_again(old)
            if new is not None:
                await self._move_to(new, discard=discard)
                return
        old.note_path(old.identity)
        if old.mode != "c":
            await self.refresh()

    async def _map_copy(self) -> None:
        """Move to the copy that overlayfs has made of this same file."""
        async with self._turn_to_move():
            old = self._core
            new = await self._hub.open_again(old)
            if new is not None and new.identity == old.identity:
                await self._move_to(new, discard=False)
            elif new is not None:
                await self._hub.release(new)
                old.check_mapped()

    def _turn_to_move(self) -> anyio.Lock:
        if self._moving is None:
            self._moving = anyio.Lock()
        return self._moving

    async def _move_to(self, new: FileCore, *, discard: bool) -> None:
        old = self._open
        try:
            old.core.note_path(new.identity)
            if not discard:
                await old.flush_before_reopen()
            old.core.check_open()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._hub.release(new)
            raise
        # open_file.2: no waiting from here on.
        self._hub.move(old.core, new)
        self._use(old.replace(new, self._hub))

    def statistics(self) -> FileStatistics:
        """Return counts of what the file has done so far; also after it was closed."""
        core, mapping, flusher = self._core, self._mapping, self._open.flusher
        poisoned = mapping.first_bad is not None
        return FileStatistics(
            inline_reads=mapping.inline_reads,
            offloaded_reads=self._open.reader.offloaded,
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
            huge_page_bytes=self._open.pager.huge_page_bytes,
            leases=mapping.lease_count,
            leased=oldest_leases(mapping),
            flush_failed=core.unsynced.failure is not None or (poisoned and core.shared_writable),
            poisoned=poisoned,
        )

    async def aclose(self) -> None:
        """Wait for verbs under way, flush unless the policy is ``never()``, and close.

        The file is closed even if the flush fails. Views keep their pages. A second call waits for
        the first one and raises the same error.

        Raises:
            FlushError: if the flush fails, or an earlier one did.
            MappingFaultError: if a load or store through a view met a page that the file lost.
        Cancellation: delivered once the file is closed.
        Durability: as ``flush``, or none under ``FlushPolicy.never()``.
        """
        await self._open.close()

    async def __aenter__(self) -> Self:
        self._core.check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._open.close_after(error)

    def __del__(self) -> None:
        # Missing when __init__ failed.
        opened = getattr(self, "_open", None)
        if opened is None or self.closed or self._core.options.part:
            return
        if not self._mapping.forked:
            warnings.warn(
                f"{self!r} was never closed: nothing was flushed; use async with, or aclose()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    # Pickling is defined beside ``open``, in ``_hub/hub``.
    def __copy__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be copied: share it, or open its path again")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size} bytes"
        return f"<MappedFile {self._core.path} mode={self.mode!r} {state}>"
