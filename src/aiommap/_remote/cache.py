"""The cache: a folder, the objects that are open through it, and the threads that fetch.

Invariants.
  1  An object is open once in a process, for any number of snapshots, which share its fetches.
  2  Requests have worker threads of their own: a dead server takes none from reads of files (R10).
  3  A folder that cannot be used for what it holds or where it lies is the caller's mistake, and an
     error. One that fails is a miss: objects are opened without it, and nothing is stored (R8).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import anyio
from anyio.abc import AsyncResource

from .._arguments import at_least, byte_count, check_kind, flag, function, integer, seconds
from .._core.options import OpenOptions
from .._core.paths import absolute_path
from .._errors import ForkedError, MappedFileError
from .._file.mapped_file import MappedFile
from .._hub.hub import Hub
from .._hub.opening import Opening
from .._logs import FOLLOWING, REMOTE
from .._runtime.callbacks import Listeners
from .._runtime.threads import Forks, Mutex
from .._runtime.tracing import traced
from .._runtime.workers import OnCancel, Workers
from .._snapshot.follower import Follower
from .counters import Counters
from .entry import Entry
from .eviction import FolderRoom, disk_bytes
from .fetches import Fetches
from .folder import Files, Folder, anonymous_files, default_folder
from .following import Followed, LiveRemoteSnapshot, PolledSource, RemoteGeneration
from .layout import PRESENT, SUSPECT
from .obstore import source_of_url
from .remote_snapshot import RemoteSnapshot
from .source import (
    VALIDATORS,
    ObjectIdentity,
    RemoteSource,
    VersionedSource,
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
#: How many blocks are compared with their sums in one call.
VERIFY_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class _Asked:
    """What ``open`` was asked for, checked."""

    source: str | RemoteSource
    validator: str = "etag"
    version: str | None = None
    offline: bool = False
    prewarm: bool = False
    read_ahead: bool = True
    hub: Hub | None = None


_PREWARM = ("hot", "all", "none")


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
        self._folder_path = absolute_path(default_folder() if folder is None else folder)
        self._max_bytes = byte_count(max_bytes, "max_bytes")
        self._min_free = _share(min_free)
        self._block_size = _block_size(block_size)
        reason = f"it is at least a block, of {self._block_size} bytes"
        self._request_size = at_least(self._block_size, request_size, "request_size", reason)
        self._fetchers = at_least(1, workers, "workers", "a cache needs at least 1 to fetch with")
        if on_error is not None:
            function(on_error, "on_error")
        self._errors: Listeners[Exception] = Listeners()
        self._errors.add(on_error or _log)
        self._counters = Counters()
        self._forks = Forks.count
        self._workers: Workers | None = None
        self._hub = Hub()
        self._closed = False
        self._snapshots: weakref.WeakSet[RemoteSnapshot] = weakref.WeakSet()
        self._fetches: weakref.WeakKeyDictionary[Entry, Fetches] = weakref.WeakKeyDictionary()
        self._followed: weakref.WeakSet[LiveRemoteSnapshot] = weakref.WeakSet()
        # Of worker threads, from here on, with the mutex.
        self._mutex = Mutex()
        self._folder: Folder | None = None
        self._room: FolderRoom | None = None
        self._entries: dict[tuple[str, ...], Entry] = {}

    @property
    def folder(self) -> str:
        """The absolute path of the folder."""
        return self._folder_path

    @property
    def closed(self) -> bool:
        """Whether ``aclose`` was called."""
        return self._closed

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
        Cancellation: nothing is left open; a request under way is left behind.
        """
        if validator not in VALIDATORS:
            raise ValueError(f"validator is {validator!r}: use one of {VALIDATORS}")
        asked = _Asked(
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
            load: an async function that takes each new snapshot after that, and returns what the
                program works with: it becomes ``live.value`` together with the snapshot.
            on_error: called in the background, sync or async, with the failure of an object that is
                not served; by default that is logged.
        Raises:
            As ``open``, and whatever ``validate`` or ``load`` raises for the first one.
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
            return await self._open(_Asked(source), RemoteGeneration)

        followed = PolledSource(asked, workers, opener, failed)

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
        """Give up what is cached of an object, or all of it; reads in use go on.

        Returns:
            How many bytes of the disk that gives back; what a view covers stays.
        Cancellation: waits for what has begun.
        """
        if source is not None:
            _check_source(source)
        workers = self._running_workers()
        return await workers.run(workers.control, self._clear, source)

    async def verify(self) -> CacheReport:
        """Compare every cached block with its checksum, and give up those that are wrong.

        Cancellation: waits for what has begun.
        """
        workers = self._running_workers()
        return await workers.run(workers.control, self._verify)

    async def entries(self) -> tuple[CacheEntry, ...]:
        """List what the folder holds, the object that was opened last first.

        Cancellation: waits for what has begun.
        """
        workers = self._running_workers()
        return await workers.run(workers.control, self._list)

    def statistics(self) -> CacheStatistics:
        """Say what this cache has done; a plain call that waits for nothing."""
        entries = [*self._entries.values()]
        folder = self._folder
        return self._counters.snapshot(
            hits=sum(entry.blocks.hits for entry in entries),
            used_bytes=0 if folder is None else folder.budget.seen,
            max_bytes=self._max_bytes,
            open_objects=len(entries),
        )

    async def aclose(self) -> None:
        """Close every snapshot that is still open, then the cache; never waits for the network.

        What is cached stays for the next one.

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
        """Give up the folder, in a worker; fetches under way keep what they need of it."""
        workers, self._workers = self._workers, None
        if workers is not None:
            try:
                await workers.run(workers.control, self._close_folder, on_cancel=OnCancel.WAIT)
            finally:
                workers.close()

    def _running_workers(self) -> Workers:
        """Return the threads of requests; made on first use, as they belong to the running loop."""
        self._check_process()
        if self._closed:
            raise anyio.ClosedResourceError(f"the cache {self._folder_path} is closed")
        if self._workers is None:
            self._workers = Workers(self._fetchers)
        self._workers.check_loop("a cache")
        return self._workers

    def _check_process(self) -> None:
        """Raise in a forked child, before an engine is touched that would hang there (R13)."""
        if self._forks != Forks.count:
            raise ForkedError(self._folder_path)

    async def _open(self, asked: _Asked, kind: type[Kind]) -> Kind:
        workers = self._running_workers()
        attempt = _Attempt(partial(self._find, asked))
        with traced("open", _name_of(asked.source), 0, 0) as op:
            op.hop()
            try:
                source, entry = await workers.run(
                    workers.reads, attempt.run, on_cancel=OnCancel.ABANDON
                )
            except BaseException:
                if (left := attempt.abandon()) is not None:
                    workers.start(workers.control, left.release, _ignore)
                raise
            op.covers(entry.size)
            try:
                return await self._snapshot(asked, source, entry, workers, kind)
            except BaseException:
                workers.start(workers.control, entry.release, _ignore)
                raise

    async def _snapshot(
        self,
        asked: _Asked,
        source: RemoteSource,
        entry: Entry,
        workers: Workers,
        kind: type[Kind],
    ) -> Kind:
        if self._closed:
            raise anyio.ClosedResourceError("the cache was closed while it opened the object")
        file = await _map(self._hub if asked.hub is None else asked.hub, entry)
        fetches = self._fetches.get(entry)
        if fetches is None:
            fetches = self._fetches[entry] = Fetches(workers, entry, self._counters)
        snapshot = kind(
            file,
            entry,
            fetches,
            source,
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
                entry.use()  # closing ends one use, and whoever called us the other
                await snapshot.end()
                raise
        return snapshot

    # Worker threads only, from here on.

    def _find(self, asked: _Asked) -> tuple[RemoteSource, Entry]:
        """Ask the store what the object is, and open what is cached of it."""
        source = source_of_url(asked.source) if isinstance(asked.source, str) else asked.source
        if asked.version is not None:
            source = _at_version(source, asked.version)
        if asked.offline:
            return source, self._open_entry(self._find_cached(source.url, asked))
        self._counters.add(heads=1)
        state = source.stat(None)
        assert state is not None  # there was no condition
        identity = ObjectIdentity.of(source.url, state, asked.validator)
        if state.version is not None and isinstance(source, VersionedSource):
            source = source.at_version(state.version)
        return source, self._open_entry(identity)

    def _find_cached(self, url: str, asked: _Asked) -> ObjectIdentity:
        """Find the state of an object that was opened last, of those in the folder."""
        found: list[tuple[int, ObjectIdentity]] = []

        def look(_: str, files: Files) -> None:
            identity = files.header.identity
            if identity.url == url and asked.version in (None, identity.state.version):
                found.append((files.header.opened, identity))

        self._usable_folder().each(look)
        if not found:
            raise FileNotFoundError(2, f"nothing of it is cached in {self._folder_path}", url)
        return max(found, key=lambda pair: pair[0])[1]

    def _open_entry(self, identity: ObjectIdentity) -> Entry:
        """Open an object, or share it with whoever has it open (cache.1)."""
        with self._mutex:
            known = self._entries.get(identity.key)
            if known is not None and not known.lost:
                with suppress(anyio.ClosedResourceError):
                    known.use()
                    return known
            files, room = self._open_files(identity)
            entry = Entry(
                files, room, self._counters, self._request_size, self._report, self._forget
            )
            self._entries[identity.key] = entry
            return entry

    def _forget(self, entry: Entry) -> None:
        """Take note that an object was closed."""
        key = entry.identity.key
        if self._entries.get(key) is entry:
            del self._entries[key]

    def _open_files(self, identity: ObjectIdentity) -> tuple[Files, FolderRoom | None]:
        try:
            folder = self._ready_folder()
            assert self._room is not None
            files = folder.open(identity, self._block_size, self._room.make)
            if files is not None:
                return files, self._room.use()
        except MappedFileError:
            raise
        except (OSError, ValueError) as error:  # cache.3
            self._counters.add(errors=1)
            self._report(error)
        return anonymous_files(identity, self._block_size), None

    def _usable_folder(self) -> Folder:
        with self._mutex:
            return self._ready_folder()

    def _ready_folder(self) -> Folder:
        """Return the folder, and make it anew where it was deleted; with the mutex."""
        if self._folder is not None and self._folder.budget.detached:
            assert self._room is not None
            self._room.release()  # objects that are open still use it
            self._folder = self._room = None
        if self._folder is None:
            folder = Folder(self._folder_path, self._max_bytes, self._min_free)
            self._room = FolderRoom(folder, self._counters)
            self._folder = folder
        return self._folder

    def _close_folder(self) -> None:
        with self._mutex:
            if self._room is not None:
                self._room.release()
            self._folder = self._room = None

    def _clear(self, source: str | RemoteSource | None) -> int:
        url = None if source is None else _url_of(source)
        folder = self._usable_folder()
        room, names = self._room, list[str]()
        assert room is not None

        def look(name: str, files: Files) -> None:
            if url in (None, files.header.identity.url):
                names.append(name)

        folder.each(look)
        freed = sum(room.clear(name) for name in names)
        folder.budget.recount()
        return freed

    def _verify(self) -> CacheReport:
        objects = blocks = length = bad_blocks = 0

        def compare(_: str, files: Files) -> None:
            nonlocal objects, blocks, length, bad_blocks
            objects += 1
            count, block_size = files.blocks.count, files.header.block_size
            for first in range(0, count, VERIFY_BLOCKS):
                good, bad = files.blocks.verify(first, min(count, first + VERIFY_BLOCKS))
                blocks += good + bad
                length += (good + bad) * block_size
                bad_blocks += bad
            self._counters.add(bad_blocks=bad_blocks)

        removed = self._usable_folder().each(compare)
        return CacheReport(objects, blocks, length, bad_blocks, removed)

    def _list(self) -> tuple[CacheEntry, ...]:
        found: list[CacheEntry] = []

        def look(_: str, files: Files) -> None:
            header = files.header
            found.append(
                CacheEntry(
                    header.identity.url,
                    header.identity.state,
                    header.block_size,
                    sum(_cached(files)),
                    disk_bytes(files),
                    header.opened,
                    files.map.is_locked_elsewhere(0),
                )
            )

        self._usable_folder().each(look)
        return tuple(sorted(found, key=lambda entry: -entry.opened))

    def _report(self, error: Exception) -> None:
        """Tell of a failure of the cache; in any thread."""
        workers = self._workers
        if workers is None:
            _log(error)
        else:
            workers.call_on_loop(partial(self._errors.tell, error))

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<RemoteCache {self._folder_path}{state}>"


class _Attempt:
    """An opening in a worker whose task may be gone when it is done."""

    __slots__ = ("_abandoned", "_find", "_found", "_mutex")

    def __init__(self, find: Callable[[], tuple[RemoteSource, Entry]]) -> None:
        self._find = find
        self._mutex = Mutex()
        self._abandoned = False
        self._found: Entry | None = None

    def run(self) -> tuple[RemoteSource, Entry]:
        """Find the object; in a worker."""
        source, entry = self._find()
        with self._mutex:
            abandoned = self._abandoned
            self._found = entry
        if abandoned:
            entry.release()
        return source, entry

    def abandon(self) -> Entry | None:
        """Give up what will be found; return what was, for the caller to release."""
        with self._mutex:
            self._abandoned = True
            entry, self._found = self._found, None
        return entry


async def _map(hub: Hub, entry: Entry) -> MappedFile:
    """Open the data as a file of a hub: by its name, or by its descriptor if it has none now."""
    for path in (entry.path, f"/proc/self/fd/{entry.data_fd}"):
        try:
            file = await hub._open(OpenOptions.check(path, "r"))  # noqa: SLF001  as for any snapshot
        except FileNotFoundError:
            continue
        identity = file._core.identity  # noqa: SLF001  a snapshot is made of its file
        if (identity.device, identity.inode) == entry.place:
            return file
        await file.aclose()
    raise FileNotFoundError(2, "the cached file cannot be opened again", entry.path)


def _ignore(result: object, error: BaseException | None) -> None:
    """Take note of the end of what nobody waits for."""


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
    if isinstance(source, str | RemoteSource):
        return source
    raise TypeError(f"source is {source!r}: give a URL, or a source such as ObstoreSource")


def _url_of(source: str | RemoteSource) -> str:
    return source_of_url(source).url if isinstance(source, str) else source.url


def _name_of(source: str | RemoteSource) -> str:
    return without_secrets(source) if isinstance(source, str) else source.url


def _at_version(source: RemoteSource, version: str) -> RemoteSource:
    if not isinstance(source, VersionedSource):
        raise TypeError(f"{source!r} reads no versions: give a source that is bound to one")
    return source.at_version(version)


def _cached(files: Files) -> Iterator[int]:
    """Yield the bytes of each run of blocks that can be read without a request."""
    size, block_size = files.header.identity.state.size, files.header.block_size
    for first in range(0, files.blocks.count, 1 << 16):
        states = files.blocks.states(first, min(files.blocks.count, first + (1 << 16)))
        for at, state in enumerate(states, first):
            if state in (PRESENT, SUSPECT):
                yield min(size, (at + 1) * block_size) - at * block_size


def _log(error: Exception) -> None:
    REMOTE.warning("the cache failed, and the store is read in its place: %s", error)


def _log_unserved(url: str, error: Exception) -> None:
    FOLLOWING.error("following %s met what it cannot serve: %s", url, error, exc_info=error)
