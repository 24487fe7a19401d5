"""A remote snapshot as a binary file object, for libraries that know no event loop."""

from __future__ import annotations

from collections.abc import Callable

from .._core.file_core import FileCore
from .._snapshot.binary_file import BinaryFile
from .reader import RemoteReader


class RemoteSnapshotFile(BinaryFile):
    """A read-only, seekable binary file over a remote snapshot; made by ``RemoteSnapshot.file``.

    pandas, pyarrow, zarr, zipfile and the like take it in place of a path. Read it in worker
    threads: a read fetches what is not cached, in the thread that reads. On the thread of the event
    loop a read raises. The file holds the snapshot until it is closed.

    Attributes:
        path: the URL of the object.
        size: its size in bytes.
        mode: "rb".

    Concurrency: for one thread at a time, because it has one position, like any file object.
    """

    _instead = "RemoteSnapshot.read_exact"

    def __init__(
        self, core: FileCore, reader: RemoteReader, url: str, release: Callable[[], None]
    ) -> None:
        super().__init__(core, url, release)
        self._reader = reader

    def _fetch(self, offset: int, length: int) -> bytes:
        return self._reader.read_here(offset, length)

    def _fetch_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._reader.read_here(offset, len(buffer))
