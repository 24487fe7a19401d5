"""A remote snapshot as a binary file object, for libraries that know no event loop."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from .._core.file_core import FileCore
from .._errors import not_copied
from .._native import export_bytes
from .reader import RemoteReader

if TYPE_CHECKING:
    from .._typing import Buffer


class RemoteSnapshotFile(io.RawIOBase):
    """A read-only, seekable binary file over a remote snapshot; made by ``RemoteSnapshot.file``.

    pandas, pyarrow, zarr, zipfile and the like take it in place of a path. A read of what is not
    cached fetches it, in the thread that reads; so make reads in a worker thread. On the event
    loop's thread they raise. It holds the snapshot until it is closed.

    Attributes:
        path: the URL of the object.
        size: its size in bytes.
        mode: "rb".

    Concurrency: it has one position, as any file object, so one thread uses it at a time.
    """

    mode = "rb"

    def __init__(
        self, core: FileCore, reader: RemoteReader, url: str, release: Callable[[], None]
    ) -> None:
        super().__init__()
        self._core = core
        self._reader = reader
        self._release = release
        self._position = 0
        self.path: str = url
        self.size: int = core.mapping.size

    @property
    def name(self) -> str:
        """The URL, under the name that file objects have for it."""
        return self.path

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
            StaleSnapshotError, RemoteError, PermissionError: as ``RemoteSnapshot.read_exact``.
            anyio.ClosedResourceError: if the hub closed the snapshot in spite of this file.
            RuntimeError: on the event loop's thread, which must not wait.
        """
        length = self._length(self.size if size is None or size < 0 else size)
        data = self._reader.read_here(self._position, length) if length else b""
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
            view[:length] = self._reader.read_here(self._position, length)
        self._position += length
        return length

    def write(self, data: Buffer, /) -> NoReturn:  # noqa: ARG002  the signature is io's
        """Refuse, as read-only files do."""
        raise io.UnsupportedOperation(f"{self.path} is a snapshot: it cannot be written to")

    def close(self) -> None:
        """Release the snapshot; in any thread. A second call does nothing."""
        if not self.closed:
            super().close()
            self._core.workers.call_from_thread(self._release)

    def __reduce__(self) -> NoReturn:
        raise not_copied(self, "make another file of the snapshot")

    def _length(self, wanted: int) -> int:
        """Return how many of the wanted bytes there are, once reading is allowed."""
        self._check_open()
        self._core.check_usable()
        if self._core.workers.on_loop():
            raise RuntimeError(
                f"{self.path} would keep the event loop waiting: read it in a worker thread, "
                "anyio.to_thread.run_sync for instance, or use RemoteSnapshot.read_exact"
            )
        return max(0, min(wanted, self.size - self._position))

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file: make another one of the snapshot")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self._position} of {self.size}"
        return f"<RemoteSnapshotFile {self.path} {state}>"
