"""How soon do we notice a change by others, what does watching cost, and what do storms do?"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import watchfiles

import aiommap
from aiommap._watch import scanner as _scanner

from ._harness import MIB, Report, heartbeat

Next = Callable[[], Awaitable[object]]

IN_MODIFY = 2
PAGE = mmap.PAGESIZE

#: Stores one byte for each line that it reads, and prints the time of the store.
WRITER = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
for _ in sys.stdin.buffer:
    start = time.perf_counter()
    if sys.argv[2] == "mapped":
        memory[0] = 1
    else:
        os.pwrite(fd, b"x", 0)
    print(start, flush=True)
    memory.flush()  # otherwise the next store would not fault, and not move the file's times
"""


async def latencies(path: str, wait: Next, rounds: int, how: str = "written") -> list[float]:
    """Let another process store at random times; return milliseconds until we notice."""
    command = [sys.executable, "-c", WRITER, path, how]
    found = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for _ in range(rounds):
            waiter = asyncio.ensure_future(wait())
            await asyncio.sleep(0.03 + random.random() / 50)
            writer.stdin.write(b"\n")
            writer.stdin.flush()
            await waiter
            known = time.perf_counter()  # all processes have the same clock
            found.append((known - float(writer.stdout.readline())) * 1e3)
            await asyncio.sleep(0.06)  # until the slowest peer has ended its batch of events
    return sorted(found)


async def ours(path: str, rounds: int, how: str = "written") -> list[float]:
    async with aiommap.open(path) as f, f.watch() as changes:
        return await latencies(path, lambda: anext(changes), rounds, how)


async def peers(path: str, rounds: int) -> list[float]:
    """Measure watchfiles.awatch with its defaults."""
    stop = asyncio.Event()
    stream: Any = watchfiles.awatch(os.path.dirname(path), stop_event=stop)
    batches: asyncio.Queue[object] = asyncio.Queue()

    async def collect() -> None:
        async for batch in stream:
            batches.put_nowait(batch)

    task = asyncio.create_task(collect())
    await asyncio.sleep(0.3)  # it does not say when it has begun
    found = await latencies(path, batches.get, rounds)
    stop.set()
    await task
    return found


async def raw(path: str, rounds: int) -> list[float]:
    """Measure inotify alone, which the loop reads as soon as it has an event."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    libc.inotify_add_watch(fd, os.fsencode(os.path.dirname(path)), IN_MODIFY)
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        readable = asyncio.Event()
        loop.add_reader(fd, readable.set)
        try:
            await readable.wait()
            os.read(fd, 1 << 16)
        finally:
            loop.remove_reader(fd)

    try:
        return await latencies(path, wait, rounds)
    finally:
        os.close(fd)


def quantile(found: list[float], share: float) -> float:
    return found[min(int(len(found) * share), len(found) - 1)]


async def idle_share(folder: str, count: int, seconds: float) -> float:
    """Watch many unchanging files of a hundred directories; return per cent of one core."""
    paths = []
    for i in range(count):
        directory = os.path.join(folder, str(i % 100))
        os.makedirs(directory, exist_ok=True)
        paths.append(os.path.join(directory, f"f{i}"))
        with open(paths[-1], "wb"):
            pass
    async with aiommap.Hub() as hub, AsyncExitStack() as stack:
        watcher = hub._watcher
        await asyncio.gather(
            *(stack.enter_async_context(watcher.subscribe(path)) for path in paths)
        )
        await asyncio.sleep(min(seconds, 2))
        start, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - used) / (time.perf_counter() - start) * 100


def waking_share(times: int) -> float:
    """Wake a thread as often as the watcher's, for nothing; return per cent of one core."""
    start, used = time.perf_counter(), time.thread_time()
    for _ in range(times):
        time.sleep(_scanner.STEP_SECONDS)
    return (time.thread_time() - used) / (time.perf_counter() - start) * 100


STORM = """
import os, sys, time
folder, changes = sys.argv[1], int(sys.argv[2])
fds = [os.open(os.path.join(folder, name), os.O_WRONLY) for name in sorted(os.listdir(folder))]
start = time.perf_counter()
for i in range(changes):
    os.ftruncate(fds[i % len(fds)], 1 + i // len(fds))
    ahead = start + i / 10_000 - time.perf_counter()
    if ahead > 0.001:
        time.sleep(ahead)
"""


