"""How many durable records a second can any program append here: C without Python, and ours.

Each way runs once a round, in a random order, on a file of its own. From the root of the
repository, on a quiet machine: ``python -m benchmarks.experiments.log_ceiling [rounds [tasks]]``;
take ratios. "asyncio over C" is the least that a program on asyncio can do: each task awaits a
future, the last task to come tells a thread of log_ceiling.c to commit by one call, and its answer
sets all futures. It knows how many tasks there are, which no library does.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from pathlib import Path

from benchmarks._harness import MIB, rate
from benchmarks.bench_log import Append, by_calls, by_log, by_places

SIZE = 96 * MIB
MILLISECONDS = 150
SYNCS = ("fdatasync", "O_DSYNC", "RWF_DSYNC", "O_DIRECT")
BLOCKS = ("reserved", "filled")
#: Ends the server of log_ceiling.c.
STOP = 1 << 32
#: Records that each of ours appends, by tasks.
RECORDS = {1: 800, 64: 25_600, 256: 51_200}
PEERS: dict[str, Callable[[str], AbstractAsyncContextManager[Append]]] = {
    "aiommap": by_log,
    "always() at places": by_places,
    "calls alone, batched by hand in Python": by_calls,
}
Measure = Callable[[], Awaitable[float]]


@contextmanager
def room(blocks: str) -> Iterator[str]:
    """Make a file that has its blocks; they were written before, or not."""
    with tempfile.NamedTemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, SIZE)
        if blocks == "filled":
            for _ in range(SIZE // MIB):
                file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())
        yield file.name


async def in_c(program: str, blocks: str, sync: str, form: str, tasks: int) -> float:
    """Let log_ceiling.c append to a new file."""
    with room(blocks) as path:
        command = [program, path, sync, form, str(tasks), str(MILLISECONDS)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
        return float(done.stdout)


async def by_peer(name: str, tasks: int) -> float:
    """Measure one of ours."""
    with tempfile.TemporaryDirectory() as folder:
        async with PEERS[name](folder) as append:
            return await rate(append, RECORDS[tasks], tasks)


async def asyncio_over_c(program: str, blocks: str, sync: str, tasks: int) -> float:
    """Have tasks await futures that the commits of log_ceiling.c set."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []
    asked, answered = os.eventfd(0), os.eventfd(0)

    def answer() -> None:
        os.eventfd_read(answered)
        group = waiting[:]
        waiting.clear()
        for future in group:
            future.set_result(None)

    async def append(_: int) -> None:
        future = loop.create_future()
        waiting.append(future)
        if len(waiting) == tasks:
            os.eventfd_write(asked, tasks)
        await future

    with room(blocks) as path:
        command = [program, path, sync, "serve", str(asked), str(answered)]
        server = subprocess.Popen(command, pass_fds=(asked, answered))
        loop.add_reader(answered, answer)
        try:
            return await rate(append, RECORDS[tasks], tasks)
        finally:
            loop.remove_reader(answered)
            os.eventfd_write(asked, STOP)
            server.wait()
            os.close(asked)
            os.close(answered)


def ways_of(program: str, tasks: int) -> dict[str, Measure]:
    """Name everything that is measured for so many tasks."""
    ways: dict[str, Measure] = {name: partial(by_peer, name, tasks) for name in PEERS}
    for blocks in BLOCKS:
        for sync in SYNCS:
            label = f"{blocks} blocks, {sync}"
            ways[f"asyncio over C, {label}"] = partial(asyncio_over_c, program, blocks, sync, tasks)
            for form in ("loop", "alone", "halves") if tasks > 1 else ("loop", "alone"):
                ways[f"C {form}, {label}"] = partial(in_c, program, blocks, sync, form, tasks)
    return ways


async def main(rounds: int, counts: Collection[int]) -> None:
    """Print the median of each way over so many rounds, for each count of tasks."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/log_ceiling"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
        for tasks in counts:
            ways = ways_of(program, tasks)
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name in random.sample(list(ways), len(ways)):
                    found[name].append(await ways[name]())
            places = statistics.median(found["always() at places"])
            for name, rates in sorted(found.items()):
                value = statistics.median(rates)
                print(f"{tasks:4} tasks: {name:42} {value:9.0f}/s {value / places:6.2f} x places")


numbers = [*map(int, sys.argv[1:])]
asyncio.run(main(numbers[0] if numbers else 5, numbers[1:] or RECORDS))
