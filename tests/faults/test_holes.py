"""Holes of a file on tmpfs: no verb that only reads makes them take memory."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.disks import must
from tests.support.internals import PIECE_BYTES, RangeSet

pytestmark = pytest.mark.anyio

SIZE = 3 * PIECE_BYTES
#: The places of data: at the borders of pieces, at the start and at the end.
DATA = (0, PIECE_BYTES - PAGE, 2 * PIECE_BYTES + 5 * PAGE, SIZE - 100)


@pytest.fixture
def sparse(tmp_path):
    """Yield a file of many holes on a tmpfs with room for its data, and not for its holes."""
    folder = tmp_path / "small"
    folder.mkdir()
    must("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
    path = folder / "sparse"
    with path.open("wb") as file:
        for at in DATA:
            file.seek(at)
            file.write(b"d" * 100)
    yield path
    subprocess.run(["umount", "--lazy", folder], check=True)


def blocks(path):
    return os.stat(path).st_blocks


async def prewarm(f):
    assert await f.prewarm() == SIZE
    assert await f.prewarm(PAGE, 10 * PAGE) == 10 * PAGE
    assert await f.prewarm(SIZE - 50, 50) == 50


async def locked(f):
    async with f.locked():
        assert await f.read(SIZE - 100, 100) == b"d" * 100
        assert await f.read(PIECE_BYTES, PAGE) == bytes(PAGE)
    async with f.locked(PAGE, PAGE), f.locked(0, PAGE):
        assert await f.read(PAGE, PAGE) == bytes(PAGE)


async def chunked(f):
    content = b"".join([bytes(chunk) async for chunk in f.chunks(1 << 20)])
    assert (len(content), content.count(b"d")) == (SIZE, len(DATA) * 100)


async def read(f):
    assert await f.read(0, 200) == b"d" * 100 + bytes(100)
    assert len(await f.read(PAGE, 1 << 20)) == 1 << 20
    assert f.read_nowait(10 * PAGE, PAGE) == bytes(PAGE)
    assert len(await f.read_many([(at, PAGE) for at in range(0, SIZE - PAGE, 100 * PAGE)])) > 2


async def look(f):
    assert (await f.residency()).total == SIZE // PAGE
    await f.advise(aiommap.Advice.WILL_NEED)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("verb", [prewarm, locked, chunked, read, look])
async def test_verb_leaves_holes_alone(sparse, verb, mode):
    before = blocks(sparse)
    async with aiommap.open(sparse, mode) as f:
        await verb(f)
    assert blocks(sparse) == before


@pytest.mark.parametrize("options", [{"prewarm": True}, {"lock": True}])
async def test_open_leaves_holes_alone(sparse, options):
    before = blocks(sparse)
    async with aiommap.open(sparse, **options) as f:
        assert await f.read(SIZE - 100, 100) == b"d" * 100
    async with aiommap.follow(sparse) as live:
        assert await live.current.read_exact(PAGE, PAGE) == bytes(PAGE)
    assert blocks(sparse) == before


async def test_prewarm_makes_sparse_data_resident(sparse):
    async with aiommap.open(sparse) as f:
        await f.prewarm()
        found = await f.residency()
        assert [at // PAGE for at, _ in found.runs] == [at // PAGE for at in DATA]


async def test_prewarm_counts_runs_in_a_worker(sparse, monkeypatch):
    threads = set()
    add = RangeSet.add

    def noted(self, offset, end):
        threads.add(threading.get_ident())
        add(self, offset, end)

    monkeypatch.setattr(RangeSet, "add", noted)
    async with aiommap.open(sparse) as f:
        assert await f.prewarm() == f.size
    assert threads
    assert threading.get_ident() not in threads


async def test_page_stored_under_a_lock_is_locked(sparse):
    async with aiommap.open(sparse, "r+") as f, f.locked():
        await f.write(10 * PAGE, b"x" * PAGE)
        assert await f.read(10 * PAGE, PAGE) == b"x" * PAGE
        with pytest.raises(aiommap.UnsupportedError, match="locked"):
            await f.advise(aiommap.Advice.DONT_NEED, 10 * PAGE, PAGE)


async def test_lock_of_holes_outlives_growth(sparse):
    async with aiommap.open(sparse, "r+", sparse=True) as f, f.locked():
        before = blocks(sparse)
        await f.resize(2 * SIZE)  # maps the whole file again
        assert await f.read(SIZE - 100, 100) == b"d" * 100
        assert blocks(sparse) == before


async def test_prewarm_of_a_cut_sparse_file(sparse):
    async with aiommap.open(sparse) as f:
        os.truncate(sparse, PIECE_BYTES)
        with pytest.raises(aiommap.MappingFaultError):
            await f.prewarm()


async def test_prewarm_write_on_a_full_tmpfs(sparse):
    async with aiommap.open(sparse, "r+") as f:
        with pytest.raises(OSError, match=r"No space left.*hole") as caught:
            await f.prewarm(write=True)
        assert not isinstance(caught.value, aiommap.MappedFileError)
        assert caught.value.filename == str(sparse)
