"""Sizes: files that others cut off, and files that grow under their readers."""

from __future__ import annotations

import random

import anyio

import aiommap

from .memory import load, store
from .stage import PAGE, BrokenOracleError, Scene, expect, expect_content, look, make

SIZE = 64 * PAGE
LOST = (aiommap.FlushError, aiommap.MappingFaultError)


async def truncations(scene: Scene) -> None:
    """Cut a file off under its readers and restore it; in the end cut off written bytes."""
    path, original = scene.path("cut"), scene.path("original")
    content = scene.rng.randbytes(SIZE)
    await make(path, content)
    await make(original, content)
    async with scene.hub.open(path) as f:
        if "wrong-read" in scene.sabotage:
            await scene.outsider.do("overwrite", path, 0, "00" * (SIZE // 2))
        cut = Cut(scene, f, content)
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(cut.read, random.Random(scene.rng.random()))
            for _ in range(8):
                size = scene.rng.randrange(SIZE)
                await scene.outsider.do("truncate", path, size)
                scene.counts["truncations"] += 1
                await anyio.sleep(0.005)
                with cut.restoring():
                    await scene.outsider.do("copy_tail", original, path, size)
            cut.done = True
    await _lose_writes(scene, path, content)
    await _lose_pages(scene, path)


class Cut:
    """Reads of a file that is cut off and restored: the right bytes, or a fault.

    A read that overlaps a restoration may begin while the file is short and end when it is long
    again, so its result proves nothing.
    """

    def __init__(self, scene: Scene, f: aiommap.MappedFile, content: bytes) -> None:
        self._scene, self._file, self._content = scene, f, content
        self._restorations = 0  # odd while one is under way
        self.done = False

    def restoring(self) -> Cut:
        """Do not judge reads that overlap a ``with`` block."""
        return self

    def __enter__(self) -> None:
        self._restorations += 1

    def __exit__(self, *_: object) -> None:
        self._restorations += 1

    async def read(self, rng: random.Random) -> None:
        """Read until ``done``."""
        while not self.done:
            length = rng.randrange(1, 8 * PAGE)
            offset, before = rng.randrange(SIZE - length), self._restorations
            try:
                found = await self._file.read(offset, length)
            except aiommap.MappingFaultError:
                self._scene.counts["faults"] += 1
            else:
                judged = before == self._restorations and before % 2 == 0
                right = found == self._content[offset : offset + length]
                expect(right or not judged, f"read {offset}+{length} of a cut file is made up")
                self._scene.counts["reads"] += 1
            await anyio.lowlevel.checkpoint()


async def _lose_writes(scene: Scene, path: str, content: bytes) -> None:
    """Check that bytes that others cut off are never reported as flushed."""
    kept = scene.rng.randrange(1, SIZE // PAGE // 2) * PAGE
    f = await scene.hub.open(path, "r+")
    expected = bytearray(content[:kept])
    try:
        for offset in (0, PAGE + 9, kept + 3 * PAGE):
            await f.write(offset, b"written")
            expected[offset : offset + 7] = b"written"
        del expected[kept:]
        await scene.outsider.do("truncate", path, kept)
        scene.counts["truncations"] += 1
        await _expect_lost(f.flush(), "flush")
    finally:
        await _expect_lost(f.aclose(), "aclose")
    await expect_content(path, expected)


async def _lose_pages(scene: Scene, path: str) -> None:
    """Check that the process survives a load from a lost page, and that verbs then raise."""
    f = await scene.hub.open(path, "r+")
    memory = f.view().memory
    await scene.outsider.do("truncate", path, 0)
    scene.counts["truncations"] += 1
    zeros = await load(memory, len(memory) - PAGE, PAGE)
    expect(not any(zeros), "a page that is lost holds something")
    await _expect_lost(f.read(0, 1), "read")
    memory.release()
    await _expect_lost(f.aclose(), "aclose")


async def _expect_lost(verb: object, name: str) -> None:
    try:
        await verb  # type: ignore[misc]
    except LOST:
        return
    raise BrokenOracleError(f"{name} said nothing of bytes that were cut off")


async def growth(scene: Scene) -> None:
    """Store beyond the end through memory, in a thread; addresses and contents stay."""
    path, oracle = scene.path("grown"), bytearray()
    async with scene.hub.open(path, "w+", size=0, capacity=1 << 36) as f:
        with f.view(growable=True) as view:
            memory = view.memory
            for _ in range(40):
                piece = scene.rng.randbytes(int(2 ** scene.rng.uniform(0, 18)))
                at = len(oracle)
                await store(memory, at, piece)
                oracle += piece
                found = await f.read(at, len(piece))
                expect(found == piece, f"stored {len(piece)} bytes at {at}, and read others")
            first = oracle[:PAGE]
            same = await load(memory, 0, len(first)) == first
            expect(same, "the first page moved")
            memory.release()
        await f.resize(len(oracle))
        await f.flush()
        scene.counts["grown bytes"] += len(oracle)
    scene.acknowledged(len(oracle))
    await expect_content(path, oracle)


async def sizes(scene: Scene) -> None:
    """Resize up and down, within the capacity and beyond, under writers and a view."""
    path, oracle = scene.path("sized"), bytearray(PAGE)
    async with scene.hub.open(path, "w+", size=PAGE, capacity=16 * PAGE) as f:
        memory = f.view(0, 100).memory  # loads may fault, so only threads touch it
        for _ in range(25):
            size = scene.rng.randrange(100, 40 * PAGE)
            await f.resize(size)
            del oracle[size:]
            oracle += bytes(size - len(oracle))
            offset = scene.rng.randrange(size)
            data = scene.rng.randbytes(scene.rng.randrange(1, size - offset + 1))
            await f.write(offset, data)
            oracle[offset : offset + len(data)] = data
            scene.acknowledged(len(data))
            if scene.rng.random() < 0.2:
                await f.punch_hole(0, size)
                oracle[:] = bytes(size)
            shown = await load(memory, 0, 100)
            expect(shown == oracle[:100], "an old view shows other bytes")
            expect(await look(path) == oracle, f"resized to {size}, and other bytes are there")
        memory.release()
        scene.counts["resizes"] += 25
    await expect_content(path, oracle)
