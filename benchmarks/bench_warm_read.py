"""How fast is a warm 4 KiB read, at 1 and at 64 tasks?"""

from __future__ import annotations

import mmap
import random

import aiofile
import aiofiles

import aiommap

from ._harness import MIB, Action, Report, compare, scratch_file

BLOCK = 4096


async def run(report: Report, *, smoke: bool) -> None:
    """Compare with a bare slice, aiofiles and aiofile (caio)."""
    size, count = (4 * MIB, 2000) if smoke else (64 * MIB, 100_000)
    offsets = [random.randrange(size // BLOCK) * BLOCK for _ in range(count)]
    with scratch_file(size) as path, open(path, "rb") as file:
        bare = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        async with (
            aiommap.open(path, prewarm=True) as mapped,
            aiommap.open(path, lock=True) as locked,
            aiofiles.open(path, "rb") as slow,
            aiofile.async_open(path, "rb") as caio,
        ):
            for page in range(0, size, BLOCK):
                bare[page]

            async def slice_(a: int, b: int) -> bytes:
                return bare[a:b]

            async def by_aiofiles(i: int) -> None:
                await slow.seek(offsets[i])
                await slow.read(BLOCK)

            def at(i: int) -> int:
                return offsets[i]

            few = count // 50
            actions: dict[str, tuple[Action, int]] = {
                "bare": (lambda i: slice_(at(i), at(i) + BLOCK), count),
                "aiommap": (lambda i: mapped.read(at(i), BLOCK), count),
                "locked": (lambda i: locked.read(at(i), BLOCK), count),
                "aiofiles": (by_aiofiles, few),
                "aiofile": (lambda i: caio.file.read_bytes(BLOCK, at(i)), few * 5),
            }
            for tasks, caio_target in ((1, 4), (64, 2)):
                found = await compare(actions, tasks, 1 if smoke else 5)
                for name, value in found.items():
                    report.row(f"{tasks} tasks: {name}", value, "reads/s")
                ours = found["aiommap"]
                report.row(f"{tasks} tasks: aiommap / bare slice", ours / found["bare"], "x", 0.35)
                report.row(
                    f"{tasks} tasks: locked / bare slice", found["locked"] / found["bare"], "x", 0.6
                )
                report.row(f"{tasks} tasks: aiommap / aiofiles", ours / found["aiofiles"], "x", 50)
                report.row(
                    f"{tasks} tasks: aiommap / aiofile", ours / found["aiofile"], "x", caio_target
                )
        bare.close()
