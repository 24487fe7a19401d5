"""The verbs that change no byte, which files, views and snapshots share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any, SupportsIndex

from .._advice import Advice
from .._arguments import check_range, check_tail, flag, function, ranges_of
from .._core.file_core import FileCore
from .._core.options import check_advice
from .._native import PAGE_SIZE, export_bytes
from .._pages.pager import LockedRange, Pager
from .._pages.read_ahead import Chunks
from .._pages.residency import Residency
from .._runtime.blocks import Block
from .arrays import ArrayLayout, Order
from .open_file import OpenFile
from .searching import bounds, needle_of

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from .._typing import Buffer
    from .arrays import Shape


class ReadVerbs:
    """Verbs of a range of a file; offsets count from the first byte of the range.

    The range of a ``View`` is a part of the file. The range of a ``MappedFile`` is the whole file,
    so it overrides the verbs that answer inline by versions that skip the conversion of offsets.
    """

    __slots__ = ("_core", "_open")

    def __init__(self, opened: OpenFile) -> None:
        self._open: OpenFile = opened
        self._core: FileCore = opened.core

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def _first(self) -> int:
        """First byte of the range, from the start of the file."""
        return 0

    def _check_range(self) -> None:
        """Raise if the range can no longer be used."""

    def _check(self) -> None:
        """Raise unless the range and the file can be used."""
        self._check_range()
        self._core.check_usable()

    def _place(self, offset: SupportsIndex, length: SupportsIndex) -> tuple[int, int]:
        """Convert a part of the range to a range of the file, which may be shorter by now."""
        raise NotImplementedError

    def _places(self, ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
        """Convert each of several ranges as ``_place`` does."""
        return (self._place(*pair) for pair in ranges_of(ranges))

    def _range(self, offset: SupportsIndex, length: SupportsIndex) -> tuple[int, int]:
        """Convert a part of the range to a range of the file, and check that the file has it."""
        self._check()
        return self._in_file(*self._place(offset, length))

    def _tail(self, offset: SupportsIndex, length: SupportsIndex | None) -> tuple[int, int]:
        """Convert and check as ``_range`` does; a length of None means to the end of the range."""
        self._check()
        start, count = check_tail(offset, length, len(self))
        return self._in_file(self._first + start, count)

    def _in_file(self, start: int, count: int) -> tuple[int, int]:
        """Raise unless a range lies in the file, which may have become shorter than a view."""
        return check_range(start, count, self._core.mapping.size, self._core.shared_writable)

    async def read(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read bytes.

        Args:
            offset: first byte, from the start of the file or the view; 0 <= offset <= its length.
            length: number of bytes; offset + length <= its length.
        Returns:
            Exactly ``length`` bytes.
        Raises:
            OutOfBoundsError: if [offset, offset + length) leaves the file or the view.
            MappingFaultError: if the file was truncated below the range, or a page is unreadable.
            anyio.ClosedResourceError: if the file is closed.
        Cancellation: at any time; a read under way in another thread ends by itself.
        Source: preadv2(2) with RWF_NOWAIT, from 32 KiB on mincore(2) and a copy; else pread(2).
        """
        start, count = self._place(offset, length)
        data = self._core.mapping.read_inline(start, count)
        if data is None:
            self._core.check_loop()
            data = await self._open.reader.read(start, count)
        return data

    async def read_into(self, offset: SupportsIndex, buffer: Buffer) -> int:
        """Fill a whole buffer.

        Args:
            offset: first byte, from the start of the file or the view.
            buffer: any writable C-contiguous memory but Python objects, whatever its elements; its
                size in bytes says how much to read.
        Returns:
            The size of the buffer in bytes.
        Raises:
            OutOfBoundsError: if the range leaves the file or the view; the buffer is untouched.
            MappingFaultError: as ``read``; the buffer then holds ``copied`` good bytes.
            TypeError: if the argument is not a buffer, or is read-only, or has Python objects.
            BufferError: if the buffer is not C-contiguous.
        Cancellation: waits for a thread that has begun, because it writes into the buffer.
        """
        memory = export_bytes(buffer, True)
        start, _ = self._place(offset, len(memory))
        done = self._core.mapping.read_into_inline(start, memory)
        if done is None:
            self._core.check_loop()
            done = await self._open.reader.read_into(start, memory)
        return done

    def read_nowait(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read bytes that are in memory, without giving way to the loop.

        Raises:
            anyio.WouldBlock: if a page of the range is not in memory, or the file system cannot
                tell (it has no NOWAIT reads).
            OutOfBoundsError, anyio.ClosedResourceError: as ``read``.
        """
        return self._open.reader.read_nowait(*self._place(offset, length))

    async def read_many(self, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        """Read several ranges, in one hop to a worker at most.

        Args:
            ranges: (offset, length) pairs, as for ``read``.
        Returns:
            One bytes object per pair, in the order of the pairs.
        Raises:
            As ``read``; every range is checked before any is read.
        Cancellation: as ``read``.
        """
        self._core.check_loop()
        return await self._open.reader.read_many(self._places(ranges))

    async def find(
        self,
        needle: Buffer | int,
        start: SupportsIndex | None = 0,
        end: SupportsIndex | None = None,
    ) -> int:
        """Find the first place of some bytes, with the arguments and the result of ``bytes.find``.

        Args:
            needle: any C-contiguous memory but Python objects, or the number of one byte. An empty
                needle is found at ``start``, unless that is behind the end.
            start, end: the search covers ``[start, end)``, as a slice does: negative numbers count
                from the end of the file or the view, None means its start or its end, and whatever
                leaves it is cut off.
        Returns:
            The offset of the needle from the start of the file or the view, or -1.
        Raises:
            MappingFaultError, anyio.ClosedResourceError: as ``read``.
            ValueError: if the needle is a number outside 0 to 255.
            TypeError: if the needle is neither a number nor a buffer.
        Cancellation: at any time; a step of at most 16 MiB under way in a worker ends by itself.
        Concurrency: the search may find bytes that are written meanwhile, or miss them.
        """
        return await self._search(needle, start, end, last=False)

    async def rfind(
        self,
        needle: Buffer | int,
        start: SupportsIndex | None = 0,
        end: SupportsIndex | None = None,
    ) -> int:
        """Find the last place of some bytes; as ``find``, but an empty needle is at ``end``."""
        return await self._search(needle, start, end, last=True)

    async def _search(
        self,
        needle: Buffer | int,
        start: SupportsIndex | None,
        end: SupportsIndex | None,
        *,
        last: bool,
    ) -> int:
        self._check()
        self._core.check_loop()
        wanted = needle_of(needle)
        low, high = bounds(start, end, len(self))
        first, stop = self._first + low, min(self._first + high, self._core.mapping.size)
        found = await self._open.searcher.search(wanted, first, stop, last=last)
        return found if found < 0 else found - self._first

    async def prewarm(
        self,
        offset: SupportsIndex = 0,
        length: SupportsIndex | None = None,
        *,
        write: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Make a range resident, and return how many of its bytes are.

        The kernel may drop pages again at any moment; only ``locked`` prevents that.

        Args:
            offset: first byte, from the start of the file or the view.
            length: number of bytes; None means to the end of the file or the view.
            write: also make the pages writable without a fault; this makes them dirty.
            progress: called on the loop, with (bytes done, bytes in all), about every 10 ms.
        Returns:
            Bytes of the range that were resident at the end; or the length of the range, if the
            kernel hides residency (of a file of another user that we may not write) or a sandbox
            does. Holes of a file in tmpfs count as resident and stay holes: reading them takes no
            memory and never waits.
        Raises:
            OutOfBoundsError: if the range leaves the file or the view.
            MappingFaultError: if the file was truncated below the range.
            AccessModeError, FlushError: with ``write``, as ``MappedFile.write``.
            OSError: with ``write``, ENOSPC if the disk is full behind a sparse file.
        Cancellation: between steps of about 10 ms; pages made resident stay so.
        Source: posix_fadvise(2) ahead of madvise(2) with MADV_POPULATE_READ or _WRITE; a touch of
            each page where the kernel (before Linux 5.14) or a sandbox lacks these.
        """
        self._check()
        self._core.check_mapped()
        if flag(write, "write"):
            self._core.check_writable("prewarm for writing")
        if progress is not None:
            function(progress, "progress")
        start, count = self._tail(offset, length)
        with self._core.own.moving_times() if write else nullcontext():
            return await self._open.pager.prewarm(start, count, write=write, progress=progress)

    async def residency(
        self, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> Residency:
        """Ask which pages of a range are in memory at this moment.

        Args:
            offset, length: as for ``prewarm``.
        Raises:
            OutOfBoundsError: if the range leaves the file or the view.
            UnsupportedError: if the kernel hides residency, because the file belongs to another
                user and we may not write it (Linux 5.2 and later); or if a sandbox refuses
                mincore(2).
        Cancellation: waits for a call that has begun.
        Source: mincore(2).
        """
        self._check()
        self._core.check_mapped()
        return await self._open.pager.residency(*self._tail(offset, length))

    async def advise(
        self, advice: Advice, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> None:
        """Say how a range is going to be used.

        Advice for the whole file also sets the kernel's read-ahead for reads through the
        descriptor.

        Args:
            advice: a member of ``Advice``.
            offset, length: as for ``prewarm``.
        Raises:
            OutOfBoundsError: if the range leaves the file or the view.
            UnsupportedError: if the platform lacks the advice; for DONT_NEED in mode "c"; for
                DONT_NEED, COLD and PAGE_OUT of locked pages.
            TypeError: if the advice is not a member of ``Advice``.
        Cancellation: waits for a call that has begun.
        Source: madvise(2), posix_fadvise(2).
        """
        self._check()
        check_advice(advice)
        await self._open.pager.advise(advice, *self._tail(offset, length))

    def locked(
        self, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Lock a range in memory for the length of the block; reads of it need no system call.

        Holes of a file in tmpfs stay holes; if a page is stored there meanwhile, it is locked.

        Args:
            offset, length: as for ``prewarm``.
        Raises:
            OutOfBoundsError: if the range leaves the file or the view.
            OSError: if the range exceeds the limit on locked memory; the message has the numbers.
            MappingFaultError: if the file was truncated below the range.
        Cancellation: between steps of 4 MiB; nothing stays locked.
        Source: mlock2(2).
        """

        async def lock() -> tuple[Pager, LockedRange]:
            self._check()
            self._core.check_mapped()
            pager = self._open.pager  # at hand for unlocking: a reopen replaces self._open
            return pager, await pager.lock(*self._tail(offset, length))

        async def unlock(locked: tuple[Pager, LockedRange]) -> None:
            pager, pages = locked
            await pager.unlock(pages)

        return Block(lock, unlock)

    def chunks(self, size: SupportsIndex) -> AsyncIterator[bytes]:
        """Iterate in chunks; the next one is read ahead while you hold this one.

        Args:
            size: bytes per chunk; at least 1. The last chunk may be shorter.
        Raises:
            ValueError: if the size is not positive.
            As ``read``, during the iteration.
        """
        self._check()
        return Chunks(self, self._core, size, self._first, self.__len__)

    def pages(self) -> AsyncIterator[bytes]:
        """Iterate in chunks of one page (``aiommap.PAGE_SIZE`` bytes)."""
        return self.chunks(PAGE_SIZE)

    def array(
        self,
        dtype: DTypeLike,
        shape: Shape | None = None,
        offset: SupportsIndex = 0,
        *,
        order: Order = "C",
    ) -> NDArray[Any]:
        """Lay a NumPy array over the mapped bytes, without a copy.

        The array follows the rules of ``View.memory``. It is read-only in mode "r", and its stores
        are private in mode "c". In other modes its bytes count as dirty for as long as the array
        lives. Its pages stay mapped, also after ``release``, ``resize`` and ``aclose``. Touching a
        page that is not resident blocks the calling thread: prewarm first.

        Args:
            dtype: the type of the elements, as NumPy takes it: "<f8", ">u2", numpy.uint64, or
                fields with names. Any byte order.
            shape: the number of elements, or a tuple with their number in each dimension. One
                number may be -1, which stands for as many as fit. None means all elements up to
                the end.
            offset: first byte, from the start of the file or the view. Any offset is allowed, but
                NumPy is slower with elements that are not aligned.
            order: which index varies fastest: the last, "C", or the first, "F".
        Raises:
            OutOfBoundsError: if the array leaves the file or the view.
            ValueError: with None or -1, if the bytes are not a whole number of elements or rows; if
                the shape is not valid, or an element has no bytes.
            TypeError: if the dtype is not valid.
            UnsupportedError: for Python objects; and if the program has not imported NumPy: this
                verb does not, because importing would read files on the loop thread.
            As ``View.memory``.
        """
        self._check_memory()
        layout = ArrayLayout.check(dtype, shape, order, offset, len(self))
        return layout.lay(self._memory_of(layout.offset, layout.length))

    def _check_memory(self) -> None:
        """Raise unless the memory of the range can be used."""
        self._check()
        self._core.check_mapped()

    def _memory_of(self, offset: int, length: int) -> memoryview:
        """Return the bytes of a part of the range, without a copy."""
        raise NotImplementedError
