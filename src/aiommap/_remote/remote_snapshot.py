"""Remote snapshots: immutable objects, read through the cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self, SupportsIndex

from anyio.abc import AsyncResource

from .._file.view import View
from .remote_file import RemoteSnapshotFile
from .statistics import RemoteResidency


class RemoteSnapshot(AsyncResource):
    """An immutable object of a store, read through a local mapped cache; a ``StorageBackend``.

    Made by ``RemoteCache.open``. It is the object that was there when it was opened, whatever is
    written to its name later: every response is compared with it. Where the store keeps versions,
    all of it can still be read after it was overwritten; elsewhere blocks that are cached can, and
    others raise ``StaleSnapshotError``.

    Concurrency: for tasks of the event loop it was opened in; reads never wait for one another,
        but for blocks that one of them is fetching.
    """

    __slots__ = ("__weakref__",)

    @property
    def url(self) -> str:
        """Where the object is, without user, password and query."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Bytes of the object."""
        raise NotImplementedError

    @property
    def etag(self) -> str | None:
        """The entity tag that every response is compared with; None if it is another validator."""
        raise NotImplementedError

    @property
    def version(self) -> str | None:
        """The version, in a bucket that keeps versions; else None."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether it can be read no more; False while a hold outlives ``aclose``."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.size

    async def read_exact(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read bytes: all of them, or an error.

        What is cached and in memory is read at once, on the loop thread. What is not cached is
        fetched, together with what others wait for, and stored.

        Args:
            offset: first byte, from the start of the object; 0 <= offset <= size.
            length: number of bytes; offset + length <= size.
        Returns:
            Exactly ``length`` bytes.
        Raises:
            OutOfBoundsError: if [offset, offset + length) leaves the object.
            StaleSnapshotError: if the object was changed or is gone, and these bytes are not all
                cached.
            RemoteError: if the store cannot be reached, or answers what it was not asked for.
            PermissionError: if the store refuses.
            anyio.ClosedResourceError: if the snapshot is closed.
            ForkedError: if it was opened by another process.
        Cancellation: at any time; a fetch under way goes on, and its blocks are stored.
        """
        raise NotImplementedError

    async def read_many(self, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        """Read several ranges, each (offset, length), in the order given.

        Raises, Cancellation: as ``read_exact``.
        """
        raise NotImplementedError

    def chunks(self, size: SupportsIndex = 1 << 20) -> AsyncIterator[bytes]:
        """Iterate over the whole object: ``async for chunk in s.chunks(1 << 20)``.

        The next chunks are being fetched while you hold this one.

        Args:
            size: bytes of a chunk; the last one may be shorter.
        """
        raise NotImplementedError

    async def prewarm(
        self,
        offset: SupportsIndex = 0,
        length: SupportsIndex | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Fetch what is not cached of a range, to the end by default.

        Args:
            progress: called on the loop with (bytes done, bytes in total).
        Returns:
            How many bytes of the range are cached now; fewer than it has where there is no room.
        Raises, Cancellation: as ``read_exact``.
        """
        raise NotImplementedError

    async def view(self, offset: SupportsIndex = 0, length: SupportsIndex | None = None) -> View:
        """Make a read-only view of a range, fetched and kept in the cache while the view lives.

        Raises:
            OSError: ENOSPC if the cache has no room for all of it.
            Others as ``read_exact``.
        """
        raise NotImplementedError

    async def residency(self) -> RemoteResidency:
        """Say what is cached, what of that is in memory, and what only the store has."""
        raise NotImplementedError

    async def verify(self) -> None:
        """Ask the store (HEAD) whether the object is still the one that was opened.

        Raises:
            StaleSnapshotError: if it is not, or is gone, and is not pinned by its version.
            RemoteError, PermissionError: as ``read_exact``.
        """
        raise NotImplementedError

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """Keep the snapshot open for a block, even if it is closed meanwhile: ``with s.hold():``.

        Do not await ``aclose`` inside the block: it waits for the block to end.

        Raises:
            anyio.ClosedResourceError: if ``aclose`` was called.
        """
        raise NotImplementedError

    def file(self) -> RemoteSnapshotFile:
        """Make a binary file object of it, for pandas, pyarrow, zarr, fsspec and the like.

        It holds the snapshot until it is closed. Read it in worker threads: a read fetches there.

        Raises:
            anyio.ClosedResourceError: if ``aclose`` was called.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close as soon as there is no hold on the snapshot; never waits for the network.

        Views keep their pages. A second call waits like the first.

        Cancellation: ends the wait for holds; the end of the last one closes it anyway.
        """
        raise NotImplementedError
