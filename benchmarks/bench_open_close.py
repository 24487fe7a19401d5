"""How many thread hops do opening and closing take?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiommap
from aiommap._runtime import workers as _workers

from ._harness import MIB, Report, scratch_file


async def run(report: Report, *, smoke: bool) -> None:
    """Count hops of one open and close, and of a thousand at once."""
    hops = 0
    start_thread = vars(_workers)["run_in_some_thread"]

    def counted(job: Callable[[], None], tell: Callable[[], None] | None = None) -> None:
        nonlocal hops
        hops += 1
        start_thread(job, tell)

    count = 100 if smoke else 1000
    vars(_workers)["run_in_some_thread"] = counted
    try:
        with scratch_file(MIB) as path:
            async with aiommap.Hub() as hub:
                f = await hub.open(path)
                assert hops, "opening takes a thread: no hop was counted"
                report.row("hops to open one file", hops, "hops", 2, most=True)
                before = hops
                await f.aclose()
                report.row("hops to close a clean one", hops - before, "hops", 1, most=True)
                before, start = hops, time.perf_counter()

                async def open_one() -> None:
                    await hub.open(path)

                await asyncio.gather(*(open_one() for _ in range(count)))
                took = time.perf_counter() - start
                report.row(f"hops to open {count} at once", hops - before, "hops")
                report.row(f"{count} opens at once", count / took, "opens/s")
    finally:
        vars(_workers)["run_in_some_thread"] = start_thread