def make(folder: str, files: int) -> list[str]:
    """Make empty files."""
    paths = [os.path.join(folder, f"{i:05}") for i in range(files)]
    for path in paths:
        with open(path, "wb"):
            pass
    return paths


async def stalls(folder: str, changes: int, tasks: Iterable[asyncio.Task[None]] = ()) -> float:
    """Return the worst stall in ms while another process makes ten thousand changes a second."""
    gc.collect()
    gc.freeze()  # otherwise a collection walks through all objects of the process, in 25 ms
    try:
        writer = subprocess.Popen([sys.executable, "-c", STORM, folder, str(changes)])
        async with heartbeat() as stall:
            await asyncio.to_thread(writer.wait)
            if tasks:
                await asyncio.wait(tasks, timeout=10)
        return stall.worst
    finally:
        gc.unfreeze()


def resident() -> float:
    """Return how many MiB of memory this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE / MIB


async def storm(folder: str, files: int, changes: int) -> tuple[float, int, float]:
    """Storm a directory that is watched: worst stall, files left behind, MiB more memory."""
    paths = make(folder, files)
    final = -(-changes // files)
    behind = set(paths)
    async with aiommap.Hub() as hub, AsyncExitStack() as stack:

        async def follow(stream: aiommap.Changes) -> None:
            async for change in stream:
                if change.new is not None and change.new.size == final:
                    behind.discard(change.path)
                    return

        subscribe = hub._watcher.subscribe
        streams = [await stack.enter_async_context(subscribe(path, buffer=4)) for path in paths]
        tasks = [asyncio.create_task(follow(stream)) for stream in streams]
        await asyncio.sleep(0.1)
        before = resident()
        worst = await stalls(folder, changes, tasks)
        for task in tasks:
            task.cancel()
        return worst, len(behind), resident() - before


async def run(report: Report, *, smoke: bool) -> None:
    """Measure latency beside peers, the cost of ten thousand idle files, and storms."""
    rounds, files, seconds = (5, 200, 0.5) if smoke else (300, 10_000, 20.0)
    with tempfile.TemporaryDirectory() as folder:
        await run_latency(report, os.path.join(folder, "file"), rounds)
    with tempfile.TemporaryDirectory() as folder:
        share = await idle_share(folder, files, seconds)
        report.row(f"idle, {files} files in 100 directories", share, "% of a core", 1, most=True)
        waking = await asyncio.to_thread(waking_share, 20 if smoke else 2000)
        report.row("a thread that only wakes as often", waking, "% of a core")
    await run_storms(report, min(files, 1000), files * 3, 1 if smoke else 5)


async def run_storms(report: Report, files: int, changes: int, rounds: int) -> None:
    """Run several storms: a virtual machine may stand still for longer than one delays the loop."""
    nobody, worst, behind, grown = [], [], 0, 0.0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            make(folder, files)
            nobody.append(await stalls(folder, changes))
        with tempfile.TemporaryDirectory() as folder:
            stall, left, more = await storm(folder, files, changes)
            worst.append(stall)
            behind, grown = behind + left, max(grown, more)
    name = "10,000 changes a second"
    report.row(f"{name}, none watched: stall", statistics.median(nobody), "ms")
    report.row(f"{name}, all watched: stall", statistics.median(worst), "ms", 10, most=True)
    report.row(f"{name}, all watched: worst of {rounds}", max(worst), "ms")
    report.row(f"{name}: files left behind", behind, "files", 0, most=True)
    report.row(f"{name}: memory", grown, "MiB more", 16, most=True)
    report.row("threads", threading.active_count(), "")


async def run_latency(report: Report, path: str, rounds: int) -> None:
    """Measure from a store of another process to the subscriber."""
    with open(path, "wb") as file:
        file.write(bytes(PAGE))
    found = await ours(path, rounds)
    report.row("external write to subscriber, p50", quantile(found, 0.5), "ms", 10, most=True)
    report.row("external write to subscriber, p99", quantile(found, 0.99), "ms", 50, most=True)
    few = min(rounds, 50)
    contenders: dict[str, Awaitable[list[float]]] = {
        "watchfiles.awatch": peers(path, few),
        "inotify alone": raw(path, few),
        "mapped store to subscriber": ours(path, few, "mapped"),
    }
    for name, contender in contenders.items():
        found = await contender
        report.row(f"{name}, p50", quantile(found, 0.5), "ms")
        report.row(f"{name}, p99", quantile(found, 0.99), "ms")
