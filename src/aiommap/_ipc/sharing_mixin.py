"""The verbs by which processes that map one file work together: words and locks in it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, SupportsIndex

from .._arguments import check_range, flag, integer, time_limit
from .._core.file_core import FileCore
from .._errors import AccessModeError
from .._runtime.blocks import Block
from .atomics import (
    U32_BYTES,
    U64_BYTES,
    AtomicU32,
    AtomicU32Array,
    AtomicU64,
    AtomicU64Array,
    WordPolicy,
)
from .file_locks import FileLocks, LockRequest


class WordVerbs:
    """Atomic words of something that has a range of a file: the file itself, or a view."""

    __slots__ = ()

    if TYPE_CHECKING:
        _core: FileCore

    def _span(self, offset: SupportsIndex, length: int) -> tuple[int, int]:
        """Check a range, and give it as a range of the file."""
        self._core.check_usable()
        return check_range(offset, length, self._core.mapping.size, self._core.shared_writable)

    def atomic_u32(self, offset: SupportsIndex) -> AtomicU32:
        """Make an object for the unsigned 32-bit word at an offset; nothing is touched.

        Raises:
            OutOfBoundsError: if the word leaves the file, or the view.
            AlignmentError: if it does not begin at a multiple of 4 bytes of the file.
        """
        return AtomicU32(WordPolicy(self._core), self._span(offset, U32_BYTES)[0])

    def atomic_u64(self, offset: SupportsIndex) -> AtomicU64:
        """Make an object for the unsigned 64-bit word at an offset; nothing is touched.

        Raises:
            OutOfBoundsError: if the word leaves the file, or the view.
            AlignmentError: if it does not begin at a multiple of 8 bytes of the file.
        """
        return AtomicU64(WordPolicy(self._core), self._span(offset, U64_BYTES)[0])

    def atomic_u32_array(self, offset: SupportsIndex, count: SupportsIndex) -> AtomicU32Array:
        """Make an object for so many 32-bit words in a row; errors as ``atomic_u32``."""
        start = self._span(offset, integer(count, "count") * U32_BYTES)[0]
        return AtomicU32Array(WordPolicy(self._core), start, count)

    def atomic_u64_array(self, offset: SupportsIndex, count: SupportsIndex) -> AtomicU64Array:
        """Make an object for so many 64-bit words in a row; errors as ``atomic_u64``."""
        start = self._span(offset, integer(count, "count") * U64_BYTES)[0]
        return AtomicU64Array(WordPolicy(self._core), start, count)


class SharedVerbs(WordVerbs):
    """What ``MappedFile`` shares with other processes."""

    __slots__ = ()

    if TYPE_CHECKING:
        _locks: FileLocks

    def file_lock(
        self,
        offset: SupportsIndex,
        length: SupportsIndex,
        shared: bool = False,
        timeout: float | None = None,
    ) -> AbstractAsyncContextManager[None]:
        """Lock a range against other tasks and processes that lock it, for the block.

        Nobody else is kept from reading or writing; only from locking. A process that dies has
        unlocked. The same bytes may be locked by other programs, with F_OFD_SETLK or with the
        older F_SETLK of fcntl(2); flock(2) is another kind of lock and does not count.

        Args:
            offset: first byte, from the start of the file.
            length: number of bytes.
            shared: let others have it shared, too.
            timeout: how long to wait, in seconds; None means no limit, and 0 only tries.
        Raises:
            TimeoutError: if a part of it is still locked after so long.
            RuntimeError: without a time limit, if this task itself has locked a part of it.
            OutOfBoundsError: if the range leaves the file.
            AccessModeError: in modes "r" and "c" unless shared.
            UnsupportedError: if the system has no such locks.
            anyio.ClosedResourceError: if the file is closed, or moved to another one by
                ``reopen``; also meanwhile.
        Cancellation: at any time; nothing stays locked.
        Concurrency: tasks of one file get overlapping ranges in the order in which they asked. It
            is not reentrant. ``reopen`` inside the block keeps the old file's bytes locked, and
            none of the new one's. While another process has the range, it is asked for every 20 ms
            at the latest; ``AsyncLock`` is quicker.
        Source: fcntl(2), F_OFD_SETLK.
        """

        async def lock() -> tuple[FileLocks, LockRequest]:
            core = self._core
            start, count = self._span(offset, integer(length, "length"))
            limit = time_limit(timeout)
            if not flag(shared, "shared") and not core.shared_writable:
                remedy = 'use shared=True, or open it with "r+"'
                raise AccessModeError("lock bytes for oneself in", core.mode, remedy)
            locks = self._locks  # those of the file that is mapped now
            return locks, await locks.acquire(start, count, shared=shared, timeout=limit)

        async def unlock(locked: tuple[FileLocks, LockRequest]) -> None:
            locks, request = locked
            await locks.release(request)

        return Block(lock, unlock)
