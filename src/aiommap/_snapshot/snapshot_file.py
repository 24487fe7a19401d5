"""A snapshot as a binary file object, for libraries that read files and know no event loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from .._core.file_core import FileCore
from .._core.nameless import open_again
from .._file.reading import Reader
from .._runtime.threads import run_apart
from .binary_file import BinaryFile


class SnapshotFile(BinaryFile):
    """A read-only, seekable binary file over a snapshot; made by ``Snapshot.file``.

    fsspec, pandas, pyarrow, zipfile and the like take it in place of a path. Its reads wait for the
    disk, so make them in a worker thread, for instance by ``anyio.to_thread.run_sync``. On the
    thread of the event loop a read raises. The file holds the snapshot until it is closed.

    Attributes:
        path: the path of the snapshot.
        size: its size in bytes.
        mode: "rb".

    Concurrency: for one thread at a time, because it has one position, like any file object; make
        one for each thread.
    """

    _instead = "Snapshot.read_exact"

    def __init__(self, core: FileCore, reader: Reader, release: Callable[[], None]) -> None:
        super().__init__(core, core.path, release)
        self._reader = reader
        self._descriptor: int | None = None

    def _fetch(self, offset: int, length: int) -> bytes:
        return self._reader.read_whole(offset, length)

    def _fetch_into(self, offset: int, buffer: memoryview) -> None:
        self._reader.read_into_whole(offset, buffer)

    def fileno(self) -> int:
        """Return a descriptor of the file, with a position of its own.

        ``numpy.fromfile``, ``mmap.mmap`` and ``pandas.read_csv(..., memory_map=True)`` read by a
        descriptor. The first call opens it, and ``close`` closes it.

        Raises:
            RuntimeError: as ``read``.
        """
        self._check_usable()
        if self._descriptor is None:
            self._descriptor = open_again(self._core.mapping.fd)
        os.lseek(self._descriptor, self._position, os.SEEK_SET)
        return self._descriptor

    def close(self) -> None:
        """Release the snapshot; in any thread. A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            close, workers = partial(os.close, descriptor), self._core.workers
            if workers.forked or not workers.on_loop():
                close()
            else:
                run_apart(close)
        super().close()
