"""``FileBackend``: a storage backend that reads by a descriptor, without a mapping.

A *backend* is any object with the three members of ``StorageBackend``. Code that uses only these
runs over a mapped file, over a descriptor if the file should not be mapped, and over a backend of
the user's own. ``aiommap.testing.StorageBackendSuite`` tests all of them against one contract. Our
backends pickle as openings of the same path.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import SupportsIndex

import anyio
from anyio.abc import AsyncResource

from .._arguments import byte_count, check_range
from .._core.file_kinds import check_readable, size_of
from .._core.leases import LeasedError, past_leases
from .._core.paths import FilePath
from .._errors import ForkedError, OutOfBoundsError, name_file
from .._hub.hub import Hub, hub_or_new
from .._hub.opening import Opening
from .._native import PoolQueue, read_file
from .._runtime.event_loop import Waiter
from .._runtime.threads import Mutex
from .._runtime.workers import OnCancel, Workers


class _Descriptor:
    """A descriptor that stays open after the backend was closed, until no read uses it.

    A cancelled read goes on in its thread. If the descriptor were closed meanwhile, another file
    could get its number before the next system call of the read.
    """

    __slots__ = ("_mutex", "_users", "fd")

    def __init__(self, fd: int) -> None:
        self.fd: int = fd
        self._users = 1  # the backend that opened it
        self._mutex = Mutex()

    def retain(self) -> None:
        """Keep it open until ``drop``; in any thread."""
        with self._mutex:
            if not self._users:
                raise anyio.ClosedResourceError("the backend was closed before it could read")
            self._users += 1

    def drop(self) -> bool:
        """End a use; tell whether it was the last one, so that the caller has to close."""
        with self._mutex:
            self._users -= 1
            return not self._users

    @contextmanager
    def using(self) -> Iterator[int]:
        """Keep it open for a block. Worker threads only."""
        self.retain()
        try:
            yield self.fd
        finally:
            self.release()

    def release(self) -> None:
        """End a use, and close after the last one. Worker threads only."""
        if self.drop():
            self.close()

    def close(self) -> None:
        """Close the descriptor, which nobody uses. Worker threads only."""
        os.close(self.fd)

    def __del__(self) -> None:
        if self._users:
            os.close(self.fd)

    def close_copy(self) -> None:
        """Close a forked child's copy; a thread of the parent may hold the mutex (I10)."""
        self._users = 0
        os.close(self.fd)


