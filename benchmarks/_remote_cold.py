"""How many blocks a second do many tasks read that are not cached, beside other ways to do it?"""

from __future__ import annotations

import asyncio
import os
import queue
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from aiommap.remote import ObstoreSource, RemoteState
from tests.support.internals import crc32c

from ._harness import Report, rate
from ._remote_peers import BLOCK, READ, by_fsspec, has_fsspec
from ._remote_setting import Setting, turns

Way = Callable[[Setting, Sequence[int]], Awaitable[float]]

TASKS = 64
WORKERS = 16
#: As many threads keep two processors busy if a GET takes less than a millisecond.
FEW_WORKERS = 4
#: How much longer each GET takes from a store that is far away.
FAR_SECONDS = 0.02


async def by_us(setting: Setting, offsets: Sequence[int], workers: int = WORKERS) -> float:
    async with setting.opened(workers=workers, read_ahead=False) as (_, snapshot):
        return await rate(lambda i: snapshot.read_exact(offsets[i], READ), len(offsets), TASKS)


class FarSource:
    """The object in a store that is far away."""

    def __init__(self, source: ObstoreSource) -> None:
        self._source = source
        self.url = source.url

    def stat(self, known: RemoteState | None) -> RemoteState | None:
        return self._source.stat(known)

    def fetch(self, start: int, end: int, state: RemoteState) -> tuple[Any, RemoteState]:
        time.sleep(FAR_SECONDS)
        return self._source.fetch(start, end, state)


async def by_us_from_afar(setting: Setting, offsets: Sequence[int]) -> float:
    source = FarSource(setting.source())
    async with setting.opened(source, read_ahead=False) as (_, snapshot):
        return await rate(lambda i: snapshot.read_exact(offsets[i], READ), len(offsets), TASKS)


async def by_blockcache(setting: Setting, offsets: Sequence[int]) -> float:
    with setting.fresh() as folder:
        file = await asyncio.to_thread(by_fsspec, setting.url, "blockcache", folder)

        async def read(i: int) -> None:
            await asyncio.to_thread(file.cache._fetch, offsets[i], offsets[i] + READ)

        found = await rate(read, len(offsets), TASKS)
        file.close()
        return found


async def by_threads(setting: Setting, offsets: Sequence[int], delay: float = 0.0) -> float:
    """Fetch the same blocks, each once, by as many threads: the least that a cache has to do."""
    blocks = list({offset // BLOCK for offset in offsets})
    with setting.fresh() as path, ThreadPoolExecutor(WORKERS) as pool:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        keep = partial(keep_block, setting, fd)

        async def some(first: int) -> None:
            def work() -> None:
                for block in blocks[first::WORKERS]:
                    if delay:
                        time.sleep(delay)
                    keep(block)

            await asyncio.get_running_loop().run_in_executor(pool, work)

        setting.etag  # noqa: B018  ask for it now
        found = await rate(some, WORKERS, WORKERS)
        os.close(fd)
        return found * len(offsets) / WORKERS


async def from_the_loop(setting: Setting, offsets: Sequence[int]) -> float:
    """Do the same for reads of tasks: each block goes from the loop to a thread and back."""
    fetches: dict[int, asyncio.Future[None]] = {}
    loop = asyncio.get_running_loop()
    with setting.fresh() as path, ThreadPoolExecutor(WORKERS) as pool:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)

        async def read(i: int) -> None:
            block = offsets[i] // BLOCK
            if block not in fetches:
                fetches[block] = loop.run_in_executor(pool, keep_block, setting, fd, block)
            await asyncio.shield(fetches[block])
            os.pread(fd, READ, offsets[i])

        setting.etag  # noqa: B018  ask for it now
        found = await rate(read, len(offsets), TASKS)
        os.close(fd)
        return found


async def told_together(setting: Setting, offsets: Sequence[int], workers: int = WORKERS) -> float:
    """Do that as cheaply as we know: threads that take the next block by themselves, and one call
    of the loop for all blocks that come before it runs.
    """
    fetches: dict[int, asyncio.Future[None]] = {}
    asked: queue.SimpleQueue[tuple[int, asyncio.Future[None]] | None] = queue.SimpleQueue()
    ended: deque[asyncio.Future[None]] = deque()
    called = False
    loop = asyncio.get_running_loop()

    def tell() -> None:
        nonlocal called
        called = False
        while ended:
            ended.popleft().set_result(None)

    def work(fd: int) -> None:
        nonlocal called
        while (item := asked.get()) is not None:
            keep_block(setting, fd, item[0])
            ended.append(item[1])
            if not called:
                called = True
                loop.call_soon_threadsafe(tell)

    with setting.fresh() as path, ThreadPoolExecutor(workers) as pool:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)

        async def read(i: int) -> None:
            block = offsets[i] // BLOCK
            if block not in fetches:
                fetches[block] = loop.create_future()
                asked.put((block, fetches[block]))
            await asyncio.shield(fetches[block])
            os.pread(fd, READ, offsets[i])

        setting.etag  # noqa: B018  ask for it now
        running = [loop.run_in_executor(pool, work, fd) for _ in range(workers)]
        found = await rate(read, len(offsets), TASKS)
        for _ in running:
            asked.put(None)
        await asyncio.gather(*running)
        os.close(fd)
        return found


