"""Reads of one remote snapshot that the inline way did not answer."""

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

#: Up to here a range is copied out of a response on the loop thread (I2).
MAX_INLINE_COPY = 64 << 10
#: After so many items a loop looks whether it has to give way.
YIELD_EVERY = 64
#: How many fetches of one prewarm are under way at once.
PREWARM_REQUESTS = 4


class RemoteReader:
    """Finds bytes: in memory, on the disk, or in the store; and puts them together.

    Args:
        core: of the data file, as it is mapped.
        entry, fetches: the object.
        source: where the rest of it is.
        ahead: fetches ahead of reads that follow one another; None not to.
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
        """Read after the inline way answered None."""
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
        """Read ranges: what is missing of all of them is fetched at once."""
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
        """Return a range that is not empty, out of the cache, of responses, or of both."""
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
            self.fetch_ahead(ahead)  # behind what is waited for
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
        """Begin to fetch a range of bytes that nobody waits for yet."""
        if wanted is not None:
            runs = self._entry.uncovered(wanted[0], wanted[1] - wanted[0], [])
            self._fetches.begin(self.source, runs)

    async def in_worker(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Call what reads the files in a worker of the hub, and keep them open for as long."""
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
        # Not ``run``, which may withdraw it: then nobody would end the use.
        workers.start(workers.reads, run, end)
        await done.wait()
        result, error = outcome.pop()
        if error is not None:
            raise error
        return cast("T", result)

    async def fill(
        self, start: int, count: int, progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Have what is missing of a range fetched, and stored if there is room."""
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
        """Read in the calling thread, which may wait, and fetch there what is missing."""
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
        """Raise if the cache has no room for a range.

        Raises:
            OSError: ENOSPC.
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
    """Copy a small range that lies in one response."""
    if count > MAX_INLINE_COPY:
        return None
    for body in bodies:
        if body.start <= start and start + count <= body.end:
            return bytes(body.part(start, start + count))
    return None
