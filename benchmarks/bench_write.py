"""How fast is a 4 KiB write into warm pages, at 1 and at 64 tasks?"""

from __future__ import annotations

import mmap
import random

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
