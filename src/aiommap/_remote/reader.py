"""Reads of one remote snapshot that could not be answered inline."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import SupportsIndex, TypeVar, TypeVarTuple, Unpack, cast

import anyio.lowlevel

from .._arguments import check_range, plain_integers, ranges_of
from .._core.file_core import FileCore
from .._runtime.tracing import traced
from .body import Body
from .counters import Counters
from .entry import Entry
from .fetches import Fetch, Fetches
from .fetching import ReadAhead, Run
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
        self.source: RemoteSource = source

    async def read(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read a range for which the inline read returned None."""
        core = self._core
        if await core.workers.checkpoint_if_due():
            data = self._inline(self._mapping, offset, length)
            if data is not None:
                return data
        core.check_usable()
        plain = plain_integers(offset, length)
        start, count = check_range(offset, length, self._entry.size)
        data = None if plain else self._inline(self._mapping, start, count)
        if data is not None or not count:
            return data or b""
        with traced("read", self._entry.identity.url, start, count) as op:
            op.hop()
            return await self._find(start, count)

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
                found[at] = await self._find(*checked[at], bodies)
        return [data for data in found if data is not None]

    def _begin(self, ranges: Sequence[tuple[int, int]]) -> list[Fetch]:
        """Begin to fetch what is missing of several ranges."""
        runs = [run for start, count in ranges for run in self._entry.uncovered(start, count, [])]
        if not runs:
            return []
        self._counters.add(misses=1)
        return self._fetches.begin(self.source, runs)

    async def _find(self, start: int, count: int, known: Sequence[Body] = ()) -> bytes:
        """Return a range that is not empty, from the cache, from responses, or from both."""
        ahead = None if self._ahead is None else self._ahead.read(start, count)
        bodies = list(known)
        missed = False
        while True:
            data = _copy_small(start, count, bodies)
            if data is not None:
                return data
            self._core.check_usable()
            runs = self._entry.uncovered(start, count, bodies)
            fetches = self._fetches.begin(self.source, runs)
            self.fetch_ahead(ahead)  # behind the fetches that this task waits for
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
                bodies += await fetch.wait()

    def fetch_ahead(self, wanted: Run | None) -> None:
        """Begin to fetch a range of bytes that no task waits for yet."""
        if wanted is not None:
            runs = self._entry.uncovered(wanted[0], wanted[1] - wanted[0], [])
            self._fetches.begin(self.source, runs)

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
            raise OSError(
                errno.ENOSPC,
                f"the cache has no room for bytes [{start}, {start + count}): read them with "
                "read_exact, or give the cache a larger max_bytes",
                self._entry.identity.url,
            )


def _copy_small(start: int, count: int, bodies: Sequence[Body]) -> bytes | None:
    """Copy a small range that lies in one body; None if it is large, or lies in none."""
    if count > MAX_INLINE_COPY:
        return None
    for body in bodies:
        if body.start <= start and start + count <= body.end:
            return bytes(body.part(start, start + count))
    return None
