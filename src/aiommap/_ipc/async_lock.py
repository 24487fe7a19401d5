"""A lock for tasks of several processes that survives the death of its holder.

Theory of operation. The kernel decides which process holds the lock: by a file lock on the eight
bytes, which ends when the process dies (see ``_ipc/file_locks``). Two words in those bytes make the
lock quick, and show a death:

    +0  u32 turn    grows with every release; the waiters sleep on it
    +4  u32 holder  process id of the holder, 0 when there is none

A release changes and notifies ``turn``, so the next holder follows after a wake-up, not after a
pause. A process that dies inside notifies nobody, and leaves ``holder`` as it is. So waiters ask
the kernel again after ``POLL_SECONDS``, and the next holder finds that the word is not 0.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Literal, NoReturn, Self, SupportsIndex

import anyio

from .._arguments import time_limit
from .._core.file_core import FileCore
from .._errors import AccessModeError, MappedFileError, not_copied
from .._runtime.workers import OnCancel
from .atomics import AtomicU32
from .file_locks import FileLocks, LockRequest

#: The longest time until a waiter notices a death.
POLL_SECONDS = 0.1
LOCK_BYTES = 8
_WORDS = struct.Struct("=II")


class _TurnWait:
    """Pauses that end with the next release; see ``_ipc/file_locks.RetryWait``."""

    def __init__(self, turn: AtomicU32) -> None:
        self._turn = turn
        self._last_turn = 0

    def begin(self) -> None:
        self._last_turn = self._turn.load()

    async def pause(self, longest: float) -> None:
        with suppress(TimeoutError):
            await self._turn.wait(self._last_turn, min(POLL_SECONDS, longest))


class LockableFile:
    """A file whose bytes tasks and processes can lock; ``MappedFile`` is one."""

    __slots__ = ()

    def _lock_parts(
        self, offset: SupportsIndex, length: int
    ) -> tuple[FileCore, FileLocks, AtomicU32, AtomicU32]:
        """Return the parts of a lock in these bytes: core, file locks, and the two words."""
        raise NotImplementedError


class AsyncLock:
    """A lock between tasks of this process and of other processes that map the same file.

    Eight bytes of the file are the lock. Zeros are a free lock; other bytes are no error, but look
    like a lock whose owner died. Every process makes its own object for these bytes.

    If a process dies while it holds the lock, the lock is free again within a tenth of a second.
    ``owner_died`` is then True for the next holder: the data that the lock protects may be half
    changed. An exception inside the block releases the lock as usual.

    ``async with lock as held`` acquires the lock; ``held`` is the same object, for ``owner_died``.

    Args:
        file: a mapped file of this process, writable and shared.
        offset: first of the eight bytes, from the start of the file; a multiple of 4.
    Raises:
        OutOfBoundsError, AlignmentError: if the eight bytes cannot be there.
        AccessModeError: in modes "r" and "c".
    Concurrency: any number of tasks may share an object, or have one each for the same bytes. Tasks
        of one process get the lock in the order in which they asked; between processes there is no
        order. Only tasks of the event loop that opened the file can hold it; a forked child must
        open the file again. The lock belongs to the file that was mapped when the object was made:
        after a ``reopen`` that moved, a task that holds it keeps it until it releases it, and the
        next task needs a new object. Not reentrant.
    Source: fcntl(2), F_OFD_SETLK; futex(2).
    """

    __slots__ = ("__weakref__", "_core", "_holder", "_locks", "_owner_died", "_request", "_turn")

    def __init__(self, file: LockableFile, offset: SupportsIndex) -> None:
        if not isinstance(file, LockableFile):
            raise TypeError(f"file is {file!r}: pass an open MappedFile")
        # These belong to the file that is mapped at this moment; ``reopen`` makes others.
        parts = file._lock_parts(offset, LOCK_BYTES)  # noqa: SLF001
        self._core, self._locks, self._turn, self._holder = parts
        if not self._core.shared_writable:
            remedy = 'other processes need it: use "r+"'
            raise AccessModeError("keep a lock in", self._core.mode, remedy)
        self._request: LockRequest | None = None
        self._owner_died = False

    @property
    def offset(self) -> int:
        """First of the eight bytes, from the start of the file."""
        return self._turn.offset

    @property
    def locked(self) -> bool:
        """Whether a task holds the lock through this object."""
        return self._request is not None

    @property
    def owner_died(self) -> bool:
        """Whether the holder before you died with the lock; read this while you hold the lock."""
        return self._owner_died

    async def acquire(self, timeout: float | None = None) -> Literal[True]:
        """Wait for the lock and take it; then check ``owner_died``.

        Args:
            timeout: how long to wait, in seconds; None means no limit, and 0 tries only once.
        Returns:
            True, as ``asyncio.Lock.acquire`` does.
        Raises:
            TimeoutError: if others still hold the lock when the timeout ends.
            RuntimeError: without a timeout, if this same task holds the lock already.
            UnsupportedError: if the system has no such locks.
            anyio.ClosedResourceError: if the file is closed, or ``reopen`` moved it to another one,
                before or while this waits.
            As ``AtomicU32``.
        Cancellation: at any time; the lock is then not held.
        """
        limit = time_limit(timeout)
        request = await self._locks.acquire(
            self.offset, LOCK_BYTES, shared=False, timeout=limit, retry=_TurnWait(self._turn)
        )
        before: list[int] = []
        try:
            await self._change(lambda: before.append(self._holder.swap(os.getpid())))
        except BaseException:
            await self._locks.release(request, lambda _: self._take_back(before))
            raise
        self._owner_died = before != [0]
        self._request = request
        return True

    async def release(self) -> None:
        """Release the lock, and wake the next waiter.

        Raises:
            RuntimeError: if no task holds the lock through this object.
        Cancellation: delivered after the release.
        """
        request, self._request = self._request, None
        if request is None:
            raise RuntimeError(f"{self!r} is not held: acquire it first")
        core = self._core
        # The words cannot be reached if the file is closed, or retired and poisoned.
        reachable = not core.lifecycle.closing and not (
            core.lifecycle.retired and core.faults.damage()
        )
        try:
            if reachable:
                await self._change(lambda: self._holder.store(0))
        finally:
            try:
                await self._locks.release(request, None if reachable else self._sign_off)
            finally:
                if reachable and not core.lifecycle.closing:
                    await self._change(self._wake_others)

    async def _change(self, change: Callable[[], object]) -> None:
        """Change the words; in a worker if no store may run on the loop thread."""
        workers = self._core.workers
        if self._core.options.inline_writes:
            change()
        else:
            await workers.run(workers.stores, change, on_cancel=OnCancel.WAIT)

    def _wake_others(self) -> None:
        self._turn.fetch_add(1)
        self._turn.notify()

    def _take_back(self, before: list[int]) -> None:
        """Restore the holder that was found, so that the next one learns of its death (worker)."""
        if before:
            with suppress(MappedFileError, OSError, anyio.ClosedResourceError):
                self._holder.store(before[0])

    def _sign_off(self, descriptor: int) -> None:
        """Write the words as ``release`` does, while the file lock is still held (worker).

        This wakes no waiters that sleep on the turn; they try again by themselves. If the words
        cannot be written, ``owner_died`` is True for the next holder; nothing worse happens.
        """
        with suppress(OSError):
            words = os.pread(descriptor, LOCK_BYTES, self.offset)
            if len(words) == LOCK_BYTES:  # do not make a file longer that was cut off
                turn, _ = _WORDS.unpack(words)
                os.pwrite(descriptor, _WORDS.pack((turn + 1) % (1 << 32), 0), self.offset)

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.release()

    def __reduce__(self) -> NoReturn:
        remedy = "pass the file and the offset, and make another one for the same bytes"
        raise not_copied(self, remedy)

    def __repr__(self) -> str:
        state = "held" if self.locked else "not held"
        return f"<AsyncLock at {self.offset} of {self._core.path} {state}>"
