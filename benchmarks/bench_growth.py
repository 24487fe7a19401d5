"""How fast does a file grow by appends of 64 KiB: through a growable view, or otherwise?"""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable

import aiommap

from ._harness import MIB, Report, touch_memory

BLOCK = 64 << 10


async def by_view(path: str, size: int) -> None:
    """Store beyond the end; the file grows, and is never mapped anew."""
    never = aiommap.FlushPolicy.never()
    data = bytes(range(256)) * (BLOCK // 256)
    async with aiommap.open(path, "w+", size=0, capacity=size, flush=never) as f:
        with f.view(growable=True) as view:
            memory = view.memory
            for at in range(0, size, BLOCK):
                memory[at : at + BLOCK] = data
            memory.release()
        await f.resize(size)


async def by_file(path: str, size: int) -> None:
    """Append with write(2)."""
    data = bytes(range(256)) * (BLOCK // 256)
    with open(path, "wb", buffering=0) as file:
        file.writelines(data for _ in range(0, size, BLOCK))  # one write(2) each


async def by_remap(path: str, size: int) -> None:
    """Make the file longer and map it anew for each append, as mappings of exact size have to."""
    data = bytes(range(256)) * (BLOCK // 256)
    with open(path, "w+b", buffering=0) as file:
        for at in range(0, size, BLOCK):
            os.truncate(file.fileno(), at + BLOCK)
            with mmap.mmap(file.fileno(), at + BLOCK) as mapped:
                mapped[at : at + BLOCK] = data


async def by_mremap(path: str, size: int) -> None:
    """Do the same with mremap(2), which moves the mapping."""
    data = bytes(range(256)) * (BLOCK // 256)
    with open(path, "w+b", buffering=0) as file:
        os.truncate(file.fileno(), BLOCK)
        with mmap.mmap(file.fileno(), BLOCK) as mapped:
            for at in range(0, size, BLOCK):
                mapped.resize(at + BLOCK)
                mapped[at : at + BLOCK] = data


WAYS: dict[str, Callable[[str, int], Awaitable[None]]] = {
    "aiommap": by_view,
    "file.write": by_file,
    "remap": by_remap,
    "mremap": by_mremap,
}


async def run(report: Report, *, smoke: bool) -> None:
    """Compare with write(2) and with a mapping that is replaced, or moved, for each append."""
    size, rounds = (4 * MIB, 1) if smoke else (1024 * MIB, 5)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, way in WAYS.items():
                path = os.path.join(folder, name)
                touch_memory(size + size // 4)
                start = time.perf_counter()
                await way(path, size)
                seconds[name].append(time.perf_counter() - start)
                assert os.stat(path).st_size == size
                os.unlink(path)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    for name, value in median.items():
        report.row(name, size / MIB / value, "MiB/s")
    ours = median["aiommap"]
    report.row("aiommap / file.write", median["file.write"] / ours, "x", 1)
    report.row("aiommap / remap for each append", median["remap"] / ours, "x", 3)
    report.row("aiommap / mremap for each append", median["mremap"] / ours, "x")
