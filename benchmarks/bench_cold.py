"""How fast are cold reads: by one task, by many, in a gather, on a slow device, front to back?

Pages are dropped before each round, and the file is opened for random access, so each read of 4
KiB reaches the device. The peers are caio in each of its ways (io_uring, the kernel's AIO,
threads), aiofiles, and outside of Python fio with io_uring, buffered as our reads are. A preloaded
library makes the slow device: it adds 2 ms to each pread(2).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiofiles
import caio

import aiommap
from aiommap import Advice

from ._harness import MIB, Report, heartbeat, make_cold, scratch_file

PAGE = 4096
READ = Callable[[int], Awaitable[object]]

#: Waits in each pread(2), like a device with that latency that takes any number of reads at once.
SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/types.h>
#include <time.h>
#define SLOW(name)                                                      \\
    ssize_t name(int fd, void *to, size_t length, off_t offset)         \\
    {                                                                   \\
        static ssize_t (*real)(int, void *, size_t, off_t);             \\
        if (!real)                                                      \\
            real = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, #name); \\
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, 0);           \\
        return real(fd, to, length, offset);                            \\
    }
SLOW(pread)
SLOW(pread64)
"""
SLOW_SCRIPT = """
import asyncio, sys, time
import aiommap
from benchmarks._harness import make_cold

async def main(path, counts):
    async with aiommap.open(path, advice=aiommap.Advice.RANDOM) as f:
        for tasks, count in counts:
            await f.advise(aiommap.Advice.DONT_NEED)
            make_cold(path)
            numbers = iter(range(count))

            async def run():
                for number in numbers:
                    await f.read(number * 7919 % (f.size // 4096) * 4096, 4096)

            start = time.perf_counter()
            await asyncio.gather(*(run() for _ in range(tasks)))
            print(count / (time.perf_counter() - start))

asyncio.run(main(sys.argv[1], [(1, int(sys.argv[2])), (64, int(sys.argv[3]))]))
"""


class Rounds:
    """Runs rounds of reads; each round draws new pages, and begins with a cold file."""

    def __init__(self, path: str, mapped: aiommap.MappedFile) -> None:
        self._path = path
        self._mapped = mapped
        self._pages = range(os.path.getsize(path) // PAGE)
        self._draw = random.Random(15)

    async def cold(self, count: int) -> list[int]:
        """Drop the pages, and return offsets to read."""
        await self._mapped.advise(Advice.DONT_NEED)
        await asyncio.to_thread(make_cold, self._path)
        return [page * PAGE for page in self._draw.sample(self._pages, count)]

    async def rate(self, read: READ, count: int, tasks: int) -> tuple[float, float]:
        """Read in tasks; return reads a second, and processor time for each in microseconds."""
        offsets = iter(await self.cold(count))

        async def run() -> None:
            for offset in offsets:
                await read(offset)

        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(run() for _ in range(tasks)))
        took, cpu = time.perf_counter() - start, time.process_time() - cpu
        return count / took, cpu / count * 1e6

    async def gather(self, read: READ, count: int) -> tuple[float, float]:
        """Read each page in a task of its own."""
        return await self.rate(read, count, count)

    async def many(self, count: int) -> float:
        """Read all pages in one call of ``read_many``; return reads a second."""
        ranges = [(offset, PAGE) for offset in await self.cold(count)]
        start = time.perf_counter()
        await self._mapped.read_many(ranges)
        return count / (time.perf_counter() - start)


async def run(report: Report, *, smoke: bool) -> None:
    """Compare with caio, aiofiles and fio."""
    size, rounds = (8 * MIB, 1) if smoke else (256 * MIB, 5)
    counts = {1: 20, 64: 500} if smoke else {1: 1500, 64: 20000}
    with scratch_file(size) as path:
        async with AsyncExitStack() as stack:
            mapped = await stack.enter_async_context(aiommap.open(path, advice=Advice.RANDOM))
            reads: dict[str, READ] = {"aiommap": lambda offset: mapped.read(offset, PAGE)}
            reads |= await peers(path, stack)
            cold = Rounds(path, mapped)
            await by_tasks(report, cold, reads, counts, rounds, path)
            await together(report, cold, reads, rounds, path, 100 if smoke else 1000)
            await stalls(report, cold, reads["aiommap"], 200 if smoke else 4000, rounds)
        slow_device(report, path, smoke=smoke)
    await walk(report, rounds, 8 * MIB if smoke else 512 * MIB)


