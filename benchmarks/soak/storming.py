"""A storm of resizes: one file made shorter and longer under everything that can touch it.

The oracle knows which bytes may be seen. Each page is full of one byte, its *stamp*. A page that
was cut off is zeros until it is stamped again. So at any moment pages that nobody cuts read as
their stamps, and all other pages as stamps, or as zeros if they were cut since.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

import aiommap

from .memory import load, store
from .stage import PAGE, Scene, expect

KEPT, PAGES = 40, 96
#: Errors that a verb may raise of a range that is being cut off, and a word beside a write.
REFUSED = (
    *(aiommap.OutOfBoundsError, aiommap.MappingFaultError),
    *(anyio.WouldBlock, anyio.BusyResourceError),
)
SECONDS = 0.5


def stamps(first: int, end: int) -> bytes:
    """Return the bytes of pages [first, end)."""
    return b"".join(bytes([page % 250 + 1]) * PAGE for page in range(first, end))


ALL = stamps(0, PAGES)


class Storm:
    """One file in the storm."""

    def __init__(self, scene: Scene, f: aiommap.MappedFile, *, cut: bool = True) -> None:
        self._scene, self._file, self._cut = scene, f, cut
        self.over = False

    def check(self, offset: int, found: bytes, what: str) -> None:
        """Check that these bytes may be seen at this offset."""
        expected = ALL[offset : offset + len(found)]
        kept = len(found) if not self._cut else max(0, min(len(found), KEPT * PAGE - offset))
        expect(found[:kept] == expected[:kept], f"{what} at {offset}: kept bytes are made up")
        tail = zip(found[kept:], expected[kept:], strict=True)
        made_up = found != expected and any(a not in (0, b) for a, b in tail)
        expect(not made_up, f"{what} at {offset}: bytes are neither stamps nor zeros")
        self._scene.counts["reads"] += 1

    async def until_over(
        self, act: Callable[[random.Random], Awaitable[object]], rng: random.Random
    ) -> None:
        """Do something again and again; it may raise the errors of ``REFUSED``, and no others."""
        while not self.over:
            with suppress(*REFUSED):
                await act(rng)
            await anyio.lowlevel.checkpoint()

    def _range(self, rng: random.Random) -> tuple[int, int]:
        length = int(2 ** rng.uniform(0, 18))
        return rng.randrange(PAGES * PAGE - length), length

    async def read(self, rng: random.Random) -> None:
        """Read in each way."""
        f, (offset, length) = self._file, self._range(rng)
        self.check(offset, f.read_nowait(offset, length), "read_nowait")
        self.check(offset, await f.read(offset, length), "read")
        buffer = bytearray(length)
        await f.read_into(offset, buffer)
        self.check(offset, bytes(buffer), "read_into")

    async def read_locked(self, rng: random.Random) -> None:
        """Read a pinned range, without a system call."""
        offset, length = self._range(rng)
        async with self._file.locked(offset, length):
            for _ in range(5):
                self.check(offset, self._file.read_nowait(offset, length), "locked read")
                await anyio.lowlevel.checkpoint()

    async def look(self, rng: random.Random) -> None:
        """Load through a view; pages that were cut off read as zeros."""
        offset, length = self._range(rng)
        with self._file.view(offset, length) as view, view.memory as memory:
            self.check(offset, await load(memory, 0, length), "load")

    async def touch(self, rng: random.Random) -> None:
        """Make pages resident and dirty, and use the verbs about pages."""
        offset, length = self._range(rng)
        await self._file.prewarm(offset, length, write=rng.random() < 0.5)
        await self._file.residency(offset, length)
        await self._file.advise(aiommap.Advice.WILL_NEED, offset, length)
        await self._file.flush_range(0, PAGE)

    async def count(self, rng: random.Random) -> None:
        """Use atomic words, in pages that are never cut and in others."""
        page = rng.randrange(PAGES)
        word = self._file.atomic_u32(page * PAGE + 64)
        self.check(page * PAGE + 64, word.load().to_bytes(4, "little"), "word")
        self.check(
            page * PAGE + 64, word.fetch_add(0).to_bytes(4, "little"), "word, and zero added"
        )

    async def play(self, change: Callable[[], Awaitable[None]]) -> None:
        """Run all of these acts while the size changes."""
        scene = self._scene
        acts = [self.read, self.read, self.read_locked, self.look, self.touch, self.count]
        async with anyio.create_task_group() as tasks:
            for act in acts:
                tasks.start_soon(self.until_over, act, random.Random(scene.rng.random()))
            stop = anyio.current_time() + SECONDS
            while anyio.current_time() < stop:
                await change()
                scene.counts["resizes"] += 1
            self.over = True


async def resizes(scene: Scene) -> None:
    """Cut and grow a file of our own, and stamp the pages that came back."""
    path = scene.path("storm")
    policy = aiommap.FlushPolicy.every_bytes(1 << 20) | aiommap.FlushPolicy.every_interval(0.05)
    room = PAGES * PAGE
    async with scene.hub.open(path, "w+", size=room, capacity=room, flush=policy) as f:
        await f.write(0, ALL)
        if "made-up" in scene.sabotage:
            await f.write(0, bytes(KEPT * PAGE))  # a busy machine reads too few pages to meet one

        async def change() -> None:
            size = scene.rng.randrange(KEPT * PAGE, room)
            await f.resize(size)
            await f.resize(room if scene.rng.random() < 0.8 else f.capacity + PAGE)
            await f.write(size, ALL[size:room])

        await Storm(scene, f).play(change)
        await f.flush()
    scene.acknowledged(KEPT * PAGE)


async def refusals(scene: Scene) -> None:
    """Try in vain to shrink a sealed file: no byte of it ever seems to be gone."""
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.truncate(fd, PAGES * PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        path, never = f"/proc/self/fd/{fd}", aiommap.FlushPolicy.never()
        async with scene.hub.open(path, "r+", flush=never) as f:
            await f.write(0, ALL)

            async def change() -> None:
                with suppress(OSError):
                    await f.resize(scene.rng.randrange(PAGES * PAGE))
                expect(f.size == PAGES * PAGE, "a refused resize changed the size")

            await Storm(scene, f, cut=False).play(change)
    finally:
        os.close(fd)


async def outgrowths(scene: Scene) -> None:
    """Grow by stores in a thread, cut, and ask for the size all the time: nothing is poisoned."""
    path, capacity = scene.path("outgrown"), 1 << 30
    never = aiommap.FlushPolicy.never()
    async with scene.hub.open(path, "w+", size=KEPT * PAGE, capacity=capacity, flush=never) as f:
        await f.write(0, stamps(0, KEPT))
        view = f.view(growable=True)
        memory, over = view.memory, False

        async def grow() -> None:
            while not over:
                at = scene.rng.randrange(KEPT * PAGE, 4096 * PAGE)
                await store(memory, at, b"g")

        async def watch() -> None:
            while not over:
                expect(f.size >= KEPT * PAGE, "kept pages are gone")
                found = await f.read(0, KEPT * PAGE)
                expect(found == stamps(0, KEPT), "kept pages are made up")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(grow)
            tasks.start_soon(watch)
            for _ in range(40):
                with f.view(0, f.size) as plain, plain.memory as tail:
                    await f.resize(KEPT * PAGE)
                    await load(tail, len(tail) - 1, 1)
                scene.counts["resizes"] += 1
            over = True
        memory.release()
        view.release()
        await f.flush()


async def intrusions(scene: Scene) -> None:
    """Cut and grow a file in another process: kept bytes are right, and lost ones raise."""
    path, original = scene.path("intruded"), scene.path("stamps")
    never = aiommap.FlushPolicy.never()
    for name in (path, original):
        async with scene.hub.open(name, "w+", size=PAGES * PAGE, flush=never) as made:
            await made.write(0, ALL)
    async with scene.hub.open(path, "r", flush=never) as f:

        async def change() -> None:
            size = scene.rng.randrange(KEPT, PAGES) * PAGE
            await scene.outsider.do("truncate", path, size)
            with suppress(*REFUSED):
                await f.refresh()
            await scene.outsider.do("copy_tail", original, path, size)
            await f.reopen()

        storm = Storm(scene, f)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                rng = random.Random(scene.rng.random())
                tasks.start_soon(storm.until_over, storm.read, rng)
            for _ in range(10):
                await change()
            storm.over = True
