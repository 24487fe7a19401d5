"""Is one flush of 64 scattered dirty pages as fast as fdatasync alone?"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import statistics
import time

import aiommap

from ._harness import MIB, Report, heartbeat, scratch_file

PAGES = 64


async def run(report: Report, *, smoke: bool) -> None:
    """Alternate with the same stores through the standard library's mmap, and with pwrite."""
    size, rounds = (8 * MIB, 3) if smoke else (256 * MIB, 40)
    took: dict[str, list[float]] = {"flush": [], "mmap + fdatasync": [], "pwrite + fdatasync": []}
    with scratch_file(size) as path, open(path, "r+b", buffering=0) as file:
        fd = file.fileno()
        with mmap.mmap(fd, 0) as bare:
            async with aiommap.open(path, "r+") as mapped, heartbeat() as stall:
                await mapped.prewarm()
                for _ in range(rounds):
                    pages = [p * mmap.PAGESIZE for p in random.sample(range(size >> 12), PAGES)]
                    for at in pages:
                        await mapped.write(at, b"x" * 100)
                    took["flush"].append(await timed(mapped.flush()))
                    for at in pages:
                        bare[at : at + 100] = b"y" * 100
                    sync = asyncio.to_thread(os.fdatasync, fd)
                    took["mmap + fdatasync"].append(await timed(sync))
                    for at in pages:
                        os.pwrite(fd, b"z" * 100, at)
                    sync = asyncio.to_thread(os.fdatasync, fd)
                    took["pwrite + fdatasync"].append(await timed(sync))
    medians = {name: statistics.median(values) for name, values in took.items()}
    for name, value in medians.items():
        report.row(f"{PAGES} pages: {name}", value * 1e3, "ms")
    ratio = medians["mmap + fdatasync"] / medians["flush"]
    report.row("mmap + fdatasync / flush", ratio, "x", 0.95)
    report.row("pwrite + fdatasync / flush", medians["pwrite + fdatasync"] / medians["flush"], "x")
    report.row("worst stall meanwhile", stall.worst, "ms", 10, most=True)


async def timed(work: object) -> float:
    """Seconds that an awaitable takes."""
    start = time.perf_counter()
    await work  # type: ignore[misc]
    return time.perf_counter() - start
