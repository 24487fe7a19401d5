"""How long after ``notify`` does a task of another process go on?"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import aiommap

from ._harness import Report, scratch_file

PAGE = aiommap.PAGE_SIZE
#: Offsets of words: the one that is waited for, the time of its change, the child's round, results.
TURN, SENT, READY, FIRST = 0, 8, 16, 64

CHILD = """
import asyncio, sys, time, aiommap
path, rounds, idle = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
TURN, SENT, READY, FIRST = 0, 8, 16, 64

async def main():
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
        turn, sent, ready = f.atomic_u32(TURN), f.atomic_u64(SENT), f.atomic_u32(READY)
        found = f.atomic_u64_array(FIRST, rounds)
        others = [
            asyncio.ensure_future(f.atomic_u32(f.size - 4 * (i + 1)).wait(0)) for i in range(idle)
        ]
        await asyncio.sleep(0)
        for i in range(rounds):
            ready.store(i + 1)
            ready.notify()
            await turn.wait(i)
            found.store(i, time.monotonic_ns() - sent.load())
        ready.store(rounds + 1)
        ready.notify()
        for other in others:
            other.cancel()

asyncio.run(main())
"""


async def latencies(path: str, rounds: int, idle: int) -> list[float]:
    """Return microseconds from before the notification until the other process's task ran."""
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
        turn, sent, ready = f.atomic_u32(TURN), f.atomic_u64(SENT), f.atomic_u32(READY)
        turn.store(0)
        ready.store(0)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, path, str(rounds), str(idle)
        )
        for i in range(rounds):
            await ready.wait(i)
            await asyncio.sleep(0.001)  # the child's task is asleep by then
            sent.store(time.monotonic_ns())
            turn.store(i + 1)
            turn.notify()
        await ready.wait(rounds)
        assert await child.wait() == 0
        found = f.atomic_u64_array(FIRST, rounds)
        return sorted(found.load(i) / 1e3 for i in range(rounds))


async def run(report: Report, *, smoke: bool) -> None:
    """Wake one waiting task, alone and beside others that share its waiter thread."""
    rounds = 50 if smoke else 2000
    with scratch_file(16 * PAGE) as path:
        for idle in (0, 100):
            with open(path, "r+b") as file:
                file.write(bytes(16 * PAGE))
            found = await latencies(path, rounds, idle)
            label = f"{idle} other words waited for: "
            report.row(label + "p50", statistics.median(found), "us", 200, most=True)
            report.row(label + "p99", found[int(0.99 * len(found))], "us")
