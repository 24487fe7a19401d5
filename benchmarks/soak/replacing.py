"""Replacements: readers of a followed path see only whole files, and in the end the newest."""

from __future__ import annotations

import hashlib
import itertools

import anyio

import aiommap

from .memory import load
from .outside import HEADER, numbered
from .stage import BrokenOracleError, Scene, expect, make, until


def number_of(content: bytes) -> int:
    """Return the number of these contents; raise if they are not whole."""
    number, size, digest = HEADER.unpack_from(content)
    body = content[HEADER.size :]
    expect(len(body) == size, f"file {number} has {len(body)} bytes, not {size}")
    expect(hashlib.sha256(body).digest() == digest, f"file {number} is mixed up with another")
    return int(number)


async def replacements(scene: Scene) -> None:
    """Replace a followed file again and again, under readers."""
    path, last = scene.path("table"), 25
    await make(path, numbered(0, 1000))
    async with (
        aiommap.follow(path, validate=_validate, hub=scene.hub) as live,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(4):
            tasks.start_soon(_read_until, scene, live, last)
        for number in range(1, last + 1):
            size = scene.rng.randrange(100, 200_000)
            await scene.outsider.do("replace", path, number, size)
            scene.counts["replacements"] += 1
            await anyio.sleep(scene.rng.choice([0, 0.005, 0.02]))

        async def served() -> bool:
            return number_of(await _content(live.current)) == last

        await until(served, f"the last of {last} replacements to be served")
        if "mixed-table" in scene.sabotage:
            await scene.outsider.do("overwrite", path, HEADER.size, "00ff" * 8)
        number_of(await _content(live.current))


async def _content(snapshot: aiommap.Snapshot) -> bytes:
    return await snapshot.read_exact(0, snapshot.size)


async def _validate(snapshot: aiommap.Snapshot) -> None:
    number_of(await _content(snapshot))


async def _read_until(scene: Scene, live: aiommap.LiveSnapshot, last: int) -> None:
    seen = 0
    while seen < last:
        snapshot = live.current
        number = number_of(await _content(snapshot))
        expect(number >= seen, f"file {number} is served after file {seen}")
        seen = number
        await anyio.sleep(0.001)
        expect(number_of(await _content(snapshot)) == number, "a snapshot became another file")
        scene.counts["reads"] += 2


async def reopening(scene: Scene) -> None:
    """Move to each replacement; bytes written to the old file never vanish silently."""
    path = scene.path("reopened")
    await make(path, numbered(0, 5000))
    async with scene.hub.open(path, "r+") as f:
        for number in range(1, 9):
            kept = await f.read(HEADER.size, 4)
            dirty = scene.rng.random() < 0.5
            memory = f.view(HEADER.size, 4).memory if dirty else memoryview(kept)
            if dirty:
                await f.write(HEADER.size, kept)
            await scene.outsider.do("replace", path, number, scene.rng.randrange(4, 90_000))
            scene.counts["replacements"] += 1
            if dirty:
                await _expect_refused(f)
            await f.reopen(discard=dirty)
            found = number_of(await f.read(0, f.size))
            expect(found == number, f"reopened file {found}, and not {number}")
            if dirty:
                same = await load(memory, 0, 4) == kept
                expect(same, "memory of a view changed with reopen")
            memory.release()


async def _expect_refused(f: aiommap.MappedFile) -> None:
    try:
        await f.reopen()
    except aiommap.FlushError:
        return
    raise BrokenOracleError("reopen left bytes behind that were written and not durable")


async def watched(scene: Scene) -> None:
    """Change a file in all ways: the reported changes join, and end in the file's last state."""
    path = scene.path("watched")
    await make(path, numbered(0, 5000))
    told: list[aiommap.Change] = []

    async def collect(changes: aiommap.Changes) -> None:
        async for change in changes:
            told.append(change)  # noqa: PERF401  what was told is looked at meanwhile

    buffer = scene.rng.choice([1, 64])
    async with (
        scene.hub.watch(path, buffer=buffer) as changes,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(collect, changes)
        for number in range(1, 15):
            await _disturb(scene, path, number)
            await anyio.sleep(scene.rng.choice([0, 0.003, 0.03]))
        expected = await scene.outsider.do("stat", path)

        async def told_the_last() -> bool:
            return bool(told) and _state(told[-1].new) == expected

        await until(told_the_last, f"the watcher to tell of {expected}")
        changes.end()
    if "lost-change" in scene.sabotage:
        del told[len(told) // 2]
    for earlier, later in itertools.pairwise(told):
        expect(later.old == earlier.new, f"a change is missing between {earlier} and {later}")
    scene.counts["changes told"] += len(told)


async def _disturb(scene: Scene, path: str, number: int) -> None:
    rng = scene.rng
    match rng.randrange(5):
        case 0:
            await scene.outsider.do("truncate", path, rng.randrange(10_000))
        case 1:
            await scene.outsider.do("overwrite", path, 0, rng.randbytes(20).hex())
        case 2:
            await scene.outsider.do("replace", path, number, rng.randrange(9000))
        case 3:
            await scene.outsider.do("recreate", path, number, rng.randrange(9000))
        case _:
            await scene.outsider.do("chmod", path, rng.choice([0o600, 0o640, 0o644]))


def _state(state: aiommap.FileState | None) -> list[int] | None:
    if state is None:
        return None
    return [state.device, state.inode, state.size, state.mtime_ns, state.mode]