class FileBackend(AsyncResource):
    """A backend that reads by a descriptor, off the loop; ``FileBackend.open`` makes it.

    It is for files that should not be mapped, such as those of network mounts whose server may go
    away. It is also for files that cannot be mapped: block devices, and files whose content the
    kernel makes when they are read.

    Concurrency: for tasks of the event loop in which it was opened. A read waits if too many reads
        of its hub are under way.
    """

    __slots__ = ("_closed", "_descriptor", "_device", "_path", "_queue", "_size", "_workers")

    def __init__(self, workers: Workers, path: str) -> None:
        self._workers = workers
        self._path = path
        self._size = 0
        self._device = 0
        self._queue: PoolQueue | None = None
        self._descriptor: _Descriptor | None = None
        self._closed = False

    @staticmethod
    def open(
        path: str | os.PathLike[str], *, size: int | None = None, hub: Hub | None = None
    ) -> Opening[FileBackend]:
        """Open a file, or a device, for exact reads.

        Args:
            path: a regular file, or a block or character device; kept as an absolute path.
            size: how many bytes can be read; None means the size that the file or block device has
                now. Give it if the system cannot tell the size, as for files below /proc. If it is
                more than there is, a read beyond the end raises, and ``limit`` says where the end
                is.
            hub: the hub whose worker threads the backend uses; None makes one. Close the backend
                before the hub.
        Raises:
            ValueError: if the size is negative; raised by the call itself.
            FileNotFoundError, PermissionError: as ``open``.
            UnsupportedError: if the path is a directory, pipe or socket; without a size, also if it
                is a character device, or a file whose content the kernel makes when it is read.
        Cancellation: an open that has begun in a worker is waited out, and the backend is closed.
        """
        length = None if size is None else byte_count(size, "size")
        where = FilePath.check(path)
        return Opening(partial(_open_file, hub_or_new(hub), where, length))

    @property
    def path(self) -> str:
        """The absolute path at which it was opened."""
        return self._path

    @property
    def size(self) -> int:
        """How many bytes can be read: the size that was given or found when it was opened."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether ``aclose`` was called."""
        return self._closed

    async def read_exact(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read bytes: all of them, or an error.

        Args:
            offset: first byte, from the start of the file; 0 <= offset <= size.
            length: number of bytes; offset + length <= size.
        Raises:
            OutOfBoundsError: if the range leaves [0, size), or if the file has no bytes there;
                ``limit`` is then where the file ends.
            OSError: from the file system or the device.
            anyio.ClosedResourceError: if the backend is closed.
            ForkedError: if it was opened by another process.
        Cancellation: delivered at once; a read under way ends in its thread, and nobody waits for
            it.
        Source: pread(2); interrupted and short reads are continued.
        """
        descriptor = self._usable()
        start, count = check_range(offset, length, self._size)
        data = await self._read_in_engine(descriptor, start, count)
        if isinstance(data, bytes):
            return data
        return await self._workers.run(
            self._workers.reads,
            self._read_whole,
            descriptor,
            start,
            count,
            on_cancel=OnCancel.ABANDON,
        )

    async def _read_in_engine(
        self, descriptor: _Descriptor, offset: int, length: int
    ) -> bytes | int | None:
        """Read in the engine; return all bytes, or anything else to have a worker read instead."""
        if self._queue is None:
            self._queue = self._workers.queue(self._device)
        if self._queue is None:
            return None
        waiter: Waiter[bytes | int] = self._workers.waiter()

        def tell(outcome: bytes | int) -> None:
            if descriptor.drop():
                self._workers.start(self._workers.control, descriptor.close, lambda *_: None)
            if not waiter.done():
                waiter.set_result(outcome)

        reading = self._queue.read_file(descriptor.fd, offset, length, tell)
        if reading is None:
            return None
        descriptor.retain()
        try:
            return await waiter
        except BaseException:
            reading.withdraw()
            raise

    async def aclose(self) -> None:
        """Close; reads under way return their bytes all the same.

        Cancellation: closing is waited out, then the cancellation is delivered.
        """
        descriptor, self._descriptor = self._descriptor, None
        self._closed = True
        if descriptor is None:
            return
        if self._workers.forked:
            descriptor.close_copy()
            return
        await self._workers.run(self._workers.control, descriptor.release, on_cancel=OnCancel.WAIT)

    def _usable(self) -> _Descriptor:
        if self._descriptor is None:
            raise anyio.ClosedResourceError(f"{self._path} is closed: open it again to use it")
        if self._workers.forked:
            raise ForkedError(self._path)
        return self._descriptor

    def __del__(self) -> None:
        # Missing when __init__ failed.
        if getattr(self, "_descriptor", None) is not None and not self._workers.forked:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)

    def __reduce__(self) -> tuple[object, ...]:
        return partial(FileBackend.open, self._path, size=self._size), ()

    # Worker threads only, from here on.

    def _open(self, where: FilePath, size: int | None) -> None:
        """Open the descriptor, and find the size unless it was given."""
        try:
            fd = self._open_descriptor(where)
            try:
                found = os.fstat(fd)
                check_readable(self._path, found)
                self._size = size_of(self._path, fd, found) if size is None else size
                self._device = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
            except BaseException:
                os.close(fd)
                raise
        except BlockingIOError:
            raise LeasedError(self._path) from None
        except OSError as error:
            name_file(error, self._path)
            raise
        self._descriptor = _Descriptor(fd)

    def _open_descriptor(self, where: FilePath) -> int:
        with where.beginning() as (path, start):
            # stat comes first, because merely opening a pipe can have effects. If the path names a
            # pipe by the next step, O_NONBLOCK keeps open(2) from waiting for its other end.
            check_readable(self._path, os.stat(path, dir_fd=start))
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            return os.open(path, flags, dir_fd=start)

    def _read_whole(self, descriptor: _Descriptor, offset: int, length: int) -> bytes:
        with descriptor.using() as fd:
            try:
                data = read_file(fd, offset, length)
            except OSError as error:
                name_file(error, self._path)
                raise
        if len(data) < length:
            raise self._ended(offset, length, len(data))
        return data

    def _ended(self, offset: int, length: int, done: int) -> OutOfBoundsError:
        end = offset + done
        return OutOfBoundsError(
            offset,
            length,
            end,
            f"asked for bytes [{offset}, {offset + length}) of {self._path}, which ends at {end} "
            f"or before: it was truncated since it was opened, or the size {self._size} given "
            "then was too large; open it again",
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._size} bytes"
        return f"<FileBackend {self._path} {state}>"


async def _open_file(hub: Hub, where: FilePath, size: int | None) -> FileBackend:
    """Open within a hub."""
    hub._check_process(where.whole)  # noqa: SLF001  as for its files
    workers = hub._running_workers()  # noqa: SLF001  a backend is one more user of its threads
    backend = FileBackend(workers, where.whole)

    def attempt() -> Awaitable[None]:
        return workers.run(workers.control, backend._open, where, size)  # noqa: SLF001  its half

    try:
        await past_leases(attempt)
    except BaseException:
        await backend.aclose()
        raise
    return backend
