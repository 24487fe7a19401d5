"""The verbs of a mapped file that speak of pages: what is in memory, and how it gets there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, SupportsIndex

from .._advice import Advice
from .._arguments import check_tail, flag, function
from .._core.file_core import FileCore
from .._runtime.blocks import Block
from .pager import Pager
from .residency import Residency


class PagedVerbs:
    """What ``MappedFile`` does with pages."""

    __slots__ = ()

    if TYPE_CHECKING:
        _core: FileCore
        _pager: Pager

        @property
        def size(self) -> int: ...

    async def start_writeback(
        self, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> None:
        """Begin to write dirty pages back, without waiting and without any promise.

        Args:
            offset: first byte, from the start of the file.
            length: number of bytes; None means to the end of the file.
        Raises:
            OutOfBoundsError: if the range leaves the file.
            UnsupportedError: if the platform lacks the call.
        Cancellation: one that has begun is waited out.
        Durability: none; it only makes a later ``flush`` shorter.
        Source: sync_file_range(2) with SYNC_FILE_RANGE_WRITE.
        """
        self._core.check_usable()
        start, count = check_tail(offset, length, self.size)
        if self._core.shared_writable:
            await self._pager.start_writeback(start, count)

    async def prewarm(
        self,
        offset: SupportsIndex = 0,
        length: SupportsIndex | None = None,
        *,
        write: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Make a range resident, and say how much of it then is.

        The kernel may drop pages again at any moment; only ``locked`` prevents that.

        Args:
            offset: first byte, from the start of the file.
            length: number of bytes; None means to the end of the file.
            write: also make the pages writable without a fault; they become dirty by it.
            progress: called on the loop, with (bytes done, bytes in all), about every 10 ms.
        Returns:
            Bytes of the range that were resident when it had finished; the length of the range
            where the kernel hides residency (files of others that we may not write) or a sandbox
            does. Holes of a file in tmpfs count, and are left alone: they take no memory and are
            read without waiting.
        Raises:
            OutOfBoundsError: if the range leaves the file.
            MappingFaultError: if the file was truncated below the range.
            AccessModeError, FlushError: with ``write``, as ``MappedFile.write``.
            OSError: with ``write``, ENOSPC if the disk is full behind a sparse file.
        Cancellation: between steps of about 10 ms; pages made resident stay so.
        Source: posix_fadvise(2) ahead of madvise(2) with MADV_POPULATE_READ or _WRITE; a touch of
            each page where these are lacking (before Linux 5.14, in sandboxes).
        """
        self._core.check_usable()
        self._core.check_mapped()
        if flag(write, "write"):
            self._core.check_writable("prewarm for writing")
        if progress is not None:
            function(progress, "progress")
        start, count = check_tail(offset, length, self.size)
        with self._core.own.moving_times() if write else nullcontext():
            return await self._pager.prewarm(start, count, write=write, progress=progress)

    async def residency(
        self, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> Residency:
        """Ask which pages of a range are in memory at this moment.

        Args:
            offset, length: as for ``prewarm``.
        Raises:
            OutOfBoundsError: if the range leaves the file.
            UnsupportedError: if the kernel hides it: the file is somebody else's and we may not
                write it (Linux 5.2 and later); or if a sandbox refuses mincore(2).
        Cancellation: one that has begun is waited out.
        Source: mincore(2).
        """
        self._core.check_usable()
        self._core.check_mapped()
        return await self._pager.residency(*check_tail(offset, length, self.size))

    async def huge_page_bytes(self) -> int:
        """Count the bytes of the file that are mapped by huge pages at this moment.

        Opening with ``huge_pages=True`` asks for them, once, and counts what it got; what file
        system, mount options and free memory allow is another matter, and so is when: the kernel
        may also do it later, in the background. ``statistics()`` has the last count.

        Raises:
            UnsupportedError: if the kernel does not tell.
        Cancellation: one that has begun is waited out.
        Source: proc_pid_smaps(5); AnonHugePages, ShmemPmdMapped and FilePmdMapped.
        """
        self._core.check_usable()
        return await self._pager.count_huge_pages()

    async def advise(
        self, advice: Advice, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> None:
        """Say how a range is going to be used.

        Advice on the whole file also sets the read-ahead of reads through the descriptor.

        Args:
            advice: a member of ``Advice``.
            offset, length: as for ``prewarm``.
        Raises:
            OutOfBoundsError: if the range leaves the file.
            UnsupportedError: if the platform lacks the advice; for DONT_NEED in mode "c"; for
                DONT_NEED, COLD and PAGE_OUT of pages that are pinned.
            TypeError: if it is no advice.
        Cancellation: one that has begun is waited out.
        Source: madvise(2), posix_fadvise(2).
        """
        self._core.check_usable()
        if not isinstance(advice, Advice):
            raise TypeError(f"advice is {advice!r}: use a member of Advice")
        await self._pager.advise(advice, *check_tail(offset, length, self.size))

    def locked(
        self, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Pin a range in memory for the length of the block; reads of it need no system call.

        Holes of a file in tmpfs stay holes; a page that is stored there meanwhile is pinned then.

        Args:
            offset, length: as for ``prewarm``.
        Raises:
            OutOfBoundsError: if the range leaves the file.
            OSError: if the limit on locked memory refuses it; the message has the numbers.
            MappingFaultError: if the file was truncated below the range.
        Cancellation: between steps of 4 MiB; nothing stays pinned.
        Source: mlock2(2).
        """

        async def lock() -> tuple[Pager, tuple[int, int]]:
            self._core.check_usable()
            self._core.check_mapped()
            pager = self._pager  # the one of the file that is mapped now
            return pager, await pager.lock(*check_tail(offset, length, self.size))

        async def unlock(locked: tuple[Pager, tuple[int, int]]) -> None:
            pager, span = locked
            await pager.unlock(span)

        return Block(lock, unlock)
