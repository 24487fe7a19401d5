"""The cache: a folder, the objects that are open through it, and the threads that fetch.

Requests run in worker threads of their own, so a dead server takes no thread from reads of files
(R10).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal, Self, TypeVar

import anyio
from anyio.abc import AsyncResource

from .._arguments import at_least, byte_count, check_kind, flag, function, integer, seconds
from .._core.paths import absolute_path
from .._errors import ForkedError
from .._file.mapped_file import MappedFile
from .._hub.hub import Hub
from .._hub.opening import Opening
from .._logs import FOLLOWING, REMOTE
from .._runtime.callbacks import Listeners
from .._runtime.threads import Forks
from .._runtime.tracing import traced
from .._runtime.workers import OnCancel, Workers
from .._snapshot.follower import Follower
from .attempt import Attempt
from .cache_folder import default_folder
from .counters import Counters
from .entry import Entry
from .fetches import Fetches, FetchQueue
from .following import Followed, LiveRemoteSnapshot, PolledSource, RemoteGeneration
from .obstore import ObstoreSource
from .open_objects import Asked, Found, OpenObjects
from .polls import Polls
from .remote_snapshot import RemoteSnapshot
from .source import (
    VALIDATORS,
    RemoteSource,
    without_secrets,
)
from .statistics import CacheEntry, CacheReport, CacheStatistics

Kind = TypeVar("Kind", bound=RemoteSnapshot)

DEFAULT_MAX_BYTES = 20 << 30
DEFAULT_BLOCK_BYTES = 256 << 10
DEFAULT_REQUEST_BYTES = 8 << 20
DEFAULT_WORKERS = 16
MIN_BLOCK_BYTES = 4 << 10
MAX_BLOCK_BYTES = 64 << 20


_PREWARM = ("hot", "all", "none")


class RemoteCache(AsyncResource):
    """Reads immutable objects of stores through a folder on the local disk.

    Make one for the whole program: ``async with RemoteCache() as cache``. Any number of processes
    and containers may share a folder, and each may be killed at any moment. The folder may be
    deleted while it is in use. A failure of the cache never fails a read: that read goes to the
    store.

    Args:
        folder: where blocks are kept; None means ``aiommap`` in the user's folder for caches. A
            folder that is missing is made, for this user alone. A folder with other files is
            refused.
        max_bytes: how many bytes the files of all processes may take on the disk; never exceeded.
        min_free: the share of the file system, 0 <= share < 1, that stays free whatever
            ``max_bytes`` allows.
        block_size: bytes that are fetched, checked and evicted together; a power of 2, from 4 KiB
            to 64 MiB. Objects that are cached already keep their block size.
        request_size: how many bytes of adjacent blocks one request may ask for.
        workers: how many requests may be under way at once; each runs in a thread.
        on_error: a sync or async function that is called on the event loop with each failure of the
            cache itself; by default failures are logged.
    Raises:
        ValueError, TypeError: if an option makes no sense.

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
        self._folder_path = absolute_path(default_folder() if folder is None else folder)
        self._max_bytes = byte_count(max_bytes, "max_bytes")
        self._block_size = _block_size(block_size)
        reason = f"it is at least a block, of {self._block_size} bytes"
        self._request_size = at_least(self._block_size, request_size, "request_size", reason)
        self._fetchers = at_least(1, workers, "workers", "a cache needs at least 1 to fetch with")
        if on_error is not None:
            function(on_error, "on_error")
        self._failures = _Failures(on_error or _log)
        self._counters = Counters()
        self._forks = Forks.count
        self._workers: Workers | None = None
        self._queue: FetchQueue | None = None
        self._hub = Hub()
        self._closed = False
        self._snapshots: weakref.WeakSet[RemoteSnapshot] = weakref.WeakSet()
        # By object that is open; snapshots and fetches under way keep them alive.
        self._fetches: weakref.WeakValueDictionary[Entry, Fetches] = weakref.WeakValueDictionary()
        self._followed: weakref.WeakSet[LiveRemoteSnapshot] = weakref.WeakSet()
        self._polls = Polls()
        self._objects = OpenObjects(
            self._folder_path,
            self._max_bytes,
            _share(min_free),
            self._block_size,
            self._request_size,
            self._counters,
            self._failures.tell,  # not a method of ours: the cycle would keep a closed cache alive
        )

    @property
    def folder(self) -> str:
        """The absolute path of the folder."""
        return self._folder_path

    @property
    def closed(self) -> bool:
        """Whether ``aclose`` was called."""
        return self._closed

    async def __aenter__(self) -> Self:
        """Look into the folder, in a worker, so that ``statistics`` tells what it holds."""
        if self._closed or self._forks != Forks.count:
            return self
        workers = self._running_workers()
        try:
            await workers.run(workers.control, self._objects.enter, on_cancel=OnCancel.WAIT)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise
        return self

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

        Opening sends one request: for the state of the object (HEAD), or, where nothing was cached
        under its address, for its first block (GET), which tells the state as well. Opening does
        not wait for the block; a read of it does.

        Args:
            source: a URL, or a source such as ``ObstoreSource`` or ``FsspecSource``.
            validator: what tells one state of the object from another: its ETag; its time of
                modification; or nothing, for objects that never change under their name.
            version: the version to read, in a bucket that keeps versions.
            offline: whether to open the object without asking the store, in the state in which it
                was opened last. Reads of blocks that are not cached still go to the store.
            prewarm: whether to fetch the whole object before returning.
            read_ahead: whether to fetch ahead of sequential reads, and the first block ahead of the
                first read.
            hub: a hub whose worker threads read blocks that are cached but not in memory.
        Returns:
            An object to use with ``async with``, or to ``await`` for a snapshot to ``aclose``.
        Raises:
            FileNotFoundError: if there is no such object; offline, if nothing of it is cached.
            PermissionError: if the store refuses access.
            UnsupportedError: if the server sends no validator, or the folder cannot be a cache: it
                holds other files, or is on a network file system.
            RemoteError: if the request to the store fails.
        Cancellation: nothing is left open; nobody waits for a request under way.
        """
        if validator not in VALIDATORS:
            raise ValueError(f"validator is {validator!r}: use one of {VALIDATORS}")
        asked = Asked(
            _check_source(source),
            validator,
            None if version is None else check_kind(version, str, "version", "give a str"),
            flag(offline, "offline"),
            flag(prewarm, "prewarm"),
            flag(read_ahead, "read_ahead"),
            None if hub is None else check_kind(hub, Hub, "hub", "pass an aiommap.Hub"),
        )
        return Opening(partial(self._open, asked, RemoteSnapshot))

    def follow(
        self,
        source: str | RemoteSource,
        *,
        poll_interval: float = 10.0,
        pointer: bool = False,
        prewarm: Literal["hot", "all", "none"] = "hot",
        validate: Callable[[RemoteSnapshot], Awaitable[object]] | None = None,
        load: Callable[[RemoteSnapshot], Awaitable[object]] | None = None,
        on_error: Callable[[Exception], object] | None = None,
    ) -> Opening[LiveRemoteSnapshot]:
        """Follow an object that is overwritten: ``async with cache.follow(url) as live``.

        The cache polls the store by a request that the store answers without a body while nothing
        has changed. All who follow the same URL, or equal sources, share it. A new object is
        opened, prewarmed and validated in the background, and only then becomes ``live.current``.
        If one of these steps fails, the failure goes to ``on_error``, and the object in service
        stays in service.

        Args:
            source: as for ``open``.
            poll_interval: seconds between two requests; the shortest counts for all who share them.
            pointer: whether the object is a pointer: a small text that names the object to serve,
                by a key beside the pointer, or by a URL. The object has to be of the pointer's own
                store: the same bucket, host or folder.
            prewarm: what is fetched of a new object before it is put in service: "hot", the ranges
                that are cached of the object in service; "all"; or "none".
            validate: an async function that gets each new snapshot, the first included. It raises
                or returns False if the snapshot must not be served.
            load: an async function that gets each snapshot that ``validate`` accepted, and returns
                the value that the program works with. That becomes ``live.value`` when the snapshot
                becomes ``live.current``.
            on_error: a sync or async function that is called on the event loop with the failure of
                each object that is not served; by default failures are logged.
        Raises:
            As ``open``, and whatever ``validate`` or ``load`` raises for the first snapshot.
        Cancellation: nothing is left open.
        """
        for called, name in ((validate, "validate"), (load, "load"), (on_error, "on_error")):
            if called is not None:
                function(called, name)
        interval = seconds(poll_interval, "poll_interval")
        if not interval > 0:
            raise ValueError(f"poll_interval is {poll_interval}: give seconds, more than 0")
        if prewarm not in _PREWARM:
            raise ValueError(f"prewarm is {prewarm!r}: use one of {_PREWARM}")
        pointed = flag(pointer, "pointer")
        asked = Followed(_check_source(source), interval, pointed, prewarm, validate, load)
        failed: Listeners[Exception] = Listeners()
        failed.add(on_error or partial(_log_unserved, _name_of(source)))
        return Opening(partial(self._follow, asked, failed))

    async def _follow(self, asked: Followed, failed: Listeners[Exception]) -> LiveRemoteSnapshot:
        workers = self._running_workers()

        async def opener(source: RemoteSource) -> RemoteGeneration:
            return await self._open(Asked(source), RemoteGeneration)

        poll = self._polls.of(asked.source)
        followed = PolledSource(asked, workers, opener, failed, self._counters, poll)

        async def trial(candidate: RemoteGeneration) -> Any:
            return await followed.examine(serving, candidate)

        follower: Follower[RemoteGeneration, Any] = Follower(followed, trial, failed)

        def serving() -> RemoteSnapshot | None:
            return follower.current if follower.number and not follower.over else None

        live = LiveRemoteSnapshot(follower)
        self._followed.add(live)
        try:
            await follower.start()
        except BaseException:
            await live.aclose()
            raise
        return live

    async def clear(self, source: str | RemoteSource | None = None) -> int:
        """Delete the cached blocks of one object, or of all; snapshots that are open stay usable.

        Blocks that a view covers stay.

        Returns:
            How many bytes of the disk are free again.
        Cancellation: withdrawn, or waited out once it has begun.
        """
        if source is not None:
            _check_source(source)
        workers = self._running_workers()
        return await workers.run(workers.control, self._objects.clear, source)

    async def verify(self) -> CacheReport:
        """Compare every cached block with its checksum, and give up those that are wrong.

        Cancellation: withdrawn, or waited out once it has begun.
        """
        workers = self._running_workers()
        return await workers.run(workers.control, self._objects.verify)

    async def entries(self) -> tuple[CacheEntry, ...]:
        """List the objects in the folder; the object that was opened last comes first.

        Cancellation: withdrawn, or waited out once it has begun.
        """
        workers = self._running_workers()
        return await workers.run(workers.control, self._objects.list)

    def statistics(self) -> CacheStatistics:
        """Return what this cache has counted; a plain call that waits for nothing."""
        entries = self._objects.entries
        return self._counters.snapshot(
            hits=sum(entry.blocks.hits for entry in entries),
            used_bytes=self._objects.used_bytes,
            max_bytes=self._max_bytes,
            open_objects=len(entries),
        )

    async def aclose(self) -> None:
        """Close every snapshot that is still open, then the cache; never waits for the network.

        Cached blocks stay in the folder, for the next cache that uses it.

        Cancellation: waited out.
        """
        self._closed = True
        if self._forks != Forks.count:
            return
        try:
            for live in [*self._followed]:
                await live.aclose()
            for snapshot in [*self._snapshots]:
                await snapshot.end()
            await self._hub.aclose()
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        """Close the folder in a worker; fetches under way keep the files that they need."""
        workers, self._workers = self._workers, None
        self._failures.workers_are(None)
        if workers is not None:
            try:
                await workers.run(workers.control, self._objects.close, on_cancel=OnCancel.WAIT)
            finally:
                workers.close()

    def _running_workers(self) -> Workers:
        """Return the threads of requests; made on first use, because they belong to one loop."""
        self._check_process()
        if self._closed:
            raise anyio.ClosedResourceError(f"the cache {self._folder_path} is closed")
        if self._workers is None:
            self._workers = Workers(self._fetchers)
            self._queue = FetchQueue(self._workers)
            self._failures.workers_are(self._workers)
        self._workers.check_loop("a cache")
        return self._workers

    def _check_process(self) -> None:
        """Raise in a forked child, before a call of the engine, which would hang there (R13)."""
        if self._forks != Forks.count:
            raise ForkedError(self._folder_path)

    async def _open(self, asked: Asked, kind: type[Kind]) -> Kind:
        workers = self._running_workers()
        hub = self._hub if asked.hub is None else asked.hub
        hub._running_workers()  # noqa: SLF001  as for any snapshot
        attempt = Attempt(partial(self._objects.find, asked), workers)
        with traced("open", _name_of(asked.source), 0, 0) as op:
            op.hop()
            found = await attempt.find()
            op.covers(found.entry.size)
            if self._closed:
                workers.start(workers.control, found.give_up, _ignore)
                raise anyio.ClosedResourceError("the cache was closed while it opened the object")
            try:
                file = await hub._admit(found.opened, found.options)  # noqa: SLF001  as above
                return await self._snapshot(asked, attempt, found, file, kind)
            except BaseException:
                workers.start(workers.control, found.entry.release, _ignore)
                raise

    async def _snapshot(
        self,
        asked: Asked,
        attempt: Attempt,
        found: Found,
        file: MappedFile,
        kind: type[Kind],
    ) -> Kind:
        entry, workers = found.entry, attempt.workers
        fetches = self._fetches.get(entry)
        if fetches is None:
            assert self._queue is not None  # made together with the workers
            fetches = Fetches(workers, self._queue, entry, self._counters)
            self._fetches[entry] = fetches
        attempt.join(fetches)
        snapshot = kind(
            file,
            entry,
            fetches,
            found.source,
            workers,
            self._counters,
            self._request_size,
            read_ahead=asked.read_ahead,
        )
        self._snapshots.add(snapshot)
        if asked.prewarm:
            try:
                await snapshot.prewarm()
            except BaseException:
                entry.use()  # the snapshot ends one use when it closes, our caller the other
                await snapshot.end()
                raise
        return snapshot

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<RemoteCache {self._folder_path}{state}>"


class _Failures:
    """Passes failures of the cache to ``on_error``, on the loop of the cache."""

    __slots__ = ("_listeners", "_workers")

    def __init__(self, listener: Callable[[Exception], object]) -> None:
        self._listeners: Listeners[Exception] = Listeners()
        self._listeners.add(listener)
        self._workers: Workers | None = None

    def workers_are(self, workers: Workers | None) -> None:
        """Set the workers by which ``tell`` reaches the loop; None if there are none."""
        self._workers = workers

    def tell(self, error: Exception) -> None:
        """Report a failure; in any thread."""
        workers = self._workers
        if workers is None:
            _log(error)
        else:
            workers.call_on_loop(partial(self._listeners.tell, error))


def _ignore(result: object, error: BaseException | None) -> None:
    """Do nothing at the end of a job that nobody waits for."""


def _share(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"min_free is {value!r}: give a share of the file system, 0 <= share < 1")
    return float(value)


def _block_size(value: object) -> int:
    number = integer(value, "block_size")
    if not MIN_BLOCK_BYTES <= number <= MAX_BLOCK_BYTES or number & (number - 1):
        raise ValueError(
            f"block_size is {number}: give a power of 2 from {MIN_BLOCK_BYTES} to {MAX_BLOCK_BYTES}"
        )
    return number


def _check_source(source: str | RemoteSource) -> str | RemoteSource:
    if isinstance(source, str | ObstoreSource | RemoteSource):
        return source
    raise TypeError(f"source is {source!r}: give a URL, or a source such as ObstoreSource")


def _name_of(source: str | RemoteSource) -> str:
    return without_secrets(source) if isinstance(source, str) else source.url


def _log(error: Exception) -> None:
    REMOTE.warning("the cache failed, and the store is read in its place: %s", error)


def _log_unserved(url: str, error: Exception) -> None:
    FOLLOWING.error("following %s met what it cannot serve: %s", url, error, exc_info=error)
