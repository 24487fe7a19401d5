"""Readers: every way to read gives the right bytes."""

from __future__ import annotations

import random

import anyio

import aiommap
from aiommap import Advice

from .stage import PAGE, Scene, expect, make

SIZE = 2 << 20


async def readers(scene: Scene) -> None:
    """Read one file in every way, while its pages come and go."""
    content = scene.rng.randbytes(SIZE)
    await make(scene.path(), content)
    async with (
        scene.hub.open(scene.path()) as f,
        aiommap.Snapshot.open(scene.path()) as s,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(6):
            rng = random.Random(scene.rng.random())
            tasks.start_soon(_read_verbs, scene, f, content, rng)
        tasks.start_soon(_read_snapshot, scene, s, content, random.Random(scene.rng.random()))
        tasks.start_soon(_read_chunks, scene, f, content)
        tasks.start_soon(_drop_pages, f, random.Random(scene.rng.random()))


def _some_range(rng: random.Random) -> tuple[int, int]:
    length = int(2 ** rng.uniform(0, 18))
    return rng.randrange(SIZE - length), length


async def _read_verbs(
    scene: Scene, f: aiommap.MappedFile, content: bytes, rng: random.Random
) -> None:
    for _ in range(60):
        offset, length = _some_range(rng)
        match rng.randrange(5):
            case 0:
                found = await f.read(offset, length)
            case 1:
                buffer = bytearray(length)
                await f.read_into(offset, buffer)
                found = bytes(buffer)
            case 2:
                half = length // 2
                parts = [(offset, half), (offset + half, length - half)]
                found = b"".join(await f.read_many(parts))
            case 3:
                with f.view(offset, length) as view:
                    found = await view.read(0, length)
            case _:
                try:
                    found = f.read_nowait(offset, length)
                except anyio.WouldBlock:
                    found = await f.read(offset, length)
        expect(found == content[offset : offset + length], f"read {offset}+{length} is wrong")
        scene.counts["reads"] += 1
        await anyio.lowlevel.checkpoint()


async def _read_snapshot(
    scene: Scene, s: aiommap.Snapshot, content: bytes, rng: random.Random
) -> None:
    for _ in range(60):
        offset, length = _some_range(rng)
        found = await s.read_exact(offset, length)
        expect(found == content[offset : offset + length], f"snapshot {offset}+{length} is wrong")
        scene.counts["reads"] += 1
    await s.verify()


async def _read_chunks(scene: Scene, f: aiommap.MappedFile, content: bytes) -> None:
    at = 0
    async for chunk in f.chunks(3 * PAGE + 5):
        expect(chunk == content[at : at + len(chunk)], f"chunk at {at} is wrong")
        at += len(chunk)
        scene.counts["reads"] += 1
    expect(at == SIZE, f"chunks ended at {at}")


async def _drop_pages(f: aiommap.MappedFile, rng: random.Random) -> None:
    for _ in range(6):
        await f.advise(rng.choice([Advice.DONT_NEED, Advice.PAGE_OUT, Advice.RANDOM]))
        await f.prewarm(0, rng.randrange(SIZE))
        residency = await f.residency()
        expect(0 <= residency.resident <= residency.total, f"{residency} cannot be")
        async with f.locked(0, 16 * PAGE):
            await anyio.lowlevel.checkpoint()
