"""Helpers that all questions use: files, cold pages, a heartbeat, timing and printing."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

MIB = 1 << 20
Action = Callable[[int], Awaitable[object]]


@dataclass
class Report:
    """Collects rows and prints them with their targets."""

    question: str
    rows: list[dict[str, object]] = field(default_factory=list)
    curves: list[dict[str, object]] = field(default_factory=list)

    def row(
        self,
        label: str,
        value: float,
        unit: str,
        target: float | None = None,
        *,
        most: bool = False,
    ) -> None:
        """Print one figure; ``most`` says that the target is an upper bound."""
        verdict = ""
        if target is not None:
            met = value <= target if most else value >= target
            verdict = f"  target {'<=' if most else '>='} {target:g}: {'PASS' if met else 'MISS'}"
        print(f"{self.question:<11} {label:<52} {value:>12.3f} {unit}{verdict}", flush=True)
        self.rows.append({"label": label, "value": value, "unit": unit, "target": target})

    def series(self, label: str, points: Sequence[tuple[float, float]]) -> None:
        """Keep a curve for the plots."""
        rounded = [(float(f"{x:.5g}"), float(f"{y:.4g}")) for x, y in points]
        self.curves.append({"label": label, "points": rounded})


@contextmanager
def scratch_file(size: int) -> Iterator[str]:
    """Make a file of random bytes, and remove it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "data")
        with open(path, "wb") as file:
            file.writelines(os.urandom(min(MIB, size - at)) for at in range(0, size, MIB))
            os.fsync(file.fileno())
        yield path


def make_cold(path: str) -> None:
    """Drop the pages of a file that no process maps."""
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def touch_memory(size: int) -> None:
    """Store to free memory and free it again, so that the host of a virtual machine backs it.

    A host may take free memory back. The first store to each page then costs many times as much,
    and it is chance which way of doing something gets such pages. Large folios are made of huge
    pages, so huge pages are touched.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        ctypes.memset(ctypes.byref(ctypes.c_char.from_buffer(memory)), 1, size)


@contextmanager
def awake() -> Iterator[None]:
    """Keep every processor awake with a process of idle priority, which gives way to all others."""
    spin = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    spinners = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


@dataclass
class Stall:
    """Delays of a heartbeat, in milliseconds: the worst, and each with its time in seconds.

    ``worst_running`` leaves out the time in which the thread waited for a processor, if the kernel
    tells that; ``worst_queued`` is that time in the worst delay.
    """

    worst: float = 0.0
    worst_queued: float = 0.0
    worst_running: float = 0.0
    beats: list[tuple[float, float]] = field(default_factory=list)

    def clear(self) -> None:
        """Forget what was found so far."""
        self.worst = self.worst_queued = self.worst_running = 0.0
        self.beats.clear()

    def curve(self, points: int = 200) -> list[tuple[float, float]]:
        """Thin the beats out, and keep the worst of each stretch."""
        step = -(-len(self.beats) // points) or 1
        stretches = (self.beats[at : at + step] for at in range(0, len(self.beats), step))
        worst = [max(stretch, key=lambda beat: beat[1]) for stretch in stretches]
        return [(seconds - worst[0][0], late) for seconds, late in worst]


@asynccontextmanager
async def heartbeat() -> AsyncIterator[Stall]:
    """Beat every millisecond and keep the worst lateness."""
    stall = Stall()

    async def beat(queued: Callable[[], float]) -> None:
        start = last = time.perf_counter()
        before = queued()
        while True:
            await asyncio.sleep(0.001)
            now, waited = time.perf_counter(), queued()
            late = max((now - last - 0.001) * 1e3, 0.0)
            if late > stall.worst:
                stall.worst, stall.worst_queued = late, min(waited - before, late)
            stall.worst_running = max(stall.worst_running, late - (waited - before))
            stall.beats.append((now - start, late))
            last, before = now, waited

    with queue_clock() as queued:
        task = asyncio.create_task(beat(queued))
        await asyncio.sleep(0.01)
        stall.clear()
        try:
            yield stall
        finally:
            await asyncio.sleep(0.002)
            task.cancel()


@contextmanager
def queue_clock() -> Iterator[Callable[[], float]]:
    """Tell for how many milliseconds this thread has waited for a processor, in all."""
    try:
        fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        yield lambda: 0.0
        return
    try:
        yield lambda: int(os.pread(fd, 100, 0).split()[1]) / 1e6
    finally:
        os.close(fd)


async def rate(action: Action, operations: int, tasks: int) -> float:
    """Run ``action(i)`` for each i below ``operations``, in tasks; return operations a second."""

    async def run(first: int) -> None:
        for i in range(first, operations, tasks):
            await action(i)

    start = time.perf_counter()
    await asyncio.gather(*(run(task) for task in range(tasks)))
    return operations / (time.perf_counter() - start)


async def compare(
    actions: dict[str, tuple[Action, int]], tasks: int, rounds: int
) -> dict[str, float]:
    """Interleave rounds of all peers, each with its own count; return the median rate of each.

    Each round draws a new order, because work that a peer leaves to the disk slows the next peer.
    """
    rates: dict[str, list[float]] = {name: [] for name in actions}
    drawn = random.Random(1)
    for _ in range(rounds):
        for name, (action, operations) in drawn.sample([*actions.items()], len(actions)):
            rates[name].append(await rate(action, operations, tasks))
    return {name: statistics.median(found) for name, found in rates.items()}
