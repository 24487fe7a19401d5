"""How many blocks a second do many tasks read that are not cached, beside other ways to do it?"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.support.internals import crc32c

from ._harness import Report, rate
from ._remote_peers import BLOCK, READ, by_fsspec, has_fsspec
from ._remote_setting import Setting, turns

TASKS = 64
WORKERS = 16


async def by_us(setting: Setting, offsets: Sequence[int]) -> float:
    async with setting.opened(read_ahead=False) as (_, snapshot):
        return await rate(lambda i: snapshot.read_exact(offsets[i], READ), len(offsets), TASKS)


async def by_blockcache(setting: Setting, offsets: Sequence[int]) -> float:
    with setting.fresh() as folder:
        file = await asyncio.to_thread(by_fsspec, setting.url, "blockcache", folder)

        async def read(i: int) -> None:
            await asyncio.to_thread(file.cache._fetch, offsets[i], offsets[i] + READ)

        found = await rate(read, len(offsets), TASKS)
        file.close()
        return found


async def by_threads(setting: Setting, offsets: Sequence[int]) -> float:
    """Fetch the same blocks, each once, by as many threads: the least that a cache has to do."""
    blocks = list({offset // BLOCK for offset in offsets})
    with setting.fresh() as path, ThreadPoolExecutor(WORKERS) as pool:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        keep = partial(keep_block, setting, fd)

        async def some(first: int) -> None:
            def work() -> None:
                for block in blocks[first::WORKERS]:
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
    ways: dict[str, Callable[[Setting, Sequence[int]], Awaitable[float]]] = {
        "aiommap": by_us,
        "obstore, in threads": by_threads,
        "obstore, from the loop": from_the_loop,
    }
    if has_fsspec():
        ways["blockcache"] = by_blockcache
    found: defaultdict[str, list[float]] = defaultdict(list)

    async def step(name: str) -> None:
        found[name].append(await ways[name](setting, offsets))

    for turn in turns(setting.rounds, [partial(step, name) for name in ways]):
        await turn()
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    label = f"cold 4 KiB, {TASKS} tasks"
    for name, value in medians.items():
        report.row(f"{label}: {name}", value, "reads/s")
    if "blockcache" in medians:
        theirs = medians["blockcache"]
        ratio = medians["obstore, from the loop"] / theirs
        report.row(f"{label}: obstore, from the loop / blockcache", ratio, "x")
        report.row(f"{label}: aiommap / blockcache", medians["aiommap"] / theirs, "x", 3)
