"""Is a flush of 64 scattered pages as fast as 64 pwrites and an fdatasync?"""

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
                    for at in somewhere(size):
                        await mapped.write(at, b"x" * 100)
                    took["flush"].append(await timed(mapped.flush()))
                    for at in somewhere(size):
                        os.pwrite(fd, b"z" * 100, at)
                    sync = asyncio.to_thread(os.fdatasync, fd)
                    took["pwrite + fdatasync"].append(await timed(sync))
                    for at in somewhere(size):
                        bare[at : at + 100] = b"y" * 100
                    sync = asyncio.to_thread(os.fdatasync, fd)
                    took["mmap + fdatasync"].append(await timed(sync))
    medians = {name: statistics.median(values) for name, values in took.items()}
    for name, value in medians.items():
        report.row(f"{PAGES} pages: {name}", value * 1e3, "ms")
    report.row("mmap + fdatasync / flush", medians["mmap + fdatasync"] / medians["flush"], "x")
    ratio = medians["flush"] / medians["pwrite + fdatasync"]
    report.row("flush / pwrite + fdatasync", ratio, "x", 1.3, most=True)
    report.row("worst stall meanwhile", stall.worst, "ms", 10, most=True)


def somewhere(size: int) -> list[int]:
    """Draw offsets of pages."""
    return [page * mmap.PAGESIZE for page in random.sample(range(size >> 12), PAGES)]


async def timed(work: object) -> float:
    """Return how many seconds an awaitable takes."""
    start = time.perf_counter()
    await work  # type: ignore[misc]
    return time.perf_counter() - start
