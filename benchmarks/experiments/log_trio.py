"""How fast are durable appends under trio? Beside those under asyncio, and peers under asyncio.

The multiples of ``python -m benchmarks log`` are asyncio's: there a task waits for a ``LogWait``,
and a commit wakes it at once. Under trio it waits for a future's substitute. Here all take turns,
each with a loop of its own. Run it from the root of the repository:
``python -m benchmarks.experiments.log_trio``. Compare ratios only.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time

import trio
from benchmarks._harness import rate
from benchmarks.bench_log import PEERS, RECORD, SHARE

from aiommap import FlushPolicy, Log

ROUNDS = 5
APPENDS = {1: 1500, 64: 20_000, 256: 40_000}


async def by_trio(folder: str, operations: int, tasks: int) -> float:
    """Append to a log under ``always()`` in tasks of trio; return records a second."""
    async with Log.open(f"{folder}/log", flush=FlushPolicy.always()) as log:

        async def run(count: int) -> None:
            for _ in range(count):
                await log.append(RECORD)

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(run, operations // tasks)
        return operations // tasks * tasks / (time.perf_counter() - start)


async def by_asyncio(name: str, folder: str, operations: int, tasks: int) -> float:
    """Do the same by a peer of the benchmark, or by a log, under asyncio."""
    async with PEERS[name](folder) as append:
        return await rate(append, operations, tasks)


def main() -> None:
    """Print the median rate of each, and how many times as fast the log under trio is."""
    for tasks, count in APPENDS.items():
        found: dict[str, list[float]] = {name: [] for name in ("trio", *PEERS)}
        for _ in range(ROUNDS):
            for name, rates in found.items():
                share = SHARE.get(name, 1) if tasks > 1 else 1
                operations = max(int(count * share), tasks)
                with tempfile.TemporaryDirectory() as folder:
                    if name == "trio":
                        rates.append(trio.run(by_trio, folder, operations, tasks))
                    else:
                        rates.append(asyncio.run(by_asyncio(name, folder, operations, tasks)))
        medians = {name: statistics.median(rates) for name, rates in found.items()}
        print(
            f"{tasks} tasks: a log under trio {medians.pop('trio'):,.0f} records/s, and relative to"
        )
        for name, median in medians.items():
            here = statistics.median(
                mine / other for mine, other in zip(found["trio"], found[name], strict=True)
            )
            print(f"    {name}: {here:.2f} ({median:,.0f})")


if __name__ == "__main__":
    main()
