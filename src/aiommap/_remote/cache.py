"""The cache: a folder, the objects that are open through it, and the threads that fetch."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Literal

from anyio.abc import AsyncResource

from .._hub.hub import Hub
from .._hub.opening import Opening
from .following import LiveRemoteSnapshot
from .remote_snapshot import RemoteSnapshot
from .source import RemoteSource
from .statistics import CacheEntry, CacheReport, CacheStatistics

DEFAULT_MAX_BYTES = 20 << 30
DEFAULT_BLOCK_BYTES = 256 << 10
DEFAULT_REQUEST_BYTES = 8 << 20
DEFAULT_WORKERS = 16


class RemoteCache(AsyncResource):
    """Reads immutable objects of stores through a folder on the local disk.

    One a program: ``async with RemoteCache() as cache``. Any number of processes and containers
    share a folder, and may be killed at any moment. The folder may be deleted while it is in use.
    A failure of the cache never fails a read, which then goes to the store.

    Args:
        folder: where blocks are kept; None means ``aiommap`` in the user's folder for caches. It is
            made if it is missing, for this user alone. A folder with other files is refused.
        max_bytes: what the blocks of all processes may take of the disk; never exceeded.
        min_free: the share of the file system, 0 to 1, that is left free whatever ``max_bytes``.
        block_size: bytes that are fetched, checked and given up together; a power of 2, from 4 KiB
            to 64 MiB. Objects that are cached already keep theirs.
        request_size: how many bytes of adjacent blocks one request may ask for.
        workers: how many requests may be under way at once, in threads of their own.
        on_error: called in the background, sync or async, with each failure of the cache itself; by
            default they are logged.
    Raises:
        ValueError, TypeError: for options that cannot be meant.

    Concurrency: for tasks of the event loop in which it is used first.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        min_free: float = 0.05,
        block_size: int = DEFAULT_BLOCK_BYTES,
        request_size: int = DEFAULT_REQUEST_BYTES,
        workers: int = DEFAULT_WORKERS,
        on_error: Callable[[Exception], object] | None = None,
    ) -> None:
        raise NotImplementedError

    @property
    def folder(self) -> str:
        """The absolute path of the folder."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether ``aclose`` was called."""
        raise NotImplementedError

    def open(
        self,
        source: str | RemoteSource,
        *,
        validator: Literal["etag", "modified", "none"] = "etag",
        version: str | None = None,
        offline: bool = False,
        prewarm: bool = False,
        read_ahead: bool = True,
        hub: Hub | None = None,
    ) -> Opening[RemoteSnapshot]:
        """Open an object as a snapshot: ``async with cache.open("s3://bucket/key") as s``.

        That is one request for its state (HEAD), however much of it is cached.

        Args:
            source: a URL, or a source such as ``ObstoreSource`` and ``FsspecSource``.
            validator: what tells one state of the object from another: its ETag, its time of
                modification, or nothing, for objects that never change under their name.
            version: read this version, in a bucket that keeps versions.
            offline: ask the store nothing, and open what is cached of the object, in the state in
                which it was opened last; reads of other blocks go to the store.
            prewarm: fetch all of it before returning.
            read_ahead: fetch ahead of reads that follow one another.
            hub: shares its worker threads, for blocks that are cached but not in memory.
        Returns:
            An object to use with ``async with``, or to ``await`` for a snapshot to ``aclose``.
        Raises:
            FileNotFoundError: if there is no such object; offline, if nothing of it is cached.
            PermissionError: if the store refuses.
            UnsupportedError: if the server sends no validator, or the folder cannot be a cache: it
                holds other files, or lies on a network file system.
            RemoteError: if the store cannot be asked.
        Cancellation: nothing is left open.
        """
        raise NotImplementedError

    def follow(
        self,
        source: str | RemoteSource,
        *,
        poll_interval: float = 10.0,
        pointer: bool = False,
        prewarm: Literal["hot", "all", "none"] = "hot",
        validate: Callable[[RemoteSnapshot], Awaitable[object]] | None = None,
        on_error: Callable[[Exception], object] | None = None,
    ) -> Opening[LiveRemoteSnapshot]:
        """Follow an object that is overwritten: ``async with cache.follow(url) as live``.

        The store is asked again and again, by a request that is answered without a body as long as
        nothing changed. A new object is opened, prewarmed and validated in the background, and only
        then becomes ``live.current``. If any of these fails, that is reported and the one before it
        stays in service.

        Args:
            source: as for ``open``.
            poll_interval: seconds between two questions.
            pointer: the object is small and its text names the object to serve: a URL, or a key
                beside it.
            prewarm: what of a new object is fetched before it is put in service: "hot", the ranges
                that are cached of the one before it; "all"; or "none".
            validate: an async function that takes each new snapshot, the first included, and
                raises, or returns False, if it is not to be served.
            on_error: called in the background, sync or async, with the failure of an object that is
                not served; by default that is logged.
        Raises:
            As ``open``, and whatever ``validate`` raises for the first one.
        Cancellation: nothing is left open.
        """
        raise NotImplementedError

    async def clear(self, source: str | RemoteSource | None = None) -> int:
        """Give up what is cached of an object, or all of it; reads in use go on.

        Returns:
            How many bytes of the disk that gives back, those in use by somebody included.
        """
        raise NotImplementedError

    async def verify(self) -> CacheReport:
        """Compare every cached block with its checksum, and give up those that are wrong."""
        raise NotImplementedError

    async def entries(self) -> tuple[CacheEntry, ...]:
        """List what the folder holds, the object that was opened last first."""
        raise NotImplementedError

    def statistics(self) -> CacheStatistics:
        """Say what this cache has done; a plain call that waits for nothing."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close every snapshot that is still open, then the cache; never waits for the network.

        What is cached stays for the next one.

        Cancellation: waited out.
        """
        raise NotImplementedError
