"""How late is a heartbeat beside eight tasks that read warm pages in tight loops?"""

from __future__ import annotations

import asyncio

import aiommap

from ._harness import MIB, Report, heartbeat, scratch_file


async def run(report: Report, *, smoke: bool) -> None:
    """Eight tight loops for two seconds."""
    size = 4 * MIB if smoke else 64 * MIB
    with scratch_file(size) as path:
        async with aiommap.open(path, prewarm=True) as f, heartbeat() as stall:

            async def tight(at: int) -> None:
                while True:
                    await f.read(at % size, 4096)
                    at += 7 * 4096

            tasks = [asyncio.create_task(tight(i * 4096)) for i in range(8)]
            await asyncio.sleep(0.2 if smoke else 2)
            for task in tasks:
                task.cancel()
        report.row("worst gap beside 8 tight loops", stall.worst, "ms", 5, most=True)
