"""How soon is a change by others known, what does waiting for it cost, and is a storm survived?"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import watchfiles

import aiommap

from ._harness import Report, heartbeat

Next = Callable[[], Awaitable[object]]


async def latencies(path: str, wait: Next, rounds: int) -> list[float]:
    """Write from outside of the loop at random moments; milliseconds until it is known."""
    found = []
    for _ in range(rounds):
        waiter = asyncio.ensure_future(wait())
        await asyncio.sleep(0.03 + random.random() / 50)
        fd = os.open(path, os.O_WRONLY)
        start = time.perf_counter()
        os.pwrite(fd, os.urandom(1), 0)
        await waiter
        found.append((time.perf_counter() - start) * 1e3)
        os.close(fd)
        await asyncio.sleep(0.06)  # until the slowest of them has gathered what belongs together
    return sorted(found)


async def ours(path: str, rounds: int) -> list[float]:
    async with aiommap.open(path) as f, f.watch() as changes:
        return await latencies(path, lambda: anext(changes), rounds)


async def peers(path: str, rounds: int) -> list[float]:
    """watchfiles.awatch as it comes."""
    stop = asyncio.Event()
    stream: Any = watchfiles.awatch(os.path.dirname(path), stop_event=stop)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.3)  # it does not say when it has begun
    os.utime(path)
    await first
    found = await latencies(path, lambda: anext(stream), rounds)
    stop.set()
    return found


def quantile(found: list[float], share: float) -> float:
    return found[min(int(len(found) * share), len(found) - 1)]


async def idle_share(folder: str, count: int, seconds: float) -> float:
    """Watch many files of a hundred directories of which none changes; per cent of one core."""
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


async def storm(folder: str, files: int, changes: int) -> tuple[float, int]:
    """Ten thousand changes a second in one directory: worst stall in ms, and files left behind."""
    paths = [os.path.join(folder, f"{i:05}") for i in range(files)]
    for path in paths:
        with open(path, "wb"):
            pass
    final = -(-changes // files)
    behind = set(paths)
    async with aiommap.Hub() as hub, AsyncExitStack() as stack:

        async def follow(changes: aiommap.Changes) -> None:
            async for change in changes:
                if change.new is not None and change.new.size == final:
                    behind.discard(change.path)
                    return

        streams = [
            await stack.enter_async_context(hub._watcher.subscribe(path, buffer=4))
            for path in paths
        ]
        tasks = [asyncio.create_task(follow(stream)) for stream in streams]
        writer = subprocess.Popen([sys.executable, "-c", STORM, folder, str(changes)])
        async with heartbeat() as stall:
            await asyncio.to_thread(writer.wait)
            await asyncio.wait(tasks, timeout=10)
        for task in tasks:
            task.cancel()
        return stall.worst, len(behind)


async def run(report: Report, *, smoke: bool) -> None:
    """Latency beside watchfiles' own, the cost of ten thousand idle files, and a storm."""
    rounds, files, seconds = (5, 200, 0.5) if smoke else (300, 10_000, 20.0)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "file")
        with open(path, "wb") as file:
            file.write(bytes(4096))
        found = await ours(path, rounds)
        report.row(
            "external write to subscriber, p50", statistics.median(found), "ms", 10, most=True
        )
        report.row("external write to subscriber, p99", quantile(found, 0.99), "ms", 50, most=True)
        other = await peers(path, min(rounds, 50))
        report.row("watchfiles.awatch, p50", statistics.median(other), "ms")
        report.row("watchfiles.awatch, p99", quantile(other, 0.99), "ms")
    with tempfile.TemporaryDirectory() as folder:
        share = await idle_share(folder, files, seconds)
        report.row(f"idle, {files} files in 100 directories", share, "% of a core", 1, most=True)
    with tempfile.TemporaryDirectory() as folder:
        stall, behind = await storm(folder, min(files, 1000), files * 3)
        report.row("10,000 changes a second: worst stall", stall, "ms", 10, most=True)
        report.row("10,000 changes a second: files left behind", behind, "files", 0, most=True)
        report.row("threads", threading.active_count(), "")
