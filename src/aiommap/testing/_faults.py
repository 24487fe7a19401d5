"""Faults that nobody can cause without root: a flush that fails, a full disk, a slow one."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import get_args

from aiommap import AccessModeError, MappedFile, Snapshot
from aiommap._core import opening as _opening
from aiommap._core.file_core import FileCore
from aiommap._core.file_state import Identity
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

    The call that should have written the dirty pages back raises instead. All that follows is the
    library's own: ``FlushError`` for whoever waits, ``on_error``, and the latch, which outlasts
    the block. What was stored stays in the page cache and may reach the disk some day, so this
    cannot prove what a reader finds after a crash.

    Args:
        file: a mapped file, open in mode "r+", "w+" or "x+".
        number: the errno; EIO for a broken device, ENOSPC or EDQUOT where blocks are only looked
            for during write-back (thin provisioning, network mounts).
    Raises:
        AccessModeError: in modes "r" and "c", where nothing is flushed.
        ValueError: if the number is no errno.
        anyio.ClosedResourceError: if the file is closed.
    Concurrency: for the event loop's thread.
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

    def refuse(self, fd: int) -> None:
        """Raise if a descriptor's file is on this disk. Worker threads only."""
        if self._holds(fd):
            self._count_hit()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _holds(self, fd: int) -> bool:
        if self._core is not None:
            return Identity.of(os.fstat(fd)) == self._core.identity
        path = os.readlink(f"/proc/self/fd/{fd}")
        return os.path.commonpath([path, self._path]) == self._path

    def _has_room(self, offset: int, length: int) -> bool:
        """Tell whether a store meets no hole. Worker threads only."""
        core = self._core
        if core is None or not core.options.sparse or not length:
            return True
        try:
            hole = os.lseek(core.mapping.fd, offset, os.SEEK_HOLE)
        except OSError:  # the file ends before; what that means is for the real call to find out
            return True
        if hole < offset + length:
            self._count_hit()
        return hole >= offset + length


#: The full disks that there are. ``_core/opening.allocate`` is replaced while there is any.
_full: list[_FullDisk] = []
_allocate = _opening.allocate


def _allocate_if_room(fd: int, offset: int, length: int) -> None:
    """Allocate blocks, unless that would take new ones of a full disk. Worker threads only."""
    if os.fstat(fd).st_blocks * 512 < offset + length:
        for disk in tuple(_full):
            disk.refuse(fd)
    _allocate(fd, offset, length)


@contextmanager
def full_disk(target: MappedFile | str | os.PathLike[str]) -> Iterator[InjectedFault]:
    """Let there be no free block on the disk.

    For an open file, ``resize`` to more than it has blocks for fails, and so does a store into a
    hole of a file that was opened with ``sparse=True``: nothing of it is stored then. For a path,
    creating and growing files there or anywhere below fails, stores into holes do not. What has
    its blocks works as always.

    A real file system also runs out of blocks for its own metadata and for copies of what is
    overwritten (copy on write), and some notice only during write-back; for that there is
    ``failing_flush(f, errno.ENOSPC)``.

    Args:
        target: an open file; or the path of a file to be created, or of a folder.
    Raises:
        AccessModeError: for a file in mode "r" or "c".
        anyio.ClosedResourceError: if the file is closed.
    Concurrency: for the event loop's thread.
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
    _full.append(fault)
    _opening.allocate = _allocate_if_room
    try:
        yield
    finally:
        _full.remove(fault)
        if not _full:
            _opening.allocate = _allocate


class SlowDisk(InjectedFault):
    """A disk that keeps calls waiting; made by ``slow_disk``.

    A call waits in its worker thread until it is released or its time is over. The event loop goes
    on meanwhile, and so do calls that need no disk.
    """

    def __init__(self, core: FileCore, seconds: float, only: Call | None) -> None:
        super().__init__()
        self._workers = core.workers
        self._seconds = seconds
        self._only = only
        self._sees_inline_verbs = only != "flush"
        #: Under the mutex: a locked gate for each call that waits, and whether any still has to.
        self._gates: list[Mutex] = []
        self._open = False
        self._told: Event | None = None

    @property
    def stalled(self) -> int:
        """How many calls wait at the moment."""
        return len(self._gates)

    async def wait_stalled(self, calls: int = 1) -> None:
        """Wait until so many calls wait for the disk at once.

        Use it where a test would otherwise sleep: when it returns, the operation is under way.

        Cancellation: ends the wait.
        """
        while self.stalled < calls:
            if self._told is None:  # trio's events have no truth value
                self._told = self._workers.event()
            await self._told.wait()

    def release(self, calls: int | None = None) -> None:
        """Let calls go on: the ones that have waited longest, or all and all that come.

        Args:
            calls: how many; None releases everything, and the disk is fast from then on.
        """
        with self._changing:
            self._open = self._open or calls is None
            count = len(self._gates) if calls is None else calls
            gates, self._gates = self._gates[:count], self._gates[count:]
        for gate in gates:
            gate.release()

    def _tell(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            told.set()

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
        with self._changing, suppress(ValueError):  # not there if it was released
            self._gates.remove(gate)


@contextmanager
def slow_disk(
    file: MappedFile | Snapshot, *, seconds: float = 10.0, only: Call | None = None
) -> Iterator[SlowDisk]:
    """Keep every call of one file that needs its disk waiting.

    Nothing counts as being in memory: reads and stores take their way through a worker and wait
    there, ``read_nowait`` raises ``WouldBlock``. The end of the block releases whatever waits.

    Args:
        file: an open file or snapshot.
        seconds: how long each call waits if ``SlowDisk.release`` is not called before. There is
            always an end to it, so that a test which waits for a write or a close inside the
            block, where cancelling is waited out, is slow and does not hang.
        only: "read" (``prewarm`` included), "write" or "flush" for only these calls; reads and
            stores then stay inline if only flushes are slow.
    Raises:
        ValueError: if seconds is not positive, or infinite; if only is no such word.
        anyio.ClosedResourceError: if the file is closed.
    Concurrency: for the event loop's thread.
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
