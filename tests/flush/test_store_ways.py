"""The way of a store of the loop thread: pwrite(2) for as long as a flush can be expected."""

from __future__ import annotations

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.internals import core_of

pytestmark = pytest.mark.anyio

#: After this number of writes without a flush, stores go through the mapping.
FEW = 4096


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * PAGE))
    return path


async def write(f, count):
    """Write to different pages; return how many writes were system calls on the loop thread."""
    mapping = core_of(f).mapping
    before = mapping.inline_pwrites
    inline = f.statistics().inline_writes
    for i in range(count):
        await f.write(i % 64 * PAGE, b"record")
    assert f.statistics().inline_writes - inline == count
    return mapping.inline_pwrites - before


@pytest.mark.parametrize("policy", [FlushPolicy.manual(), FlushPolicy.never()], ids=str)
async def test_who_never_flushes_stores_through_the_mapping(path, policy):
    async with aiommap.open(path, "r+", flush=policy) as f:
        await f.prewarm()
        assert await write(f, FEW) == FEW
        assert await write(f, FEW) <= 64  # at most one for each page, as it turns hot


async def test_who_flushes_stays_on_pwrite(path):
    async with aiommap.open(path, "r+") as f:
        await f.prewarm()
        for _ in range(3):
            assert await write(f, 100) == 100
            await f.flush()
        assert await write(f, FEW + 1000) == FEW
        await f.flush()
        assert await write(f, 2 * FEW) == 2 * FEW  # the flush had many writes, so the limit grew
        await f.flush_range(0, 10)
        await write(f, 1)
        await f.flush()  # one small flush does not lower the limit at once
        assert await write(f, FEW + 1000) == FEW + 1000
        for _ in range(5):
            await f.flush()
            await write(f, 1)
        await f.flush()
        assert await write(f, FEW + 1000) == FEW


@pytest.mark.parametrize(
    "policy",
    [
        FlushPolicy.every_interval(3600),
        FlushPolicy.every_bytes(1 << 40),
        FlushPolicy.every_writes(1 << 40),
    ],
    ids=str,
)
async def test_policy_that_flushes_stays_on_pwrite(path, policy):
    async with aiommap.open(path, "r+") as f:
        await f.prewarm()
        f.flush_policy = policy
        await write(f, 1)
        assert await write(f, 2 * FEW) == 2 * FEW
        f.flush_policy = FlushPolicy.manual()
        assert await write(f, FEW) == 0


async def test_pages_stored_to_through_the_mapping_are_no_dearer(path):
    """Their whole folios are dirty already, until a flush begins."""
    async with aiommap.open(path, "r+") as f:
        await f.prewarm(write=True)
        assert await write(f, 64) == 0
        await f.flush()
        assert await write(f, 64) == 64


async def test_private_pages_stay_in_the_mapping(path):
    async with aiommap.open(path, "c") as f:
        await f.prewarm()
        assert await write(f, 10) == 0
        assert path.read_bytes() == bytes(64 * PAGE)


async def test_words_and_writes_see_each_other(path):
    async with aiommap.open(path, "r+") as f:
        word = f.atomic_u64(8)
        for i in range(100):
            word.store(i)
            await f.write(0, i.to_bytes(8, "little"))
            assert f.atomic_u64(0).load() == i
            assert await f.read(8, 8) == i.to_bytes(8, "little")
            await f.write(8, (i + 1).to_bytes(8, "little"))
            assert word.fetch_add(1) == i + 1
            if not i % 10:
                await f.flush()


@pytest.mark.parametrize("sparse", [False, True], ids=["reserved", "sparse"])
async def test_several_new_pages_need_their_blocks(tmp_path, sparse):
    """The disk might turn out full half-way, so a worker reserves the blocks first."""
    path = tmp_path / "new"
    async with aiommap.open(path, "w+", size=64 * PAGE, sparse=sparse) as f:
        mapping = core_of(f).mapping
        await f.write(4 * PAGE, b"n" * 4 * PAGE)
        assert (mapping.inline_pwrites, f.statistics().offloaded_writes) == (not sparse, sparse)
        await f.write(16 * PAGE, b"o" * PAGE)  # one page is stored whole or not at all
        await f.write(20 * PAGE + 100, b"p" * 3 * PAGE)
        assert (mapping.inline_pwrites, f.statistics().offloaded_writes) == (
            3 - sparse * 2,
            sparse * 2,
        )
        model = bytearray(64 * PAGE)
        model[4 * PAGE : 8 * PAGE] = b"n" * 4 * PAGE
        model[16 * PAGE : 17 * PAGE] = b"o" * PAGE
        model[20 * PAGE + 100 : 23 * PAGE + 100] = b"p" * 3 * PAGE
        assert path.read_bytes() == model
        await f.write(22 * PAGE, b"q" * 2 * PAGE)  # partly there, partly new
        model[22 * PAGE : 24 * PAGE] = b"q" * 2 * PAGE
        assert path.read_bytes() == model
