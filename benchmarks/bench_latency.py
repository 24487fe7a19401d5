"""How are the latencies of single operations distributed, with 64 tasks at once?"""

from __future__ import annotations

import asyncio
import os
import random
import time

import aiofile
import aiofiles

import aiommap
from aiommap import FlushPolicy

from ._harness import MIB, Action, Report, make_cold, scratch_file

BLOCK = 4096
TASKS = 64
#: The points of the curve; most of them in the last hundredth, where a service's users notice.
SHARES = (*(i / 100 for i in range(0, 98, 2)), 0.98, 0.985, 0.99, 0.995, 0.999, 0.9995, 0.9999)


async def sample(action: Action, operations: int) -> list[float]:
    """Time each operation, spread over the tasks; return sorted times in microseconds."""
    times: list[float] = []

    async def run(first: int) -> None:
        for i in range(first, operations, TASKS):
            start = time.perf_counter()
            await action(i)
            times.append((time.perf_counter() - start) * 1e6)
            await asyncio.sleep(0)  # in a service requests come one by one, not in a tight loop

    await asyncio.gather(*(run(task) for task in range(TASKS)))
    return sorted(times)


def tell(report: Report, label: str, times: list[float]) -> None:
    """Print the quantiles, and keep the curve."""
    at = [(share, times[int(share * len(times))]) for share in SHARES]
    report.series(label, at)
    for share in (0.5, 0.99, 0.999):
        report.row(f"{label}: p{share * 100:g}", dict(at)[share], "us")


async def run(report: Report, *, smoke: bool) -> None:
    """Compare warm reads, cold reads and durable writes with aiofiles and aiofile."""
    size, count = (4 * MIB, 256) if smoke else (256 * MIB, 20_000)
    offsets = [random.randrange(size // BLOCK) * BLOCK for _ in range(count)]
    with scratch_file(size) as path:
        make_cold(path)
        async with aiommap.open(path) as f:
            times = await sample(lambda i: f.read(offsets[i], BLOCK), count)
            tell(report, "cold read, aiommap", times)
            await f.prewarm()
            times = await sample(lambda i: f.read(offsets[i], BLOCK), count)
            tell(report, "warm read, aiommap", times)
        async with aiofile.async_open(path, "rb") as caio:
            times = await sample(lambda i: caio.file.read_bytes(BLOCK, offsets[i]), count)
            tell(report, "warm read, aiofile", times)
        async with aiofiles.open(path, "rb") as slow:

            async def by_aiofiles(i: int) -> None:
                await slow.seek(offsets[i])
                await slow.read(BLOCK)

            tell(report, "warm read, aiofiles", await sample(by_aiofiles, count // 4))
        async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
            record = os.urandom(128)
            times = await sample(lambda i: f.write(offsets[i], record), count // 4)
            tell(report, "durable write, aiommap", times)
