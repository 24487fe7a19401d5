"""Chunks of a view, and flushes of a view, of a part of it, or of a receipt."""

from __future__ import annotations

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import OutOfBoundsError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("size", [1, 100, PAGE, 3 * PAGE - 1, 3 * PAGE, 2**70])
async def test_chunks_of_a_view_cover_it(path, size):
    content = path.read_bytes()[PAGE + 5 : 4 * PAGE + 5]
    async with aiommap.open(path) as f:
        view = f.view(PAGE + 5, 3 * PAGE)
        found = [chunk async for chunk in view.chunks(size)]
        assert (b"".join(found), {*map(len, found[:-1])}) == (
            content,
            {size} if found[1:] else set(),
        )
        assert [len(chunk) async for chunk in view.pages()] == [PAGE] * 3
        assert [chunk async for chunk in f.view(7, 0).chunks(size)] == []
        with pytest.raises(ValueError, match="size is 0: ask for at least 1 byte"):
            view.chunks(0)


async def test_chunks_end_with_the_view(path):
    async with aiommap.open(path, "r+") as f:
        released, cut = f.view(0, 3 * PAGE), f.view(0, 3 * PAGE)
        walks = released.chunks(PAGE), cut.chunks(PAGE)
        for walk in walks:
            await anext(walk)
        released.release()
        with pytest.raises(anyio.ClosedResourceError, match="the view was released"):
            await anext(walks[0])
        await f.resize(PAGE)
        with pytest.raises(OutOfBoundsError, match="only 4096"):
            await anext(walks[1])


async def test_flush_of_a_view_part_or_receipt(path):
    async with aiommap.open(path, "r+") as f:
        view = f.view(PAGE, 4 * PAGE)
        await view.write_many([(0, b"first"), (2 * PAGE, b"third")])
        last = await view.write(3 * PAGE, b"fourth")
        await view.start_writeback(PAGE, PAGE)
        for arguments, dirty in (((0, 1), 2), ((last,), 1), ((2 * PAGE, 5), 0)):
            await view.flush_range(*arguments)
            assert f.statistics().dirty_bytes == dirty * PAGE
        assert last.durable
        with pytest.raises(TypeError, match="a receipt, or an offset and a length"):
            await view.flush_range(0)
        view.release()
        with pytest.raises(anyio.ClosedResourceError, match="the view was released"):
            await view.flush_range(last)
