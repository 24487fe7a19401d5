"""A metrics page that worker processes share: ``python examples/shared_counters.py FILE``.

Each process maps the same small file. Counters are 64-bit words in it, and counting is one machine
instruction: no lock, no message, and no count is lost when a worker is killed. A worker changes two
gauges together under an ``AsyncLock``, which tells the next holder if the worker died in between.
The page::

    0        8        64                                 128 + 8 n
    | done   | lock   | requests | errors | bytes | ...   | busy | idle |

``done`` is a 32-bit word that the parent sleeps on until every worker has finished.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import aiommap

DONE, LOCK, COUNTERS, GAUGES = 0, 8, 64, 128
NAMES = ("requests", "errors", "bytes")
BUSY, IDLE = 0, 1


class Metrics:
    """The page, as every process sees it."""

    def __init__(self, file: aiommap.MappedFile) -> None:
        self.done = file.atomic_u32(DONE)
        self.counters = file.atomic_u64_array(COUNTERS, len(NAMES))
        self._lock = aiommap.AsyncLock(file, LOCK)
        self._gauges = file.atomic_u64_array(GAUGES, 2)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter; this takes a tenth of a microsecond."""
        self.counters.fetch_add(NAMES.index(name), number)

    async def move(self, source: int, target: int) -> None:
        """Move one worker from one gauge to another, so that the sum never changes."""
        async with self._lock as lock:
            if lock.owner_died:
                print("a worker died while it moved: the gauges may be off by one")
            self._gauges.fetch_sub(source, 1)
            self._gauges.fetch_add(target, 1)

    def lines(self) -> str:
        """Show the page as text."""
        shown = {name: self.counters.load(index) for index, name in enumerate(NAMES)}
        shown |= {"busy": self._gauges.load(BUSY), "idle": self._gauges.load(IDLE)}
        return "\n".join(f"{name} {value}" for name, value in shown.items())


async def work(path: str, requests: int) -> None:
    """Serve requests, as one of several workers."""
    async with aiommap.open(path, "r+") as file:
        metrics = Metrics(file)
        await metrics.move(IDLE, BUSY)
        for number in range(requests):
            metrics.count("requests")
            metrics.count("bytes", number % 1000)
            if number % 100 == 99:
                metrics.count("errors")
        await metrics.move(BUSY, IDLE)
        metrics.done.fetch_add(1)
        metrics.done.notify()


async def serve(path: str, workers: int, requests: int) -> str:
    """Make the page, start the workers and wait until all of them are done."""
    async with aiommap.open(path, "w+", size=aiommap.PAGE_SIZE) as file:
        metrics = Metrics(file)
        file.atomic_u64_array(GAUGES, 2).store(IDLE, workers)
        command = [sys.executable, __file__, path, "--requests", str(requests), "--worker"]
        running = [await asyncio.create_subprocess_exec(*command) for _ in range(workers)]
        while (finished := metrics.done.load()) < workers:
            await metrics.done.wait(finished, timeout=30)
        for process in running:
            await process.wait()
        return metrics.lines()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(work(options.file, options.requests))
    else:
        print(asyncio.run(serve(options.file, options.workers, options.requests)))
