"""Snapshots have those verbs of a file that change nothing."""

from __future__ import annotations

import inspect

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import MappedFile, Snapshot, View
from tests.support.following import replace, until_mapped, until_serves

pytestmark = pytest.mark.anyio

SIZE = 16 * PAGE
VERBS = [
    *("read", "read_into", "read_nowait", "read_many", "chunks", "pages", "carve", "array"),
    *("prewarm", "residency", "advise", "locked"),
]


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_are_those_of_a_file(verb):
    of_snapshot, of_file = getattr(Snapshot, verb), getattr(MappedFile, verb)
    assert inspect.signature(of_snapshot) == inspect.signature(of_file)
    assert inspect.getdoc(of_snapshot) == inspect.getdoc(of_file)


def test_verbs_that_store_are_not_there():
    stores = "write write_many write_range flush flush_range resize ensure punch_hole atomic_u32"
    assert [verb for verb in stores.split() if hasattr(Snapshot, verb)] == []


async def test_read_in_all_ways(path):
    content = path.read_bytes()
    async with Snapshot.open(path, prewarm=True) as s:
        assert await s.read(5, 3 * PAGE) == content[5 : 5 + 3 * PAGE]
        assert s.read_nowait(PAGE - 1, 2) == b"AB"
        ranges = [(0, 1), (SIZE, 0), (PAGE, PAGE), (7, 2 * PAGE)]
        assert await s.read_many(ranges) == [content[at : at + count] for at, count in ranges]
        buffer = bytearray(PAGE)
        assert await s.read_into(PAGE // 2, buffer) == PAGE
        assert buffer == content[PAGE // 2 : PAGE // 2 + PAGE]


async def test_iterate_over_chunks_and_pages(path):
    content = path.read_bytes()
    async with Snapshot.open(path) as s:
        assert b"".join([chunk async for chunk in s.chunks(1000)]) == content
        assert [page async for page in s.pages()] == [
            content[at : at + PAGE] for at in range(0, SIZE, PAGE)
        ]


async def test_carve_makes_read_only_views(path):
    async with Snapshot.open(path) as s:
        parts = s.carve({"head": (0, 16), "body": (16, SIZE - 16)})
        assert all(type(part) is View for part in parts.values())
        assert (parts["head"].memory.readonly, parts["body"].length) == (True, SIZE - 16)
        with pytest.raises(aiommap.OverlapError):
            s.carve({"a": (0, 2), "b": (1, 2)})


async def test_prewarm_and_ask_for_residency(path):
    async with Snapshot.open(path) as s:
        assert await s.prewarm() == SIZE
        found = await s.residency(PAGE, 2 * PAGE)
        assert (found.resident, found.total) == (2, 2)
        await s.advise(aiommap.Advice.RANDOM)
        async with s.locked(0, PAGE):
            assert await s.read(0, 1) == b"A"
        with pytest.raises(aiommap.AccessModeError):
            await s.prewarm(write=True)


async def test_verbs_keep_to_the_size_at_opening(path):
    async with Snapshot.open(path) as s:
        with path.open("ab") as file:
            file.write(b"later")
        assert len([page async for page in s.pages()]) == 16
        for verb in (s.read, s.residency, s.prewarm):
            with pytest.raises(aiommap.OutOfBoundsError):
                await verb(SIZE, 1)
        with pytest.raises(aiommap.OutOfBoundsError):
            s.read_nowait(SIZE, 1)
        with pytest.raises(aiommap.OutOfBoundsError):
            await s.read_many([(0, 1), (SIZE, 1)])
        with pytest.raises(aiommap.OutOfBoundsError):
            s.carve({"a": (SIZE, 1)})


async def test_verbs_of_a_closed_snapshot(path):
    async with Snapshot.open(path) as s:
        pass
    for call in (
        lambda: s.read(0, 1),
        lambda: s.read_many([(0, 1)]),
        lambda: s.prewarm(),
        lambda: s.residency(),
        lambda: s.advise(aiommap.Advice.NORMAL),
        lambda: anext(s.pages()),
    ):
        with pytest.raises(anyio.ClosedResourceError):
            await call()
    with pytest.raises(anyio.ClosedResourceError):
        s.carve({})
    with pytest.raises(anyio.ClosedResourceError):
        s.array("u1")


async def test_iteration_keeps_a_generation_open(path):
    """An iteration ends on the file that it began with, even if nothing else has its snapshot."""
    content = path.read_bytes()
    async with aiommap.follow(path) as live:
        chunks = live.current.chunks(PAGE)
        first = await anext(chunks)
        replace(path, b"next")
        await until_serves(live, b"next")
        assert first + b"".join([chunk async for chunk in chunks]) == content
        del chunks
        await until_mapped(path, 1)
