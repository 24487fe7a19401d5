"""How fast are writes of 4 KiB into warm pages, by 1 and 64 tasks, and of 100 bytes into holes?"""

from __future__ import annotations

import mmap
import os
import random
import tempfile
import time

import aiofiles

import aiommap

from ._harness import MIB, Action, Report, compare, scratch_file

BLOCK = 4096


async def run(report: Report, *, smoke: bool) -> None:
    """Compare with a bare store and aiofiles."""
    size, count = (4 * MIB, 2000) if smoke else (64 * MIB, 100_000)
    offsets = [random.randrange(size // BLOCK) * BLOCK for _ in range(count)]
    data = bytes(BLOCK)
    with scratch_file(size) as path, open(path, "r+b") as file:
        bare = mmap.mmap(file.fileno(), 0)

        async def store(a: int, d: bytes) -> None:
            bare[a : a + len(d)] = d

        async with aiommap.open(path, "r+") as mapped, aiofiles.open(path, "r+b") as slow:
            for at in range(0, size, BLOCK):
                await store(at, data)
                await mapped.write(at, data)

            async def by_aiofiles(i: int) -> None:
                await slow.seek(offsets[i])
                await slow.write(data)

            actions: dict[str, tuple[Action, int]] = {
                "bare": (lambda i: store(offsets[i], data), count),
                "aiommap": (lambda i: mapped.write(offsets[i], data), count),
                "aiofiles": (by_aiofiles, count // 50),
            }
            for tasks in (1, 64):
                found = await compare(actions, tasks, 1 if smoke else 5)
                for name, value in found.items():
                    report.row(f"{tasks} tasks: {name}", value, "writes/s")
                ours = found["aiommap"]
                report.row(f"{tasks} tasks: aiommap / bare store", ours / found["bare"], "x", 0.3)
                report.row(f"{tasks} tasks: aiommap / aiofiles", ours / found["aiofiles"], "x", 30)
        bare.close()
    await into_holes(report, smoke=smoke)


async def into_holes(report: Report, *, smoke: bool) -> None:
    """Write 100 bytes into holes that are pages apart, beside pwrite."""
    size, count = (16 * MIB, 400) if smoke else (1024 * MIB, 20_000)
    offsets = [page * BLOCK for page in random.sample(range(size // BLOCK), count)]
    record, never = bytes(100), aiommap.FlushPolicy.never()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "sparse")
        async with aiommap.open(path, "w+", size=size, sparse=True, flush=never) as f:
            start = time.perf_counter()
            for offset in offsets:
                await f.write(offset, record)
            ours = (time.perf_counter() - start) / count
            cached = (await f.residency()).resident
        with open(os.path.join(folder, "bare"), "wb", buffering=0) as file:
            os.truncate(file.fileno(), size)
            start = time.perf_counter()
            for offset in offsets:
                os.pwrite(file.fileno(), record, offset)
            bare = (time.perf_counter() - start) / count
    report.row("100 bytes into a hole: aiommap", ours * 1e6, "us", 10, most=True)
    report.row("100 bytes into a hole: aiommap / pwrite", ours / bare, "x")
    report.row("100 bytes into a hole: pages cached / written", cached / count, "x", 2, most=True)
