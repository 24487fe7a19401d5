"""How long does the event loop stall beside cold reads, flushes, prewarming and closing?"""

from __future__ import annotations

import asyncio
import mmap
import statistics
from collections.abc import Awaitable, Callable
from functools import partial

import aiommap
from aiommap import FlushPolicy

from ._harness import MIB, Report, Stall, heartbeat, make_cold, scratch_file

POPULATE_READ = 22


async def beside(work: Callable[[], Awaitable[object]]) -> Stall:
    """Return the delays of the heartbeat while the work runs, without freeing its result."""
    async with heartbeat() as stall:
        result = await work()
    del result
    return stall


async def ours(path: str, size: int, dirty: int) -> dict[str, Stall]:
    """Do the four kinds of work through aiommap."""
    found = {}
    make_cold(path)
    async with aiommap.open(path) as f:
        found["cold read"] = await beside(lambda: f.read(0, size))
    make_cold(path)
    async with aiommap.open(path) as f:
        found["prewarm"] = await beside(f.prewarm)
    f = await aiommap.open(path, "r+", flush=FlushPolicy.manual())
    await f.prewarm(0, dirty, write=True)
    found["flush"] = await beside(f.flush)
    await f.prewarm(0, dirty, write=True)
    found["close"] = await beside(f.aclose)
    return found


def flush_and_close(mapping: mmap.mmap) -> None:
    """Flush and close, as a safe program does."""
    mapping.flush()
    mapping.close()


async def theirs(path: str, size: int, dirty: int) -> dict[str, Stall]:
    """Do the same work through the standard library, in one call each, in a thread."""
    found: dict[str, Stall] = {}
    for name in ("cold read", "prewarm"):
        make_cold(path)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m:
            if name == "cold read":
                found[name] = await beside(
                    partial(asyncio.to_thread, m.__getitem__, slice(0, size))
                )
            else:
                found[name] = await beside(partial(asyncio.to_thread, m.madvise, POPULATE_READ))
    for name in ("flush", "close"):
        with open(path, "r+b") as writable:
            m = mmap.mmap(writable.fileno(), 0)
            m[:dirty] = bytes(dirty)
            end = m.flush if name == "flush" else partial(flush_and_close, m)
            found[name] = await beside(partial(asyncio.to_thread, end))
    return found


async def run(report: Report, *, smoke: bool) -> None:
    """Report the median of five rounds, beside the standard library in the same run."""
    size, dirty, rounds = (8 * MIB, 4 * MIB, 1) if smoke else (512 * MIB, 256 * MIB, 5)
    with scratch_file(size) as path:
        mine = [await ours(path, size, dirty) for _ in range(rounds)]
        others = [await theirs(path, size, dirty) for _ in range(rounds)]
    for name in mine[0]:
        for who, runs in (("aiommap", mine), ("stdlib mmap in a thread", others)):
            report.series(f"{name}: {who}", runs[0][name].curve())
        a = statistics.median(found[name].worst for found in mine)
        b = statistics.median(found[name].worst for found in others)
        report.row(f"{name}: aiommap", a, "ms", 25, most=True)
        report.row(f"{name}: stdlib mmap in a thread", b, "ms")
        report.row(f"{name}: aiommap / stdlib", a / b if b else 0.0, "x", 0.1, most=True)