async def peers(path: str, stack: AsyncExitStack) -> dict[str, READ]:
    """Open the file with other libraries; return, by name, functions that read a page."""
    reads: dict[str, READ] = {}
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for module in caio.variants_asyncio[:3]:
        context = await stack.enter_async_context(module.AsyncioContext())
        name = module.__name__.removeprefix("caio.").removesuffix("_asyncio")
        reads[f"caio {name}"] = _caio_read(context, fd)
    handle = await stack.enter_async_context(aiofiles.open(path, "rb", buffering=0))
    os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    turn = asyncio.Lock()

    async def by_aiofiles(offset: int) -> None:
        async with turn:
            await handle.seek(offset)
            await handle.read(PAGE)

    reads["aiofiles"] = by_aiofiles
    return reads


def _caio_read(context: Any, fd: int) -> READ:
    return lambda offset: context.read(PAGE, fd, offset)


def best(rates: dict[str, float]) -> float:
    """Return the best rate of caio's ways."""
    return max(rate for name, rate in rates.items() if name.startswith("caio"))


async def by_tasks(
    report: Report,
    cold: Rounds,
    reads: dict[str, READ],
    counts: dict[int, int],
    rounds: int,
    path: str,
) -> None:
    """Compare tasks that each read one page after the other."""
    for tasks, count in counts.items():
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in reads}
        by_fio = []
        for _ in range(rounds):
            for name, read in reads.items():
                few = count // 10 if name == "aiofiles" else count
                found[name].append(await cold.rate(read, few, tasks))
            await cold.cold(1)
            by_fio += await fio(path, tasks, count)
        rates = {}
        for name, pairs in found.items():
            rates[name] = statistics.median(rate for rate, _ in pairs)
            report.row(f"{tasks} tasks: {name}", rates[name], "reads/s")
            cpu = statistics.median(spent for _, spent in pairs)
            limit = 20 if (tasks, name) == (64, "aiommap") else None
            report.row(f"{tasks} tasks: {name}, CPU a read", cpu, "us", limit, most=True)
        ours = rates["aiommap"]
        report.row(
            f"{tasks} tasks: aiommap / caio", ours / best(rates), "x", {1: 0.95}.get(tasks, 1.2)
        )
        if by_fio:
            ratio = ours / statistics.median(by_fio)
            report.row(f"{tasks} tasks: aiommap / fio", ratio, "x", {64: 0.8}.get(tasks))


async def together(
    report: Report, cold: Rounds, reads: dict[str, READ], rounds: int, path: str, count: int
) -> None:
    """Compare reads that all begin at once."""
    rates = {
        name: statistics.median([(await cold.gather(read, count))[0] for _ in range(rounds)])
        for name, read in reads.items()
        if name != "aiofiles"
    }
    many = statistics.median([await cold.many(count) for _ in range(rounds)])
    for name, rate in rates.items():
        report.row(f"gather of {count}: {name}", rate, "reads/s")
    ours = rates["aiommap"]
    report.row(f"gather of {count}: aiommap / caio", ours / best(rates), "x", 1.4)
    report.row(f"read_many of {count}", many, "reads/s")
    report.row(f"gather of {count} / read_many", ours / many, "x", 0.6)
    await cold.cold(1)
    by_fio = await fio(path, 64, count * 10)
    if by_fio:
        report.row(f"read_many of {count} / fio", many / by_fio[0], "x", 0.8)


