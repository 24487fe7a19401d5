"""Cancellation storms: a write is there or not, and that does not change later (I8)."""

from __future__ import annotations

import random

import anyio

import aiommap

from .stage import Scene, expect, expect_content
from .writing import any_policy

SLOT = 80 << 10
WRITERS = 12


async def storm(scene: Scene) -> None:
    """Cancel verbs at any moment."""
    path, oracle = scene.path("storm"), bytearray(WRITERS * SLOT)
    policy = any_policy(scene.rng)
    async with (
        scene.hub.open(path, "w+", size=len(oracle), flush=policy) as f,
        anyio.create_task_group() as tasks,
    ):
        for number in range(WRITERS):
            rng = random.Random(scene.rng.random())
            tasks.start_soon(_write, scene, f, oracle, number, rng)
        tasks.start_soon(_open, scene, path, random.Random(scene.rng.random()))
    await expect_content(path, oracle)


async def _write(
    scene: Scene, f: aiommap.MappedFile, oracle: bytearray, number: int, rng: random.Random
) -> None:
    start = number * SLOT
    for _ in range(25):
        length = int(SLOT ** rng.uniform(0.1, 1))
        end, data = start + length, rng.randbytes(length)
        old, written = bytes(oracle[start:end]), False
        with anyio.move_on_after(rng.random() * 0.003) as scope:
            receipt = await f.write(start, data)
            written = True
            await _go_on(f, receipt, rng)
        scene.counts["cancelled"] += scope.cancelled_caught
        found = await f.read(start, length)
        if written:
            expect(found == data, f"slot {number}: an acknowledged write of {length} is lost")
            scene.acknowledged(length)
        expect(found in (old, data), f"slot {number}: a cancelled write of {length} is torn")
        oracle[start:end] = found
        await anyio.sleep(rng.random() * 0.001)
        if "late-write" in scene.sabotage and number == 0:
            await scene.outsider.do("overwrite", f.path, start, rng.randbytes(8).hex())
        found = await f.read(start, SLOT)
        expect(
            found == oracle[start : start + SLOT], f"slot {number}: changed after the verb ended"
        )


async def _go_on(f: aiommap.MappedFile, receipt: aiommap.WriteReceipt, rng: random.Random) -> None:
    match rng.randrange(5):
        case 0:
            await receipt.wait_durable()
        case 1:
            await f.flush()
        case 2:
            await f.prewarm(write=True)
        case 3:
            await f.read(0, f.size)
        case _:
            await anyio.sleep(1)


async def _open(scene: Scene, path: str, rng: random.Random) -> None:
    for _ in range(25):
        with anyio.move_on_after(rng.random() * 0.002) as scope:
            async with scene.hub.open(path) as f:
                async for _ in f.chunks(1 << 16):
                    await anyio.lowlevel.checkpoint()
        scene.counts["cancelled"] += scope.cancelled_caught
