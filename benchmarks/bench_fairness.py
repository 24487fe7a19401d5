"""How late is a heartbeat beside eight tasks that read warm pages in tight loops?"""

from __future__ import annotations

import asyncio
import gc
import statistics

import aiommap
from aiommap import MappedFile

from ._harness import MIB, Report, heartbeat, scratch_file


async def worst_gap(f: MappedFile, seconds: float) -> float:
    """Run eight tight loops for some seconds; return the delay of the latest beat in ms."""

    async def tight(at: int) -> None:
        while True:
            await f.read(at % f.size, 4096)
            at += 7 * 4096

    gc.collect()  # so that no garbage of other questions is collected in the middle
    async with heartbeat() as stall:
        tasks = [asyncio.create_task(tight(i * 4096)) for i in range(8)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
    return stall.worst


async def run(report: Report, *, smoke: bool) -> None:
    """Report the median and the worst of five runs of two seconds."""
    size, seconds, rounds = (4 * MIB, 0.2, 1) if smoke else (64 * MIB, 2.0, 5)
    with scratch_file(size) as path:
        async with aiommap.open(path, prewarm=True) as f:
            gaps = [await worst_gap(f, seconds) for _ in range(rounds)]
    for name, gap in (("median run", statistics.median(gaps)), ("worst run", max(gaps))):
        report.row(f"worst gap beside 8 tight loops, {name}", gap, "ms", 5, most=True)
