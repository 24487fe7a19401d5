"""Sharing: processes and tasks work on the same bytes, and no work is lost."""

from __future__ import annotations

import random

import anyio

import aiommap

from .outside import add, play
from .stage import PAGE, Scene, expect


async def counters(scene: Scene) -> None:
    """Count in another process and in two tasks; no count is lost."""
    path, times = scene.path("counters"), 60
    async with (
        scene.hub.open(path, "w+", size=PAGE),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(scene.outsider.do, add.__name__, path, times)
        for _ in range(2):
            tasks.start_soon(add, path, times)
    async with scene.hub.open(path, "r+") as f:
        if "miscount" in scene.sabotage:
            f.atomic_u64(0).fetch_add(1)
        for offset, how in ((0, "by fetch_add"), (16, "under AsyncLock"), (24, "under file_lock")):
            found = int.from_bytes(await f.read(offset, 8), "little")
            expect(found == 3 * times, f"counted to {found} {how}, not {3 * times}")
    scene.counts["counted"] += 9 * times


async def turns(scene: Scene) -> None:
    """Take turns with another process: no wake-up is lost."""
    path, count = scene.path("turns"), 100
    async with scene.hub.open(path, "w+", size=PAGE) as f:
        await f.prewarm(write=True)
        word = f.atomic_u32(64)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.outsider.do, play.__name__, path, 64, count)
            for turn in range(count):
                while word.load() == 2 * turn - 1:
                    await word.wait(2 * turn - 1, timeout=20)
                word.fetch_add(1)
                word.notify()
    scene.counts["wake-ups"] += 2 * count


async def ranges(scene: Scene) -> None:
    """Allocate, write and free in tasks; none writes into a range of another."""
    size = 64 * PAGE
    async with scene.hub.open(scene.path("ranges"), "w+", size=size) as f:
        allocator = f.allocator(0, 64)
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                rng = random.Random(scene.rng.random())
                tasks.start_soon(_allocate, scene, f, allocator, rng)
        remaining = allocator.remaining
        expect(remaining == size, f"all is free, and {remaining} of {size} bytes remain")


async def _allocate(
    scene: Scene, f: aiommap.MappedFile, allocator: aiommap.RangeAllocator, rng: random.Random
) -> None:
    for _ in range(30):
        length = rng.randrange(1, 20 * PAGE)
        mine = None
        with anyio.move_on_after(rng.choice([0.0005, 30])):
            mine = await allocator.acquire(length)
        if mine is None:
            continue
        data = rng.randbytes(length)
        await f.write_range(mine, data)
        await anyio.sleep(rng.random() * 0.002)
        expect(await f.read_range(mine) == data, f"{mine} was written to by another")
        allocator.free(mine)
        scene.acknowledged(length)
