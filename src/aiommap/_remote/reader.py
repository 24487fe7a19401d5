"""Reads of one remote snapshot that could not be answered inline."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from collections.abc import Sequence as AnySequence
from typing import SupportsIndex, TypeVar, TypeVarTuple, Unpack, cast

import anyio.lowlevel

from .._arguments import check_range, ranges_of
from .._core.file_core import FileCore
from .._native import time_slice_spent
from .._runtime.tracing import traced
from .body import Body
from .counters import Counters
from .entry import Entry
from .fetches import Fetch, Fetches
from .fetching import TIGHT_REQUESTS, ReadAhead, Run, requests_ahead
from .sequence import Sequence
from .source import RemoteSource

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: The largest range that the loop thread copies from a response (I2).
MAX_INLINE_COPY = 64 << 10
#: How many items a loop handles before it checks whether it has to give way.
YIELD_EVERY = 64
#: How many fetches of one prewarm are under way at once.
PREWARM_REQUESTS = 4


class RemoteReader:
    """Finds bytes in memory, on the disk or in the store, and puts them together.

    Args:
        core: the core of the data file, which is mapped.
        entry, fetches: the object, and its fetches.
        source: what fetches the blocks that are not cached.
        counters: the counters of the cache.
        ahead: decides what to fetch ahead; None to fetch nothing ahead.
    """

    __slots__ = (
        "_ahead",
        "_core",
        "_counters",
        "_entry",
        "_fetches",
        "_inline",
        "_mapping",
        "_sequence",
        "source",
    )

    def __init__(
        self,
        core: FileCore,
        entry: Entry,
        fetches: Fetches,
        source: RemoteSource,
        counters: Counters,
        ahead: ReadAhead | None,
    ) -> None:
        self._core = core
        self._mapping = core.mapping
        self._entry = entry
        self._fetches = fetches
        self._counters = counters
        self._ahead = ahead
        self._inline = entry.blocks.read_inline
        self._sequence = Sequence(entry.bytes_of)
        self.source: RemoteSource = source

    async def read(
        self,
        offset: SupportsIndex,
        length: SupportsIndex,
        sequence: Sequence | None = None,
    ) -> bytes:
        """Read a range for which the inline read returned None.

        Args:
            sequence: of a reader that fetches ahead by itself; None for a read of any caller.
        """
        core = self._core
        if time_slice_spent() and await core.workers.checkpoint_if_due():
            data = self._inline(self._mapping, offset, length)
            if data is not None:
                return data
        core.check_usable()
        start, count = check_range(offset, length, self._entry.size)
        plain = start is offset and count is length
        data = None if plain else self._inline(self._mapping, start, count)
        if data is not None or not count:
            return data or b""
        with traced("read", self._entry.identity.url, start, count) as op:
            op.hop()
            return await self._find(start, count, sequence)

    async def read_many(self, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        """Read several ranges; begin all fetches before waiting for the first."""
        core = self._core
        core.check_usable()
        checked: list[tuple[int, int]] = []
        for offset, length in ranges_of(ranges):
            checked.append(check_range(offset, length, self._entry.size))
            if not len(checked) % YIELD_EVERY:
                await core.workers.checkpoint_if_due()
        found: list[bytes | None] = []
        for start, count in checked:
            data = self._inline(self._mapping, start, count)
            if data is None and await core.workers.checkpoint_if_due():
                data = self._inline(self._mapping, start, count)
            found.append(data)
        rest = [at for at, data in enumerate(found) if data is None]
        if rest:
            core.check_usable()
            fetches = self._begin([checked[at] for at in rest])
            bodies = [body for fetch in fetches for body in await fetch.wait()]
            for at in rest:
                found[at] = await self._find(*checked[at], None, bodies)
        return [data for data in found if data is not None]

    def _begin(self, ranges: AnySequence[tuple[int, int]]) -> list[Fetch]:
        """Begin to fetch what is missing of several ranges."""
        runs = [run for start, count in ranges for run in self._entry.uncovered(start, count, [])]
        if not runs:
            return []
        self._counters.add(misses=1)
        return self._fetches.begin(self.source, runs)

    async def _find(
        self,
        start: int,
        count: int,
        sequence: Sequence | None,
        known: Iterable[Body] = (),
    ) -> bytes:
        """Return a range that is not empty, from the cache, from responses, or from both."""
        ahead = None
        if sequence is None:
            sequence = self._sequence
            sequence.advance(start, start + count)
            if self._ahead is not None:
                ahead = self._ahead.read(start, count)
        fetched = list(known)
        missed = False
        while True:
            bodies = fetched + sequence.bodies(start, start + count)
            data = _copy_small(start, count, bodies)
            if data is not None:
                return data
            self._core.check_usable()
            runs = self._entry.uncovered(start, count, bodies)
            fetches = self._fetches.begin(self.source, runs)
            if ahead is not None and self.requests_ahead:
                self.fetch_ahead(ahead, sequence)  # behind the fetches that this task waits for
            ahead = None
            if not fetches:
                data = self._inline(self._mapping, start, count)
                if data is None:
                    data = await self.in_worker(self._entry.collect, start, count, bodies)
                    self._counters.add(hits=int(data is not None and not missed))
                if data is not None:
                    return data
                continue
            self._counters.add(misses=int(not missed))
            missed = True
            for fetch in fetches:
                fetched += await fetch.wait()
            sequence.keep(fetched, stored=self._is_tight)

    async def read_in(self, sequence: Sequence, offset: int, length: int) -> bytes:
        """Read bytes, for a reader that has a sequence of its own."""
        data = self._inline(self._mapping, offset, length)
        return await self.read(offset, length, sequence) if data is None else data

    def new_sequence(self) -> Sequence:
        """Return what keeps the responses that one more reader still needs."""
        return Sequence(self._entry.bytes_of)

    @property
    def requests_ahead(self) -> int:
        """For how many requests ahead of a reader the cache has room now."""
        entry = self._entry
        return requests_ahead(entry.most_bytes, entry.request_bytes) if entry.keeps else 0

    @property
    def _is_tight(self) -> bool:
        """Whether what the cache stores may be gone before a sequential reader comes to it."""
        entry = self._entry
        return not entry.keeps or entry.most_bytes < TIGHT_REQUESTS * entry.request_bytes

    def fetch_ahead(self, range_: Run, sequence: Sequence) -> None:
        """Begin to fetch a range of bytes that no task waits for yet.

        The sequence keeps what is not stored, and all of it if the cache is small.
        """
        runs = self._entry.uncovered(range_[0], range_[1] - range_[0], [])
        sequence.expect(self._fetches.begin(self.source, runs, wanted=self._is_tight))

    def expect(self, fetch: Fetch | None) -> None:
        """Keep what a fetch brings for the first read, if it cannot be stored."""
        if fetch is not None:
            self._sequence.expect([fetch])

    async def in_worker(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Call a function that reads the files in a worker of the hub; keep them open for it."""
        entry, workers = self._entry, self._core.workers
        workers.check_loop()
        done = workers.event()
        outcome: list[tuple[T | None, BaseException | None]] = []

        def run() -> T:
            try:
                return function(*args)
            finally:
                entry.release()

        def end(result: T | None, error: BaseException | None) -> None:
            outcome.append((result, error))
            done.set()

        entry.use()
        # Not ``workers.run``: that may withdraw the job, and then nobody would end the use.
        workers.start(workers.reads, run, end)
        await done.wait()
        result, error = outcome.pop()
        if error is not None:
            raise error
        return cast("T", result)

    async def fill(
        self, start: int, count: int, progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Fetch what is missing of a range, and store it if there is room."""
        entry, under_way = self._entry, list[Fetch]()
        runs = entry.uncovered(start, count, [])
        done = count - sum(entry.length_of(run, start, count) for run in runs)
        for request in entry.requests(runs):
            if progress is not None:
                progress(done, count)
            if len(under_way) >= PREWARM_REQUESTS:
                done += await self._wait_first(under_way, start, count)
            self._core.check_usable()
            under_way += self._fetches.begin(self.source, [request])
        while under_way:
            done += await self._wait_first(under_way, start, count)
            if progress is not None:
                progress(min(done, count), count)

    async def _wait_first(self, under_way: list[Fetch], start: int, count: int) -> int:
        fetch = under_way.pop(0)
        await fetch.wait()
        return self._entry.length_of(fetch.run, start, count)

    def read_here(self, start: int, count: int) -> bytes:
        """Read in the calling thread, which may wait; fetch what is missing in it, too."""
        self._entry.use()
        try:
            bodies: list[Body] = []
            missed = False
            while True:
                runs = self._entry.uncovered(start, count, bodies)
                if not runs:
                    data = self._entry.collect(start, count, bodies)
                    if data is not None:
                        self._counters.add(hits=int(not missed))
                        return data
                self._counters.add(misses=int(bool(runs) and not missed))
                missed = missed or bool(runs)
                for run in self._entry.requests(runs):
                    bodies += self._entry.fetch(self.source, *run)
        finally:
            self._entry.release()

    async def check_stored(self, start: int, count: int) -> None:
        """Raise if some of a range is not in the cache.

        Raises:
            OSError: ENOSPC: ``fill`` has fetched the range, so the cache had no room to store it.
        """
        await anyio.lowlevel.checkpoint()
        if self._entry.uncovered(start, count, []):
            why = await self.in_worker(self._entry.why_not_kept, count)
            raise OSError(
                errno.ENOSPC,
                f"the cache cannot keep bytes [{start}, {start + count}): {why}. read_exact reads "
                "them without keeping them",
                self._entry.identity.url,
            )


def _copy_small(start: int, count: int, bodies: AnySequence[Body]) -> bytes | None:
    """Copy a small range that lies in one body; None if it is large, or lies in none."""
    if count > MAX_INLINE_COPY:
        return None
    for body in bodies:
        if body.start <= start and start + count <= body.end:
            return bytes(body.part(start, start + count))
    return None
