"""Writers: acknowledged bytes are in the file in the end, whoever was killed or cancelled."""

from __future__ import annotations

import random

import anyio

import aiommap
from aiommap import FlushPolicy

from .outside import record
from .stage import Scene, expect, expect_content, look, until

SLOT = 96 << 10  # larger than what is stored inline
WRITERS = 8


def any_policy(rng: random.Random) -> FlushPolicy:
    """Choose a policy."""
    return rng.choice(
        [
            FlushPolicy.manual(),
            FlushPolicy.always(),
            FlushPolicy.every_bytes(1 << 16),
            FlushPolicy.every_writes(5) | FlushPolicy.every_interval(0.02),
            FlushPolicy.max_dirty(1 << 18),
        ]
    )


async def journal(scene: Scene) -> None:
    """Write slots of one file in tasks, and make them durable; change policies meanwhile."""
    path, oracle = scene.path("journal"), bytearray(WRITERS * SLOT)
    async with scene.hub.open(path, "w+", size=len(oracle), flush=any_policy(scene.rng)) as f:
        async with anyio.create_task_group() as policies, anyio.create_task_group() as writers:
            policies.start_soon(_change_policies, scene, f)
            for number in range(WRITERS):
                rng = random.Random(scene.rng.random())
                writers.start_soon(_write, scene, f, oracle, number, rng)
        await f.flush()
        expect(f.statistics().dirty_bytes == 0, "flushed, and still dirty")
        if "lost-write" in scene.sabotage:
            await scene.outsider.do("overwrite", path, SLOT + 7, "00ff00")
    await expect_content(path, oracle)


async def _change_policies(scene: Scene, f: aiommap.MappedFile) -> None:
    for _ in range(10):
        f.flush_policy = any_policy(scene.rng)
        scene.counts["policies"] += 1
        await anyio.sleep(0.01)


async def _write(
    scene: Scene, f: aiommap.MappedFile, oracle: bytearray, number: int, rng: random.Random
) -> None:
    for _ in range(20):
        length = int(SLOT ** rng.uniform(0.1, 1))
        offset = number * SLOT + rng.randrange(SLOT - length + 1)
        data = rng.randbytes(length)
        if rng.random() < 0.3:
            half = length // 2
            receipt = await f.write_many([(offset, data[:half]), (offset + half, data[half:])])
        else:
            receipt = await f.write(offset, data)
        oracle[offset : offset + length] = data
        scene.acknowledged(length)
        await _make_durable(f, receipt, rng)
        own = number * SLOT
        expect(await f.read(own, SLOT) == oracle[own : own + SLOT], f"slot {number} is wrong")


async def _make_durable(
    f: aiommap.MappedFile, receipt: aiommap.WriteReceipt, rng: random.Random
) -> None:
    match rng.randrange(8):
        case 0:
            await receipt.wait_durable()
        case 1:
            await f.flush_range(receipt)
        case 2:
            await f.flush()
        case 3:
            await f.start_writeback(receipt.offset, receipt.length)
            return
        case _:
            return
    expect(receipt.durable, f"asked for durability, and {receipt} is not durable")


async def policies(scene: Scene) -> None:
    """Check that each policy flushes when it says that it does."""
    async with scene.hub.open(scene.path("policies"), "w+", size=1 << 20) as f:
        f.flush_policy = FlushPolicy.always()
        expect((await f.write(0, b"a" * 5000)).durable, "always(), and not durable")
        for policy in (
            FlushPolicy.every_bytes(3000),
            FlushPolicy.every_writes(3),
            FlushPolicy.every_interval(0.01),
        ):
            f.flush_policy = policy
            receipts = [await f.write(at, b"b" * 1000) for at in (0, 9000, 70_000)]

            async def durable(receipts: list[aiommap.WriteReceipt] = receipts) -> bool:
                return all(receipt.durable for receipt in receipts)

            await until(durable, f"{policy} to flush unasked")
        f.flush_policy = FlushPolicy.max_dirty(1 << 14)
        for at in range(0, 1 << 18, 1 << 13):
            await f.write(at, b"c" * (1 << 13))
            dirty = f.statistics().dirty_bytes
            expect(dirty <= 1 << 14, f"max_dirty(16384), and {dirty} bytes are dirty")
        scene.acknowledged(5000 + 9000 + (1 << 18))
        scene.counts["policies"] += 5


async def killed(scene: Scene) -> None:
    """Kill a process that writes: the records that it reported as acknowledged are there."""
    path, wanted = scene.path("killed"), scene.rng.randrange(1, 16_000)
    count = await scene.outsider.do("kill_a_writer", path, wanted)
    expect(count >= wanted, f"the writer came as far as record {count} of {wanted}")
    if "lost-record" in scene.sabotage:
        await scene.outsider.do("overwrite", path, 0, "00" * 64)
    found = await look(path)
    records = b"".join(map(record, range(count)))
    what = f"of {count} records that a killed process had acknowledged some are lost"
    expect(found.startswith(records), what)
    scene.acknowledged(len(records))
    scene.counts["killed"] += 1
