"""Snapshots: immutable files, mapped and read by any number of tasks without locks.

A *snapshot* is the file that was at a path when it was opened. It keeps a descriptor and a mapping
of that file, so replacing or unlinking the path does not change it. Only a change in place does;
the docstring of ``Snapshot`` says what is promised then.

Invariants.
  1  The size is always the one at opening; every range is checked against it (I3).
  2  While there is a hold on the snapshot, its file is open: ``aclose`` refuses new holds, and the
     end of the last one closes the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, Self, SupportsIndex

import anyio
from anyio.abc import AsyncResource

from .._advice import Advice
from .._arguments import check_range, check_tail
from .._core.file_state import FileState, Identity
from .._core.options import OpenOptions
from .._errors import StaleSnapshotError
from .._file.mapped_file import MappedFile
from .._file.view import Carving, View
from .._hub.hub import Hub, hub_or_new
from .._hub.opening import Opening
from .._watch.changes import ChangeKind, classify
from .holds import Holds
from .snapshot_file import SnapshotFile


class Snapshot(Carving, AsyncResource):
    """An immutable file, mapped for reading; ``Snapshot.open`` makes it.

    It has those verbs of a mapped file that change nothing, with the same errors. Offsets are
    checked against ``size``.

    It is for files that are complete when they are opened, and are replaced afterwards, not
    changed: a new file renamed over the path leaves the snapshot as it is. If the file is changed
    in place all the same, a read of bytes that were cut off raises ``MappingFaultError``, and the
    next ``verify`` raises ``StaleSnapshotError``. Appended bytes never become part of the snapshot.

    Pickling makes an ``Opening`` of the same path: use ``async with`` or ``await`` on it in another
    process. That raises ``StaleSnapshotError`` if another file is at the path by then.

    Concurrency: for tasks of the event loop in which it was opened. Reads never wait for one
        another.
    """

    __slots__ = ("__weakref__", "_file", "_holds", "_mapping", "_size")

    def __init__(self, file: MappedFile) -> None:
        if not isinstance(file, MappedFile):
            raise TypeError(f"cannot make a Snapshot of {file!r}: use Snapshot.open(path)")
        super().__init__(file._open)  # noqa: SLF001  a snapshot is made of its file
        self._file = file
        self._mapping = self._core.mapping
        self._size = file.size
        self._holds = Holds()

    @staticmethod
    def open(
        path: str | os.PathLike[str],
        *,
        hub: Hub | None = None,
        advice: Advice | None = None,
        prewarm: bool = False,
        lock: bool = False,
        huge_pages: bool = False,
    ) -> Opening[Snapshot]:
        """Open a file as a snapshot: ``async with Snapshot.open(path) as s``.

        Args:
            path: a regular file; kept as an absolute path.
            hub: the hub whose worker threads the snapshot uses, and which closes the snapshot when
                it is closed itself; None makes one for the snapshot alone.
            advice, prewarm, lock, huge_pages: as for ``aiommap.open``.
        Returns:
            An object to use with ``async with``, or to ``await`` for a Snapshot to ``aclose``.
        Raises:
            FileNotFoundError, PermissionError: as ``open``.
            UnsupportedError: if the path is a directory, pipe, socket or device, or a file that
                cannot be mapped, such as one below /proc: use ``FileBackend``.
        Cancellation: as ``aiommap.open``.
        """
        options = OpenOptions.check(
            path, "r", advice=advice, prewarm=prewarm, lock=lock, huge_pages=huge_pages
        )
        return Opening(partial(_open, hub_or_new(hub), options))

    @property
    def path(self) -> str:
        """The absolute path at which it was opened; another file may be there by now."""
        return self._core.path

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether it is closed; False after ``aclose`` while there is still a hold on it."""
        return self._file.closed

    def __len__(self) -> int:
        return self._size

    async def read(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        data = self._mapping.read_inline(offset, length)  # type: ignore[arg-type]
        if data is None:
            self._core.check_loop()
            data = await self._open.reader.read(offset, length)  # type: ignore[arg-type]
        return data

    async def read_exact(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read bytes: all of them, or an error; ``read`` by its name in ``StorageBackend``."""
        return await self.read(offset, length)

    def _places(self, ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
        return ranges  # ranges of the snapshot are ranges of the file, and the read checks them

    def view(self, offset: SupportsIndex = 0, length: SupportsIndex | None = None) -> View:
        """Make a read-only view of a range, by default of the whole; see ``MappedFile.view``.

        Raises:
            OutOfBoundsError: if the range leaves the snapshot.
            anyio.ClosedResourceError: if the snapshot is closed.
        """
        self._core.check_usable()
        return self._part(*check_tail(offset, length, self._size))

    def _part(self, offset: int, length: int) -> View:
        # The view refers to the snapshot, because a generation is closed when it is garbage.
        return View(self._open, offset, length, keeps=self)

    def _memory_of(self, offset: int, length: int) -> memoryview:
        return self._part(offset, length).memory

    def _place(self, offset: SupportsIndex, length: SupportsIndex) -> tuple[int, int]:
        return check_range(offset, length, self._size)

    async def verify(self) -> None:
        """Raise if the file was changed in place since it was opened.

        Call it after reading: if it returns, the bytes read before are those that the file had when
        it was opened. It relies on the times of the file. So it does not see

        - a change within the tick of the clock in which the file was opened (milliseconds);
        - a change whose author set the time of modification back and also changed permissions,
          owner or links, or moved the file to another name;
        - stores through another process's mapping to pages that were dirty already; on tmpfs, any
          stores through a mapping.

        It cannot distinguish an append from an overwrite, nor a call that sets only the time of
        change (``touch -a``, ``setfattr``) from ``cp -p``.

        Raises:
            StaleSnapshotError: if the file was written to or truncated, or may have been.
            anyio.ClosedResourceError, ForkedError: as ``read_exact``.
        Cancellation: a check that has begun is waited out.
        Source: fstat(2), st_mtime, st_ctime and st_size.
        """
        self._check()
        await self._core.run(self._core.workers.reads, self._verify)

    def _verify(self) -> None:
        """Compare the file with the state at opening. Worker threads only."""
        found = FileState.of(os.fstat(self._core.mapping.fd))
        kind = classify(self._core.state, found)
        # A rename sets the time of change, too.
        if kind is ChangeKind.CHANGED and not self._has_its_name():
            return
        if kind not in (None, ChangeKind.METADATA):
            raise StaleSnapshotError(self.path, self._size, found.size)

    def _has_its_name(self) -> bool:
        try:
            return Identity.of(os.stat(self.path)) == self._core.identity
        except OSError:
            return False

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """Keep the snapshot open for a block, even if it is closed meanwhile: ``with s.hold():``.

        Do not await ``aclose`` inside the block: it waits for the block to end. Closing the hub
        closes its snapshots even if there are holds.

        Raises:
            anyio.ClosedResourceError: if ``aclose`` was called.
        Concurrency: for the thread of the event loop; there may be any number of holds at a time.
        """
        self._take_hold()
        try:
            yield self
        finally:
            self._release_hold()

    def file(self) -> SnapshotFile:
        """Make a binary file object over the snapshot, for pandas, pyarrow, zipfile and the like.

        The file holds the snapshot until it is closed. Read it in worker threads.

        Raises:
            anyio.ClosedResourceError: if ``aclose`` was called.
        """
        self._take_hold()
        return SnapshotFile(self._core, self._open.reader, self._release_hold)

    def _take_hold(self) -> None:
        self._core.check_usable()
        self._holds.take(self.path)

    def _release_hold(self) -> None:
        """End a hold; after ``aclose`` the end of the last one closes the file, in a worker."""
        if self._holds.release():
            self._open.start_closing_unasked()

    async def aclose(self) -> None:
        """Close as soon as there is no hold on the snapshot, and wait for that.

        Views keep their pages. A second call waits like the first.

        Cancellation: ends the wait for holds; the end of the last one closes the snapshot anyway.
        """
        self._holds.refuse()
        if not self.closed and not self._core.mapping.forked:
            await self._holds.wait_ended()
        await self._file.aclose()

    def __reduce__(self) -> tuple[object, ...]:
        if self.closed:
            raise anyio.ClosedResourceError(f"{self.path} is closed: pickle it while it is open")
        options = self._core.options
        keywords = {name: getattr(options, name) for name in _PICKLED}
        return _reopen, (self.path, self._size, self._core.state.mtime_ns, keywords)

    def __copy__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be copied: share it, or open its path again")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._size} bytes"
        return f"<Snapshot {self.path} {state}>"


async def _open(hub: Hub, options: OpenOptions) -> Snapshot:
    """Open within a hub."""
    return Snapshot(await hub._open(options))  # noqa: SLF001  a snapshot is a kind of its files


_PICKLED = ("advice", "prewarm", "lock", "huge_pages")


def _reopen(path: str, size: int, modified: int, keywords: dict[str, Any]) -> Opening[Snapshot]:
    """Make the opening for a pickled snapshot; it opens the same bytes, or raises."""

    async def begin() -> Snapshot:
        snapshot = await Snapshot.open(path, **keywords)
        core = snapshot._core  # noqa: SLF001  same module
        if (snapshot.size, core.state.mtime_ns) != (size, modified):
            await snapshot.aclose()
            raise StaleSnapshotError(path, size, snapshot.size)
        return snapshot

    return Opening(begin)
