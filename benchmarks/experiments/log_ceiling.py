"""How many durable records a second can any program append here: C without Python, and ours.

Each way runs once a round, in a random order, on a file of its own. From the root of the
repository, on a quiet machine: ``python -m benchmarks.experiments.log_ceiling [rounds]``; take
ratios. "asyncio alone" is 1 or more tasks that each await a future which a callback sets, without
a disk: what the loop costs by itself. "C loop and asyncio" adds that to what the best loop in C
takes for a commit: tasks that all wait for one commit wake after it, and come again before the
next one, so the two times add up.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from benchmarks._harness import MIB, rate
from benchmarks.bench_log import Append, by_calls, by_log, by_places

SIZE = 256 * MIB
MILLISECONDS = 300
SYNCS = ("fdatasync", "O_DSYNC", "RWF_DSYNC", "O_DIRECT")
BLOCKS = ("reserved", "filled")
ALONE = "asyncio alone"
#: Records that each of ours appends, by tasks.
RECORDS = {1: 1500, 64: 40_000, 256: 100_000}
PEERS: dict[str, Callable[[str], AbstractAsyncContextManager[Append]]] = {
    "aiommap": by_log,
    "always() at places": by_places,
    "calls alone, batched by hand in Python": by_calls,
}
Measure = Callable[[], Awaitable[float]]


async def in_c(program: str, blocks: str, sync: str, form: str, tasks: int) -> float:
    """Let log_ceiling.c append to a new file that has its blocks, written before or not."""
    with tempfile.NamedTemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, SIZE)
        if blocks == "filled":
            for _ in range(SIZE // MIB // 2):
                file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())
        command = [program, file.name, sync, form, str(tasks), str(MILLISECONDS)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
        return float(done.stdout)


async def by_peer(name: str, tasks: int) -> float:
    """Measure one of ours."""
    with tempfile.TemporaryDirectory() as folder:
        async with PEERS[name](folder) as append:
            return await rate(append, RECORDS[tasks], tasks)


async def asyncio_alone(tasks: int) -> float:
    """Have tasks await futures; a callback sets all of them once each task has come."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []

    def answer() -> None:
        group = waiting[:]
        waiting.clear()
        for future in group:
            future.set_result(None)

    async def append(_: int) -> None:
        future = loop.create_future()
        waiting.append(future)
        if len(waiting) == 1:
            loop.call_soon(answer)
        await future

    return await rate(append, RECORDS[tasks], tasks)


def ways_of(program: str, tasks: int) -> dict[str, Measure]:
    """Name everything that is measured for so many tasks."""
    ways: dict[str, Measure] = {name: partial(by_peer, name, tasks) for name in PEERS}
    ways[ALONE] = partial(asyncio_alone, tasks)
    for form in ("loop", "alone", "halves") if tasks > 1 else ("loop", "alone"):
        for blocks in BLOCKS:
            for sync in SYNCS:
                label = f"C {form}, {blocks} blocks, {sync}"
                ways[label] = partial(in_c, program, blocks, sync, form, tasks)
    return ways


def summary(tasks: int, found: dict[str, float]) -> None:
    """Print the records a second of each way, and the highest that a program on a loop can make."""
    places = found["always() at places"]
    for blocks in BLOCKS:
        best = max(found[f"C loop, {blocks} blocks, {sync}"] for sync in SYNCS)
        found[f"C loop, {blocks} blocks, best"] = best
        found[f"C loop and asyncio, {blocks} blocks"] = 1 / (1 / best + 1 / found[ALONE])
    for name, value in found.items():
        print(f"{tasks:4} tasks: {name:40} {value:9.0f}/s  {value / places:5.2f} x places")


async def main(rounds: int) -> None:
    """Print the medians of each way over so many rounds."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/log_ceiling"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
        for tasks in RECORDS:
            ways = ways_of(program, tasks)
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name in random.sample(list(ways), len(ways)):
                    found[name].append(await ways[name]())
            summary(tasks, {name: statistics.median(rates) for name, rates in found.items()})


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