async def stalls(report: Report, cold: Rounds, read: READ, count: int, rounds: int) -> None:
    """Measure how long the loop stalls while tasks begin, and while they wait for the disk.

    Making the tasks and running each for the first time is one turn of the loop, whatever they do.
    """

    async def only_yield(_: int) -> None:
        await asyncio.sleep(0)

    label = f"gather of {count} that only yield"
    _report_stalls(report, label, [await _stall(only_yield, range(count)) for _ in range(rounds)])
    found = [await _stall(read, await cold.cold(count)) for _ in range(rounds)]
    _report_stalls(report, f"gather of {count}", found, 5)


async def _stall(action: READ, items: Sequence[int]) -> tuple[float, float]:
    """Return the worst stalls until all have begun, and afterwards, in milliseconds."""
    async with heartbeat() as stall:
        waiting = asyncio.gather(*map(action, items))
        await asyncio.sleep(0.002)
        await asyncio.sleep(0)
        begun, stall.worst = stall.worst, 0.0
        await waiting
    return begun, stall.worst


def _report_stalls(
    report: Report, label: str, found: list[tuple[float, float]], target: float | None = None
) -> None:
    begun, afterwards = map(statistics.median, zip(*found, strict=True))
    report.row(f"{label}: worst stall until all have begun, median", begun, "ms")
    report.row(f"{label}: worst stall afterwards, median", afterwards, "ms", target, most=True)


async def fio(path: str, depth: int, count: int) -> list[float]:
    """Let fio read, if it is installed; return reads a second."""
    if shutil.which("fio") is None:
        return []
    size = os.path.getsize(path)
    command = [
        *("fio", "--name=cold", f"--filename={path}", "--rw=randread", "--bs=4k", "--readonly"),
        *("--ioengine=io_uring", f"--iodepth={depth}", "--direct=0", "--invalidate=1"),
        *("--fadvise_hint=random", f"--size={size}", f"--number_ios={count}"),
        "--output-format=json",
    ]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    if done.returncode:
        return []
    return [json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["iops"]]


def slow_device(report: Report, path: str, *, smoke: bool) -> None:
    """Compare 64 tasks with one where each read takes 2 ms."""
    compiler = shutil.which("cc")
    if compiler is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "slow.so")
        command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", library, "-ldl"]
        subprocess.run(command, input=SLOW, text=True, check=True)
        counts = ("20", "200") if smoke else ("300", "12000")
        done = subprocess.run(
            [sys.executable, "-c", SLOW_SCRIPT, path, *counts],
            env={**os.environ, "LD_PRELOAD": library},
            capture_output=True,
            text=True,
            check=True,
        )
    one, many = map(float, done.stdout.split())
    report.row("2 ms a read: 1 task", one, "reads/s")
    report.row("2 ms a read: 64 tasks", many, "reads/s")
    report.row("2 ms a read: 64 tasks / 1 task", many / one, "x", 45)


async def walk(report: Report, rounds: int, size: int) -> None:
    """Read a file from its beginning to its end, beside cat."""
    ours: list[float] = []
    theirs: list[float] = []
    with scratch_file(size) as path:
        for _ in range(rounds):
            await asyncio.to_thread(make_cold, path)
            start = time.perf_counter()
            async with aiommap.open(path) as file:
                async for _chunk in file.chunks(MIB):
                    pass
            ours.append(size / (time.perf_counter() - start) / MIB)
            await asyncio.to_thread(make_cold, path)
            start = time.perf_counter()
            await asyncio.to_thread(cat, ["cat", path])
            theirs.append(size / (time.perf_counter() - start) / MIB)
    report.row("chunks of 1 MiB", statistics.median(ours), "MiB/s")
    report.row("cat", statistics.median(theirs), "MiB/s")
    report.row("chunks / cat", statistics.median(ours) / statistics.median(theirs), "x", 0.95)


def cat(command: Sequence[str]) -> None:
    """Run a command and read its output through a pipe."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while process.stdout.read(MIB):
            pass