def keep_block(setting: Setting, fd: int, block: int) -> None:
    """Fetch a block by obstore, compare state and range, write it to a file, and sum it."""
    import obstore

    start, end = block * BLOCK, min(setting.size, (block + 1) * BLOCK)
    result = obstore.get(
        setting.store, "object", options={"range": (start, end), "if_match": setting.etag}
    )
    assert (result.meta["e_tag"], tuple(result.range)) == (setting.etag, (start, end))
    data = result.bytes()
    os.pwrite(fd, data, start)
    crc32c(data)


async def at_random(report: Report, setting: Setting) -> None:
    """Measure cold reads of 4 KiB by many tasks: each block is fetched on its first use."""
    offsets = setting.offsets(setting.size // BLOCK)
    ways: dict[str, Way] = {
        "aiommap": by_us,
        "obstore, in threads": by_threads,
        "obstore, from the loop": from_the_loop,
        "obstore, from the loop, told together": told_together,
        f"aiommap, {FEW_WORKERS} workers": partial(by_us, workers=FEW_WORKERS),
        f"obstore, told together, {FEW_WORKERS} threads": partial(
            told_together, workers=FEW_WORKERS
        ),
    }
    if has_fsspec():
        ways["blockcache"] = by_blockcache
    medians = await medians_of(ways, setting, offsets)
    label = f"cold 4 KiB, {TASKS} tasks"
    for name, value in medians.items():
        report.row(f"{label}: {name}", value, "reads/s")
    if "blockcache" in medians:
        theirs = medians["blockcache"]
        ratio = medians["obstore, from the loop, told together"] / theirs
        report.row(f"{label}: obstore, told together / blockcache", ratio, "x")
        report.row(f"{label}: aiommap / blockcache", medians["aiommap"] / theirs, "x", 3)
    far: dict[str, Way] = {
        "aiommap": by_us_from_afar,
        "obstore, in threads": partial(by_threads, delay=FAR_SECONDS),
    }
    medians = await medians_of(far, setting, offsets)
    ratio = medians["aiommap"] / medians["obstore, in threads"]
    label += f", {FAR_SECONDS * 1e3:g} ms away"
    report.row(f"{label}: aiommap / obstore, in threads", ratio, "x", 0.9)


async def medians_of(
    ways: dict[str, Way], setting: Setting, offsets: Sequence[int]
) -> dict[str, float]:
    """Return how many reads a second each way makes; they take turns."""
    found: defaultdict[str, list[float]] = defaultdict(list)

    async def step(name: str) -> None:
        found[name].append(await ways[name](setting, offsets))

    for turn in turns(setting.rounds, [partial(step, name) for name in ways]):
        await turn()
    return {name: statistics.median(rates) for name, rates in found.items()}
