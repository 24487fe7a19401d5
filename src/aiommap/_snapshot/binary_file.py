"""The base of the file objects of snapshots: a position, and reads in worker threads only."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NoReturn

from .._core.file_core import FileCore
from .._errors import not_copied
from .._native import export_bytes

if TYPE_CHECKING:
    from .._typing import Buffer


class BinaryFile(io.RawIOBase):
    """A read-only, seekable binary file over an open file that does not change.

    Args:
        core: the core of the open file.
        path: its path or URL.
        release: called on the loop when this object is closed.
    """

    mode = "rb"
    #: The verb to use on the loop thread; for an error message.
    _instead: ClassVar[str]

    def __init__(self, core: FileCore, path: str, release: Callable[[], None]) -> None:
        super().__init__()
        self._core = core
        self._release = release
        self._position = 0
        self.path: str = path
        self.size: int = core.mapping.size

    @abstractmethod
    def _fetch(self, offset: int, length: int) -> bytes:
        """Read a range, which lies within the file."""

    @abstractmethod
    def _fetch_into(self, offset: int, buffer: memoryview) -> None:
        """Read a range, which lies within the file, into a buffer."""

    @property
    def name(self) -> str:
        """The path, under the name that file objects have for it."""
        return self.path

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position at which the next read begins."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position of the next read, from the start, the present position or the end.

        Raises:
            ValueError: if that is before the start, or ``whence`` is none of the three.
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
        """Read ``size`` bytes, or all up to the end by default; fewer only at the end.

        Raises:
            As ``read_exact`` of the snapshot.
            anyio.ClosedResourceError: if the hub closed the snapshot in spite of this file.
            RuntimeError: on the thread of the event loop, which must not wait.
        """
        length = self._length(self.size if size is None or size < 0 else size)
        data = self._fetch(self._position, length) if length else b""
        self._position += length
        return data

    def readall(self) -> bytes:
        """Read to the end; see ``read``."""
        return self.read()

    def readinto(self, buffer: Buffer, /) -> int:
        """Read into a buffer; return how many bytes, fewer than it has only at the end."""
        view = export_bytes(buffer, True)
        length = self._length(len(view))
        if length:
            self._fetch_into(self._position, view[:length])
        self._position += length
        return length

    def write(self, data: Buffer, /) -> NoReturn:  # noqa: ARG002  the signature is io's
        """Raise ``io.UnsupportedOperation``: the file is read-only."""
        raise io.UnsupportedOperation(f"{self.path} is a snapshot: it cannot be written to")

    def close(self) -> None:
        """Release the snapshot; in any thread. A second call does nothing."""
        if not self.closed:
            super().close()
            self._core.workers.call_from_thread(self._release)

    def __reduce__(self) -> NoReturn:
        raise not_copied(self, "make another file of the snapshot")

    def _length(self, wanted: int) -> int:
        """Check that reading is allowed; return how many of the wanted bytes there are."""
        self._check_usable()
        return max(0, min(wanted, self.size - self._position))

    def _check_usable(self) -> None:
        """Raise if the file or the snapshot is closed, or this is the loop thread."""
        self._check_open()
        self._core.check_usable()
        if self._core.workers.on_loop():
            raise RuntimeError(
                f"{self.path} would keep the event loop waiting: read it in a worker thread, "
                f"anyio.to_thread.run_sync for instance, or use {self._instead}"
            )

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file: make another one of the snapshot")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self._position} of {self.size}"
        return f"<{type(self).__name__} {self.path} {state}>"
