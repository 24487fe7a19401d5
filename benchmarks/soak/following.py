"""Folders: values that are loaded from a folder that is turned are always of one version."""

from __future__ import annotations

import anyio

import aiommap

from .replacing import number_of
from .stage import Scene, expect, until


async def folders(scene: Scene) -> None:
    """Turn a folder, as Kubernetes does, under readers."""
    folder, last = scene.path("mounted"), 20
    await scene.outsider.do("turn", folder, 0)
    async with (
        aiommap.follow_folder(folder, load=_load, hub=scene.hub) as live,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(3):
            tasks.start_soon(_read_until, scene, live, last)
        for number in range(1, last + 1):
            await scene.outsider.do("turn", folder, number)
            scene.counts["replacements"] += 1
            await anyio.sleep(scene.rng.choice([0, 0.005, 0.02]))

        async def served() -> bool:
            return {*live.value.values()} == {last}

        await until(served, f"the last of {last} versions to be served")


async def _load(snapshot: aiommap.Snapshot) -> int:
    return number_of(await snapshot.read(0, snapshot.size))


async def _read_until(scene: Scene, live: aiommap.LiveFolder[int], last: int) -> None:
    seen = 0
    while seen < last:
        found = sorted(live.value.values())
        if "mixed-folder" in scene.sabotage:
            found[0] = -1
        expect(len({*found}) == 1, f"a folder of several versions is served: {found}")
        expect(len(found) == 2 + found[0] % 3, f"version {found[0]} has {len(found)} files")
        expect(found[0] >= seen, f"version {found[0]} is served after version {seen}")
        seen = found[0]
        scene.counts["reads"] += 1
        await anyio.sleep(0.001)
