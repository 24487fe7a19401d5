"""How many thread hops do opening and closing take?"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio.to_thread

import aiommap

from ._harness import MIB, Report, scratch_file


async def run(report: Report, *, smoke: bool) -> None:
    """Count hops of one open and close, and of a thousand at once."""
    hops = 0
    run_sync = anyio.to_thread.run_sync

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal hops
        hops += 1
        return await run_sync(*args, **options)

    count = 100 if smoke else 1000
    anyio.to_thread.run_sync = counted  # type: ignore[assignment]
    try:
        with scratch_file(MIB) as path:
            async with aiommap.Hub() as hub:
                f = await hub.open(path)
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
        anyio.to_thread.run_sync = run_sync
