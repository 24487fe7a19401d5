"""Verbs of very many items let others run: a test counts calls between two turns of the loop."""

from __future__ import annotations

import sys

import anyio
import pytest

import aiommap
from aiommap import FlushPolicy

pytestmark = pytest.mark.anyio

MANY = 20_000
ITEMS = [(16 * number, b"data") for number in range(MANY)]

POLICIES = {
    "manual": FlushPolicy.manual(),
    "always": FlushPolicy.always(),
    "max_dirty": FlushPolicy.manual() | FlushPolicy.max_dirty(1 << 30),
    "max_dirty_small": FlushPolicy.manual() | FlushPolicy.max_dirty(1 << 16),
}


async def calls_at_once(verb):
    """Return how many calls this thread made, at most, between two turns of the loop."""
    calls, most, over = 0, 0, False

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    async def look():
        nonlocal calls, most
        while not over:
            most, calls = max(most, calls), 0
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(look)
        await anyio.lowlevel.checkpoint()
        sys.setprofile(count)
        try:
            await verb()
        finally:
            sys.setprofile(None)
            over = True
    return max(most, calls)


@pytest.mark.parametrize(
    "policy",
    ["manual", "always", "max_dirty", pytest.param("max_dirty_small", marks=pytest.mark.slow)],
)
async def test_write_many_lets_others_run(path, policy):
    size = 16 * MANY
    async with aiommap.open(path, "w+", size=size, flush=POLICIES[policy]) as f:
        await f.write(0, b"first")  # so that there are dirty bytes
        assert await calls_at_once(lambda: f.write_many(ITEMS)) < MANY
        assert await f.read(size - 16, 4) == b"data"


async def test_read_many_lets_others_run(path):
    async with aiommap.open(path, "w+", size=16 * MANY) as f:
        ranges = [(offset, len(data)) for offset, data in ITEMS]
        assert await calls_at_once(lambda: f.read_many(ranges)) < MANY


async def test_statistics_of_many_views(path):
    """Statistics name only the oldest 64 views."""
    async with aiommap.open(path, "w+", size=16 * MANY) as f:
        views = [f.view(offset, 4) for offset, _ in ITEMS[:200]]
        found = f.statistics()
        assert found.leases == 200
        assert [lease.offset for lease in found.leased] == [16 * at for at in range(64)]
        del views


async def test_close_of_many_files_lets_others_run(path):
    path.write_bytes(b"data")

    async def calls_to_close(files):
        async with aiommap.Hub() as hub:
            for _ in range(files):
                await hub.open(path)
            return await calls_at_once(hub.aclose)

    few, many = await calls_to_close(100), await calls_to_close(800)
    assert many < 4 * few, (few, many)
