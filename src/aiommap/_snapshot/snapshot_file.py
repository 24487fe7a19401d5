"""A snapshot as a binary file object, for libraries that read files and know no event loop."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from .._core.file_core import FileCore
from .._core.nameless import open_again
from .._errors import not_copied
from .._file.reading import Reader
from .._native import export_bytes

if TYPE_CHECKING:
    from .._typing import Buffer


def _ended(result: None, error: BaseException | None) -> None:
    """Do nothing: a descriptor for reading has nothing to lose."""


class SnapshotFile(io.RawIOBase):
    """A read-only, seekable binary file over a snapshot; made by ``Snapshot.file``.

    fsspec, pandas, pyarrow, zipfile and the like take it in place of a path. Its reads wait for the
    disk, so make them in a worker thread, by ``anyio.to_thread.run_sync`` for instance; on the
    event loop's thread they raise. It holds the snapshot until it is closed.

    Attributes:
        path: the path of the snapshot.
        size: its size in bytes.
        mode: "rb".

    Concurrency: it has one position, as any file object, so one thread uses it at a time; make one
        for each thread.
    """

    mode = "rb"

    def __init__(self, core: FileCore, reader: Reader, release: Callable[[], None]) -> None:
        super().__init__()
        self._core = core
        self._reader = reader
        self._release = release
        self._position = 0
        self._descriptor: int | None = None
        self.path: str = core.path
        self.size: int = core.mapping.size

    @property
    def name(self) -> str:
        """The path, under the name that file objects have for it."""
        return self.path

    def fileno(self) -> int:
        """Return a descriptor of the file, with a position of its own, for who reads by that.

        ``numpy.fromfile``, ``mmap.mmap`` and ``pandas.read_csv(..., memory_map=True)`` do. It is
        opened by the first call, and closed with this object.

        Raises:
            RuntimeError: as ``read``.
        """
        self._check_usable()
        if self._descriptor is None:
            self._descriptor = open_again(self._core.mapping.fd)
        os.lseek(self._descriptor, self._position, os.SEEK_SET)
        return self._descriptor

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it has a position that can be set."""
        return True

    def tell(self) -> int:
        """Say where the next read begins."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set where the next read begins, from the start, from where it is, or from the end.

        Raises:
            ValueError: if that is before the start, or whence is none of the three.
        """
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"whence is {whence}: use os.SEEK_SET, SEEK_CUR or SEEK_END")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"asked to seek to {position}: positions count from the start")
        self._position = position
        return position

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes, to the end by default; fewer only at the end.

        Raises:
            MappingFaultError: if the file was truncated below what is read.
            anyio.ClosedResourceError: if the hub closed the snapshot in spite of this file.
            RuntimeError: on the event loop's thread, which must not wait.
        """
        length = self._length(self.size if size is None or size < 0 else size)
        data = self._reader.read_whole(self._position, length) if length else b""
        self._position += length
        return data

    def readall(self) -> bytes:
        """Read to the end; see ``read``."""
        return self.read()

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer as far as there are bytes; see ``read``."""
        view = export_bytes(buffer, True)
        length = self._length(len(view))
        if length:
            self._reader.read_into_whole(self._position, view[:length])
        self._position += length
        return length

    def write(self, data: Buffer, /) -> NoReturn:  # noqa: ARG002  the signature is io's
        """Refuse, as read-only files do."""
        raise io.UnsupportedOperation(f"{self.path} is a snapshot: it cannot be written to")

    def close(self) -> None:
        """Release the snapshot; in any thread. A second call does nothing."""
        if not self.closed:
            super().close()
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                self._close_descriptor(descriptor)
            self._core.workers.call_from_thread(self._release)

    def _close_descriptor(self, descriptor: int) -> None:
        close, workers = partial(os.close, descriptor), self._core.workers
        if workers.forked or not workers.on_loop():
            close()
        else:
            workers.start(workers.control, close, _ended)

    def __reduce__(self) -> NoReturn:
        raise not_copied(self, "make another file of the snapshot")

    def _length(self, wanted: int) -> int:
        """Return how many of the wanted bytes there are, once reading is allowed."""
        self._check_usable()
        return max(0, min(wanted, self.size - self._position))

    def _check_usable(self) -> None:
        """Raise unless reading is allowed."""
        self._check_open()
        self._core.check_usable()
        if self._core.workers.on_loop():
            raise RuntimeError(
                f"{self.path} would keep the event loop waiting: read it in a worker thread, "
                "anyio.to_thread.run_sync for instance, or use Snapshot.read_exact"
            )

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file: make another one of the snapshot")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self._position} of {self.size}"
        return f"<SnapshotFile {self.path} {state}>"
