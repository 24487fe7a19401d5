"""How fast can records of 4 KiB be read back here: C without Python, slices, and ours.

From the root of the repository, on a quiet machine:
``python -m benchmarks.experiments.log_read_ceiling``; take ratios. The last column adds what our
loop takes for a record without data: the turn of ``async for``, the record, the check of a header.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_log import LARGE

from aiommap import Log

RECORDS = 12_000
HEADER, STEP = 4096 + 24, 4096 + 24
SUMS = Path("src/aiommap/_csrc/sys")
WAYS = (
    "pread of 256 KiB",
    "pread of 2 MiB",
    "a mapping for each walk",
    "a mapping that stays",
    "256 KiB, copy and sum at once",
    "that stays, at once",
)
WALKS = 9


class Kept:
    """A record as plain as it can be."""

    __slots__ = ("data",)

    data: bytes


def best(walk: Callable[[], object]) -> float:
    """Return the nanoseconds of a record in the best walk."""
    found = []
    for _ in range(WALKS):
        start = time.perf_counter()
        walk()
        found.append((time.perf_counter() - start) / RECORDS * 1e9)
    return min(found)


async def by_log(folder: str) -> float:
    """Return the nanoseconds of a record of a log in the best walk."""
    found = []
    async with Log.open(folder, "r") as log:
        for _ in range(WALKS):
            start = time.perf_counter()
            async for _ in log.read():
                pass
            found.append((time.perf_counter() - start) / RECORDS * 1e9)
    return min(found)


async def fill(folder: str, data: bytes) -> str:
    """Make a log; return the path of its segment."""
    async with Log.open(folder) as log:
        for _ in range(RECORDS // 100):
            await log.append_many([data] * 100)
    (path,) = (entry.path for entry in os.scandir(folder) if entry.name.endswith(".log"))
    return path


def by_slices(path: str) -> tuple[float, float]:
    """Measure slices of a mapping, and slices that are kept until the next is there."""
    with open(path, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))

    def slices() -> None:
        for at in range(HEADER, HEADER + RECORDS * STEP, STEP):
            bytes(memory[at : at + 4096])

    def kept() -> None:
        for at in range(HEADER, HEADER + RECORDS * STEP, STEP):
            record = Kept()
            record.data = bytes(memory[at : at + 4096])

    return best(slices), best(kept)


def in_c(folder: str, path: str) -> list[float]:
    """Let log_read_ceiling.c read."""
    program, source = f"{folder}/program", Path(__file__).with_suffix(".c")
    command = ["cc", "-O2", "-I", str(SUMS), "-o", program, str(source), str(SUMS / "crc32c.c")]
    subprocess.run(command, check=True)
    return [*map(float, subprocess.check_output([program, path, str(RECORDS)]).split())]


async def main() -> None:
    """Print nanoseconds of a record, and ratios to the loop of slices."""
    with tempfile.TemporaryDirectory() as folder:
        path = await fill(f"{folder}/large", LARGE)
        await fill(f"{folder}/empty", b"")
        plain, kept = by_slices(path)
        empty, ours = await by_log(f"{folder}/empty"), await by_log(f"{folder}/large")
        rows = {"slices": plain, "slices, each kept in an object": kept, "a log": ours}
        for name, value in rows.items():
            print(f"{name:32} {value:6.0f} ns  {plain / value:5.2f} x slices")
        print(f"{'a log without data':32} {empty:6.0f} ns")
        *found, askew = await asyncio.to_thread(in_c, folder, path)
        for name, value in zip(WAYS, found, strict=True):
            ratio, whole = plain / value, plain / (value + empty)
            print(
                f"C, {name:29} {value:6.0f} ns  {ratio:5.2f} x slices; {whole:5.2f} with our loop"
            )
        print(f"pread alone, to 16 bytes into a page {askew:6.0f} ns")


asyncio.run(main())
