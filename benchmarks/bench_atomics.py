"""How many times a second can one process add to a counter that others share?"""

from __future__ import annotations

import mmap
import multiprocessing
import statistics
import time
from collections.abc import Callable

import atomics

import aiommap

from ._harness import Report, scratch_file

PAGE = aiommap.PAGE_SIZE


def rate(add: Callable[[int], object], count: int) -> float:
    """Return calls a second."""
    start = time.perf_counter()
    for _ in range(count):
        add(1)
    return count / (time.perf_counter() - start)


async def run(report: Report, *, smoke: bool) -> None:
    """Compare with the atomics package and a locked multiprocessing.Value."""
    count, rounds = (5_000, 1) if smoke else (1_000_000, 5)
    value = multiprocessing.Value("Q", 0)

    def add_locked(number: int) -> None:
        with value.get_lock():
            value.value += number

    with scratch_file(PAGE) as path, open(path, "r+b") as file:
        bare = mmap.mmap(file.fileno(), PAGE)
        view = memoryview(bare)[64:72]
        async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
            with atomics.atomicview(buffer=view, atype=atomics.UINT) as theirs:
                peers: dict[str, tuple[Callable[[int], object], int]] = {
                    "aiommap": (f.atomic_u64(0).fetch_add, count),
                    "atomics": (theirs.fetch_add, count // 50),
                    "multiprocessing.Value": (add_locked, count // 5),
                }
                found: dict[str, list[float]] = {name: [] for name in peers}
                for _ in range(rounds):
                    for name, (add, times) in peers.items():
                        found[name].append(rate(add, times))
            load = f.atomic_u64(0).load
            report.row("load", rate(lambda _: load(), count), "/s")
        view.release()
        bare.close()
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for name, median in medians.items():
        report.row(f"fetch_add: {name}", median, "/s")
    ours = medians["aiommap"]
    report.row("aiommap / atomics", ours / medians["atomics"], "x", 3)
    report.row("aiommap / multiprocessing.Value", ours / medians["multiprocessing.Value"], "x", 5)
