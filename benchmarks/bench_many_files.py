"""What do ten thousand open files with a flush interval cost, idle and when some are dirty?"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import time
import tracemalloc

import aiommap
from aiommap import PAGE_SIZE, FlushPolicy, Hub, MappedFile

from ._harness import Report, heartbeat

INTERVAL = 1.0
DIRTY = 100


def make_files(folder: str, count: int) -> list[str]:
    """Create small files."""
    paths = [os.path.join(folder, str(i)) for i in range(count)]
    for path in paths:
        with open(path, "wb") as file:
            file.truncate(PAGE_SIZE)
    return paths


async def open_all(hub: Hub, paths: list[str]) -> list[MappedFile]:
    """Open them all at once, each under an interval."""
    policy = FlushPolicy.every_interval(INTERVAL)

    async def open_one(path: str) -> MappedFile:
        return await hub.open(path, "r+", flush=policy)

    return await asyncio.gather(*(open_one(path) for path in paths))


async def idle_share(seconds: float) -> float:
    """Return the share of a core that the idle process takes."""
    start = time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - start) / seconds


async def run(report: Report, *, smoke: bool) -> None:
    """Open, rest, dirty a hundred, wait until they are flushed."""
    count = 300 if smoke else 10_000
    with tempfile.TemporaryDirectory() as folder:
        paths = make_files(folder, count)
        async with aiommap.Hub() as hub:
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            files = await open_all(hub, paths)
            memory = (tracemalloc.get_traced_memory()[0] - before) / count
            tracemalloc.stop()
            report.row("Python memory a file", memory / 1024, "KiB", 8, most=True)
            gc.collect()
            gc.freeze()  # otherwise a collection walks through every file's objects, in 50 ms
            await asyncio.sleep(0.1)
            share = await idle_share(1.0 if smoke else 5.0)
            report.row("idle: share of a core", share * 100, "%", 1, most=True)
            dirty = files[:: count // DIRTY][:DIRTY]
            async with heartbeat() as stall:
                receipts = [await file.write(0, b"x") for file in dirty]
                while not all(receipt.durable for receipt in receipts):
                    await asyncio.sleep(0.01)
            flushed = sum(file.statistics().flushes for file in files)
            report.row("flushes after dirtying 100", flushed, "flushes", DIRTY, most=True)
            report.row("worst stall meanwhile", stall.worst, "ms", 10, most=True)
