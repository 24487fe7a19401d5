"""Remote snapshots: immutable objects, read through the cache.

Invariants.
  1  Bytes that a read returns came in a response about the object that was opened, or from a block
     that was PRESENT from before the copy until after it (R2, R4).
  2  While there is a hold on the snapshot, its files are open: ``aclose`` refuses new holds, and
     the end of the last one closes the files.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar, NoReturn, Self, SupportsIndex

import anyio.lowlevel
from anyio.abc import AsyncResource

from .._arguments import at_least, check_tail
from .._file.mapped_file import MappedFile
from .._file.view import View
from .._runtime.callbacks import when_garbage
from .._runtime.event_loop import Event
from .._runtime.workers import OnCancel, Workers
from .._snapshot.holds import Holds
from .counters import Counters
from .entry import Entry
from .fetches import Fetches
from .fetching import ReadAhead, overlap, requests_ahead
from .leases import LockFile
from .reader import RemoteReader
from .remote_file import RemoteSnapshotFile
from .source import RemoteSource, RemoteState
from .statistics import RemoteResidency

#: How long a view waits for an evictor that has locked one of its blocks, and how often it tries.
PIN_SECONDS = 2.0
PIN_LOOK_SECONDS = 0.005
#: How many words of blocks one call reads.
WORDS_A_CALL = 1 << 16


class RemoteSnapshot(AsyncResource):
    """An immutable object of a store, read through a local mapped cache; a ``StorageBackend``.

    ``RemoteCache.open`` makes one. It is the object as it was when it was opened, whatever is
    written to its name later: every response is compared with that state. After the object was
    overwritten, a store that keeps versions still serves all of it. From other stores you can read
    the blocks that are cached, and a read of any other block raises ``StaleSnapshotError``.

    Concurrency: for tasks of the event loop in which it was opened. A read waits for another read
        only if that one is fetching a block that both need.
    """

    #: Whether many tasks share it, so that it is closed only as garbage.
    _shared: ClassVar[bool] = False

    __slots__ = (
        "__weakref__",
        "_closer",
        "_core",
        "_counters",
        "_entry",
        "_file",
        "_holds",
        "_mapping",
        "_read_inline",
        "_reader",
        "_request_size",
        "_size",
        "_workers",
    )

    def __init__(
        self,
        file: MappedFile,
        entry: Entry,
        fetches: Fetches,
        source: RemoteSource,
        workers: Workers,
        counters: Counters,
        request_size: int,
        *,
        read_ahead: bool = True,
    ) -> None:
        self._file = file
        self._core = file._core  # noqa: SLF001  a snapshot is made of its file
        self._mapping = self._core.mapping
        self._entry = entry
        self._read_inline = entry.blocks.read_inline
        self._size = entry.size
        self._workers = workers
        self._counters = counters
        self._request_size = request_size
        most = requests_ahead(entry.most_bytes, request_size)
        ahead = ReadAhead(entry.size, request_size, most) if read_ahead else None
        self._reader = RemoteReader(self._core, entry, fetches, source, counters, ahead)
        self._reader.expect(fetches.take_begun())
        self._holds = Holds()
        self._closer = Closer(file, entry, workers)
        when_garbage(self, self._closer.start_in_any_thread)

    @property
    def url(self) -> str:
        """The address of the object, without user, password and query."""
        return self._entry.identity.url

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self._size

    @property
    def etag(self) -> str | None:
        """The ETag that every response is compared with; None if the validator is another one."""
        identity = self._entry.identity
        return identity.state.etag if identity.validator == "etag" else None

    @property
    def version(self) -> str | None:
        """The version of the object, in a bucket that keeps versions; else None."""
        return self._entry.identity.state.version

    @property
    def closed(self) -> bool:
        """Whether it is closed; False after ``aclose`` while there is still a hold on it."""
        return self._file.closed

    def __len__(self) -> int:
        return self._size

    async def read_exact(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read bytes: all of them, or an error.

        The loop thread reads blocks that are cached and in memory, at once. Blocks that are not
        cached are fetched and stored; tasks that need the same block wait for one fetch.

        Args:
            offset: first byte, from the start of the object; 0 <= offset <= size.
            length: number of bytes; offset + length <= size.
        Returns:
            Exactly ``length`` bytes.
        Raises:
            OutOfBoundsError: if [offset, offset + length) leaves the object.
            StaleSnapshotError: if the object was changed or is gone, and these bytes are not all
                cached.
            RemoteError: if the store cannot be reached, or its response does not fit the request.
            PermissionError: if the store refuses access.
            anyio.ClosedResourceError: if the snapshot is closed.
            ForkedError: if it was opened by another process.
        Cancellation: delivered at once; a fetch under way goes on, and its blocks are stored.
        """
        data = self._read_inline(self._mapping, offset, length)
        if data is not None:
            return data
        return await self._reader.read(offset, length)

    async def read_many(self, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        """Read several ranges, each (offset, length), in the order given.

        All blocks that are missing are requested at once.

        Raises, Cancellation: as ``read_exact``.
        """
        return await self._reader.read_many(ranges)

    def chunks(self, size: SupportsIndex = 1 << 20) -> AsyncIterator[bytes]:
        """Iterate over the whole object: ``async for chunk in s.chunks(1 << 20)``.

        While you work with one chunk, the next ones are being fetched.

        Args:
            size: bytes of a chunk; the last one may be shorter.
        Raises:
            ValueError: if the size is not positive.
            As ``read_exact``, while iterating.
        """
        self._core.check_usable()
        count = at_least(1, size, "size", "ask for at least 1 byte a chunk")
        return _Chunks(self, self._reader, count, self._entry.request_bytes)

    async def prewarm(
        self,
        offset: SupportsIndex = 0,
        length: SupportsIndex | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Fetch what is not cached of a range; by default of the whole object.

        Args:
            offset: first byte of the range.
            length: number of bytes; None for all up to the end.
            progress: called on the loop with (bytes done, bytes in total).
        Returns:
            How many bytes of the range are cached now; fewer than ``length`` if there is no room.
        Raises, Cancellation: as ``read_exact``.
        """
        self._core.check_usable()
        start, count = check_tail(offset, length, self._size)
        await self._reader.fill(start, count, progress)
        return await self._reader.in_worker(self._cached_bytes, start, count)

    def _cached_bytes(self, start: int, count: int) -> int:
        return sum(end - low for low, end in self._cached_runs(start, count))

    def _cached_runs(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of bytes that the cache has. Worker threads only."""
        entry = self._entry
        if entry.lost:
            return
        first, end = entry.range_of(start, count)
        for low in range(first, end, WORDS_A_CALL):
            for run in entry.blocks.present(low, min(end, low + WORDS_A_CALL)):
                shared = overlap(entry.bytes_of(*run), (start, start + count))
                if shared is not None:
                    yield shared

    async def view(self, offset: SupportsIndex = 0, length: SupportsIndex | None = None) -> View:
        """Make a read-only view of a range: fetch it, and keep it cached while the view lives.

        Raises:
            OSError: ENOSPC if the cache has no room for all of it.
            Others as ``read_exact``.
        Cancellation: as ``read_exact``.
        """
        self._core.check_usable()
        start, count = check_tail(offset, length, self._size)
        pin = _Pin(self._workers)
        if count:
            pin.keep(await self._reader.in_worker(self._lock, start, count))
        with self.hold():
            await self._reader.fill(start, count)
            await self._reader.check_stored(start, count)
            await self._file.prewarm(start, count)
            opened = self._file._open  # noqa: SLF001  a snapshot is made of its file
            return View(opened, start, count, keeps=self, anchor=pin)

    def _lock(self, start: int, count: int) -> LockFile:
        """Lock the blocks of a range, so that they are not evicted (R5). Worker threads only."""
        low, end = self._entry.bytes_of(*self._entry.range_of(start, count))
        pin = LockFile(f"/proc/self/fd/{self._entry.data_fd}")
        give_up = time.monotonic() + PIN_SECONDS
        while not pin.try_lock(low, end - low, shared=True):
            if time.monotonic() > give_up:
                pin.close()
                raise TimeoutError(f"{self.url}: somebody keeps blocks of the cache locked")
            time.sleep(PIN_LOOK_SECONDS)
        return pin

    async def residency(self) -> RemoteResidency:
        """Return which bytes are cached, which of those are in memory, and how many are in neither.

        Raises:
            UnsupportedError: if the kernel does not tell what is in memory.
            anyio.ClosedResourceError, ForkedError: as ``read_exact``.
        """
        self._core.check_usable()
        found = await self._reader.in_worker(lambda: tuple(self._cached_runs(0, self._size)))
        runs = _joined(found)
        memory = await self._file.residency()
        resident = tuple(
            shared for run in runs for other in memory.runs if (shared := overlap(run, other))
        )
        cached = sum(end - start for start, end in runs)
        in_memory = sum(end - start for start, end in resident)
        return RemoteResidency(self._size, cached, in_memory, self._size - cached, runs, resident)

    async def verify(self) -> None:
        """Ask the store (HEAD) whether the object is still the one that was opened.

        Raises:
            StaleSnapshotError: if it was changed or is gone. A snapshot of a version asks for that
                version, so overwriting the object does not matter to it.
            RemoteError, PermissionError: as ``read_exact``.
        Cancellation: delivered at once; nobody waits for the request.
        """
        self._core.check_usable()
        await self._ask(self._entry.verify, self._reader.source)

    @property
    def state(self) -> RemoteState:
        """What the store said of the object when it was opened."""
        return self._entry.identity.state

    async def prewarm_like(self, other: RemoteSnapshot) -> None:
        """Fetch the ranges that are cached of another snapshot."""
        runs = await other._reader.in_worker(lambda: _joined(other._cached_runs(0, other.size)))
        for start, end in runs:
            low, high = min(start, self._size), min(end, self._size)
            await self._reader.fill(low, high - low)

    async def _ask(self, function: Callable[[RemoteSource], None], source: RemoteSource) -> None:
        """Call a function that sends a request, in a worker of the cache (R10)."""
        await self._workers.run(self._workers.reads, function, source, on_cancel=OnCancel.ABANDON)

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """Keep the snapshot open for a block, even if it is closed meanwhile: ``with s.hold():``.

        Do not await ``aclose`` inside the block: it waits for the block to end.

        Raises:
            anyio.ClosedResourceError: if ``aclose`` was called.
        Concurrency: for the thread of the event loop; there may be any number of holds at a time.
        """
        self._take_hold()
        try:
            yield self
        finally:
            self._release_hold()

    def _take_hold(self) -> None:
        self._core.check_usable()
        self._holds.take(self.url)

    def _release_hold(self) -> None:
        """End a hold; after ``aclose`` the end of the last one closes the files, in a worker."""
        if self._holds.release():
            self._closer.start()

    def file(self) -> RemoteSnapshotFile:
        """Make a binary file object over the snapshot, for pandas, pyarrow, zarr and the like.

        The file holds the snapshot until it is closed. Read it in worker threads: a read fetches in
        the thread that reads.

        Raises:
            anyio.ClosedResourceError: if ``aclose`` was called.
        """
        self._take_hold()
        return RemoteSnapshotFile(self._core, self._reader, self.url, self._release_hold)

    async def aclose(self) -> None:
        """Close as soon as there is no hold on the snapshot; never waits for the network.

        Views keep their pages. A second call waits like the first.

        Cancellation: ends the wait for holds; the end of the last one closes the snapshot anyway.
        """
        self._holds.refuse()
        if not self.closed and not self._mapping.forked:
            await self._holds.wait_ended()
        await self.end()

    async def end(self) -> None:
        """Close now, even if there are holds."""
        self._holds.refuse()
        await self._closer.aclose()

    def __del__(self) -> None:
        # Missing when __init__ failed.
        closer = getattr(self, "_closer", None)
        if closer is not None and not (closer.started or self._shared or self._mapping.forked):
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be copied or pickled: pass its URL, and open that again")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._size} bytes"
        return f"<RemoteSnapshot {self.url} {state}>"


class SharedSnapshot(RemoteSnapshot):
    """A snapshot that many tasks share; it is closed when nothing refers to it."""

    __slots__ = ()
    _shared = True

    async def aclose(self) -> None:
        """Do nothing but give way: other tasks may be reading. ``async with`` is allowed."""
        await anyio.lowlevel.checkpoint()


class Closer:
    """Closes what a snapshot keeps open; does not refer to the snapshot, which may be garbage."""

    __slots__ = ("_entry", "_file", "_released", "_workers", "started")

    def __init__(self, file: MappedFile, entry: Entry, workers: Workers) -> None:
        self._file = file
        self._entry = entry
        self._workers = workers
        self._released: Event | None = None
        self.started: bool = False

    @property
    def is_closed(self) -> bool:
        """Whether the file is closed."""
        return self._file.closed

    def start(self) -> None:
        """Begin to close; a second call does nothing. The last user of the files closes them."""
        if self.started or self._workers.forked:
            return
        self.started = True
        self._released = released = self._workers.event()
        self._file._open.start_closing_unasked()  # noqa: SLF001  a snapshot is made of its file
        self._workers.start(self._workers.control, self._entry.release, lambda *_: released.set())

    def start_in_any_thread(self) -> None:
        """Begin to close when the snapshot is garbage; in any thread, at any moment."""
        if not self.started and not self._workers.forked:
            self._workers.call_from_thread(self.start)

    async def aclose(self) -> None:
        """Close, and wait until the files are closed; never wait for the network."""
        self.start()
        await self._file.aclose()
        if self._released is not None:
            await self._released.wait()


class _Pin:
    """Keeps the blocks of a view locked for as long as it lives."""

    __slots__ = ("_lock", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._lock: LockFile | None = None

    def keep(self, lock: LockFile) -> None:
        """Take over a lock, to release it at the end."""
        self._lock = lock

    def __del__(self) -> None:
        """Release the lock now: whoever needs room next shall find it.

        A worker closes the descriptor, because closing the last one of a deleted file may wait.
        """
        lock, workers = self._lock, self._workers
        if lock is None:
            return
        with suppress(OSError, ValueError):  # closed by a fork
            lock.unlock(0, 0)  # up to the end

        def close() -> None:
            workers.start(workers.control, lock.close, lambda *_: None)

        if workers.forked or not workers.call_from_thread(close):
            lock.close()


class _Chunks(AsyncIterator[bytes]):
    """Iterates over a snapshot, and fetches ahead; for one task."""

    __slots__ = ("_ahead", "_offset", "_reader", "_request", "_sequence", "_size", "_snapshot")

    def __init__(
        self, snapshot: RemoteSnapshot, reader: RemoteReader, size: int, request: int
    ) -> None:
        self._snapshot = snapshot
        self._reader = reader
        self._size = size
        self._request = request
        self._sequence = reader.new_sequence()
        self._offset = 0
        self._ahead = 0

    async def __anext__(self) -> bytes:
        offset, end = self._offset, self._snapshot.size
        if offset >= end:
            raise StopAsyncIteration
        length = min(self._size, end - offset)
        self._sequence.advance(offset, offset + length)
        self._fetch_ahead(min(offset + length, end))
        data = await self._reader.read_in(self._sequence, offset, length)
        self._offset += length
        return data

    def _fetch_ahead(self, at: int) -> None:
        """Fetch ahead by whole requests: by one at least, which memory may have to keep."""
        requests = max(1, self._reader.requests_ahead)
        goal = min(self._snapshot.size, (at // self._request + requests) * self._request)
        if self._ahead < goal:
            start, self._ahead = self._ahead, goal
            self._reader.fetch_ahead((start, goal), self._sequence)


def _joined(runs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join adjacent ranges."""
    found: list[tuple[int, int]] = []
    for start, end in runs:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return tuple(found)
