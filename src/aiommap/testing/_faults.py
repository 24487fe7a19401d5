"""Faults that would need root to make for real: a failing flush, a full disk, a slow disk."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import get_args

from aiommap import AccessModeError, MappedFile, Snapshot
from aiommap._core.file_core import FileCore
from aiommap._core.file_state import Identity
from aiommap._core.opening import allocation_checks
from aiommap._runtime.event_loop import Event
from aiommap._runtime.threads import Mutex

from ._disk import Call, InjectedFault, core_of, in_place


def _writable(file: MappedFile, operation: str) -> FileCore:
    core = core_of(file)
    if not core.shared_writable:
        raise AccessModeError(operation, core.mode, 'its stores never reach a disk: use "r+"')
    return core


class _FailingFlush(InjectedFault):
    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def _meet(self, call: Call) -> None:
        if call == "flush":
            self._count_hit()
            raise OSError(self._number, os.strerror(self._number))


@contextmanager
def failing_flush(file: MappedFile, number: int = errno.EIO) -> Iterator[InjectedFault]:
    """Make the next flush of one file fail.

    The call that should write the dirty pages back raises instead. The library's own code does the
    rest: ``FlushError`` in every task that waits, ``on_error``, and the latch, which lasts longer
    than the block. The stored bytes stay in the page cache and may reach the disk later, so this
    cannot prove what a reader finds after a crash.

    Args:
        file: a mapped file, open in mode "r+", "w+", "x+" or "a+".
        number: the errno: EIO for a broken device; ENOSPC or EDQUOT for file systems that allocate
            blocks during write-back (thin provisioning, network mounts).
    Raises:
        AccessModeError: in modes "r" and "c", which flush nothing.
        ValueError: if the number is not an errno.
        anyio.ClosedResourceError: if the file is closed.
    Concurrency: for the thread of the event loop.
    Example: ``with failing_flush(f) as fault: ...``
    """
    if not isinstance(number, int) or number not in errno.errorcode:
        raise ValueError(f"number is {number!r}: give an errno, such as errno.EIO")
    fault = _FailingFlush(number)
    with in_place(_writable(file, "make the flush fail of"), fault):
        yield fault


class _FullDisk(InjectedFault):
    """A full disk below one file or, without a core, below a path."""

    _sees_inline_verbs = True

    def __init__(self, core: FileCore | None, path: str) -> None:
        super().__init__()
        self._core = core
        self._path = path

    def check(self, fd: int, offset: int, length: int) -> None:
        """Raise if the file is on this disk and needs new blocks. Worker threads only."""
        if os.fstat(fd).st_blocks * 512 < offset + length and self._holds(fd):
            self._count_hit()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _holds(self, fd: int) -> bool:
        if self._core is not None:
            return Identity.of(os.fstat(fd)) == self._core.identity
        path = os.readlink(f"/proc/self/fd/{fd}")
        return os.path.commonpath([path, self._path]) == self._path

    def _has_room(self, offset: int, length: int) -> bool:
        """Tell whether a store needs no new blocks. Worker threads only."""
        core = self._core
        if core is None or not core.options.sparse or not length:
            return True
        try:
            hole = os.lseek(core.mapping.fd, offset, os.SEEK_HOLE)
        except OSError:  # the file ends before; the real call reports that
            return True
        if hole < offset + length:
            self._count_hit()
        return hole >= offset + length


@contextmanager
def full_disk(target: MappedFile | str | os.PathLike[str]) -> Iterator[InjectedFault]:
    """Have a full disk while a block of code runs.

    For an open file, ``resize`` to more bytes than it has blocks for fails. A store into a hole of
    a file that was opened with ``sparse=True`` fails, too, and stores nothing. For a path, creating
    and growing files there or anywhere below fails, but stores into holes do not. Ranges that have
    their blocks work as always.

    A real file system also needs blocks for its own metadata and for copies of overwritten blocks
    (copy on write), and some find out only during write-back that there are none; for those use
    ``failing_flush(f, errno.ENOSPC)``.

    Args:
        target: an open file; or the path of a file to be created, or of a folder.
    Raises:
        AccessModeError: for a file in mode "r" or "c".
        anyio.ClosedResourceError: if the file is closed.
    Concurrency: for the thread of the event loop.
    Example: ``with full_disk(f) as fault: ...``
    """
    if isinstance(target, MappedFile):
        core = _writable(target, "fill the disk below")
        fault = _FullDisk(core, core.path)
        with _registered(fault), in_place(core, fault):
            yield fault
    else:
        if not isinstance(target, str | os.PathLike):
            raise TypeError(f"target is {target!r}: pass an open file, or a path")
        fault = _FullDisk(None, os.path.realpath(target))
        with _registered(fault):
            yield fault


@contextmanager
def _registered(fault: _FullDisk) -> Iterator[None]:
    check = fault.check
    allocation_checks.append(check)
    try:
        yield
    finally:
        allocation_checks.remove(check)


class SlowDisk(InjectedFault):
    """A disk that makes calls wait; ``slow_disk`` makes it.

    A call waits in its worker thread until ``release``, or until its time is over. The event loop
    goes on meanwhile, and so do calls that need no disk.
    """

    def __init__(self, core: FileCore, seconds: float, only: Call | None) -> None:
        super().__init__()
        self._workers = core.workers
        self._seconds = seconds
        self._only = only
        self._sees_inline_verbs = only != "flush"
        #: With the mutex held: a locked gate for each waiting call, and whether new calls pass.
        self._gates: list[Mutex] = []
        self._open = False
        self._changed: Event | None = None

    @property
    def stalled(self) -> int:
        """How many calls wait now."""
        return len(self._gates)

    async def wait_stalled(self, calls: int = 1) -> None:
        """Wait until at least this many calls wait for the disk at the same time.

        Use it where a test would otherwise sleep: when it returns, the operations are under way.

        Cancellation: ends the wait.
        """
        while self.stalled < calls:
            if self._changed is None:  # trio's events have no truth value
                self._changed = self._workers.event()
            await self._changed.wait()

    def release(self, calls: int | None = None) -> None:
        """Let calls go on: the ones that have waited longest, or all.

        Args:
            calls: how many; None releases all calls, and later ones do not wait.
        """
        with self._changing:
            self._open = self._open or calls is None
            count = len(self._gates) if calls is None else calls
            gates, self._gates = self._gates[:count], self._gates[count:]
        for gate in gates:
            gate.release()

    def _tell(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()

    # Worker threads only, from here on.

    def _meet(self, call: Call) -> None:
        if self._only not in (None, call):
            return
        gate = Mutex()
        gate.acquire()
        with self._changing:
            if self._open:
                return
            self._gates.append(gate)
        self._count_hit()
        self._workers.call_from_thread(self._tell)
        gate.acquire(timeout=self._seconds)
        with self._changing, suppress(ValueError):  # ``release`` has removed it already
            self._gates.remove(gate)


@contextmanager
def slow_disk(
    file: MappedFile | Snapshot, *, seconds: float = 10.0, only: Call | None = None
) -> Iterator[SlowDisk]:
    """Make every call of one file that needs its disk wait.

    No page counts as being in memory: a worker makes every read and store, and waits in it, and
    ``read_nowait`` raises ``WouldBlock``. The end of the block releases all calls.

    Args:
        file: an open file or snapshot.
        seconds: how long each call waits if ``SlowDisk.release`` is not called. The wait always
            ends. So a test that awaits a write or a close inside the block, whose cancellation is
            waited out, is slow but does not hang.
        only: "read" (``prewarm`` included), "write" or "flush", to make only these calls wait;
            reads and stores stay inline if only flushes wait.
    Raises:
        ValueError: if ``seconds`` is not positive or is infinite, or ``only`` is another word.
        anyio.ClosedResourceError: if the file is closed.
    Concurrency: for the thread of the event loop.
    Example: ``with slow_disk(f) as disk: ...``
    """
    if only not in (None, *get_args(Call)):
        raise ValueError(f'only is {only!r}: give one of "read", "write" and "flush", or None')
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds!r}: a slow disk takes some time, and not for ever")
    core = core_of(file)
    disk = SlowDisk(core, seconds, only)
    with in_place(core, disk):
        try:
            yield disk
        finally:
            disk.release()
