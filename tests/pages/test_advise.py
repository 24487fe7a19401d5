"""Advice: the effect of each one in the kernel, and when it is refused."""

from __future__ import annotations

import contextlib

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice, OutOfBoundsError, UnsupportedError
from tests.support.pages import dirty_pages, drop_pages, resident_pages

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("advice", Advice)
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
async def test_advice_is_taken_or_refused(path, mode, advice):
    async with aiommap.open(path, mode) as f:
        with contextlib.suppress(UnsupportedError):
            await f.advise(advice)
        assert (await f.read(PAGE, 1)) == b"B"


async def test_random_reads_one_page(cold):
    async with aiommap.open(cold) as f:
        await f.advise(Advice.RANDOM)
        await f.read(100 * PAGE, PAGE)
        assert resident_pages(cold) == {100}


async def test_random_of_a_view_at_opening(cold):
    async with aiommap.open(cold, advice=Advice.RANDOM) as f:
        await f.view(100 * PAGE, PAGE).read(0, 10)
        assert resident_pages(cold) == {100}


async def test_normal_takes_random_back(cold):
    async with aiommap.open(cold, advice=Advice.RANDOM) as f:
        await f.advise(Advice.NORMAL)
        for page in range(4):
            await f.read(page * PAGE, PAGE)
        with anyio.fail_after(100):  # pages that are read ahead take a moment to arrive
            while len(resident_pages(cold)) <= 4:
                await anyio.lowlevel.checkpoint()


async def test_will_need_reads_ahead(cold):
    async with aiommap.open(cold, advice=Advice.RANDOM) as f:
        await f.advise(Advice.WILL_NEED, 64 * PAGE, 16 * PAGE)
        with anyio.fail_after(100):
            while not resident_pages(cold) >= set(range(64, 80)):
                await anyio.lowlevel.checkpoint()
        assert 300 not in resident_pages(cold)


async def test_dont_need_drops_clean_pages(cold):
    async with aiommap.open(cold, "r", prewarm=True) as f:
        await f.advise(Advice.DONT_NEED)
        assert not resident_pages(cold)
        assert len(await f.read(0, PAGE)) == PAGE


async def test_dont_need_keeps_what_was_written(cold):
    """Neither the library nor the kernel drops a dirty page."""
    async with aiommap.open(cold, "r+") as f:
        await f.write(3 * PAGE, b"kept")
        await f.advise(Advice.DONT_NEED)
        assert await f.read(3 * PAGE, 4) == b"kept"
        await f.flush()
        assert dirty_pages(cold) == 0
    drop_pages(cold)
    assert cold.read_bytes()[3 * PAGE : 3 * PAGE + 4] == b"kept"


async def test_dont_need_of_private_pages_is_refused(path):
    """The kernel would throw the stores away."""
    async with aiommap.open(path, "c") as f:
        await f.write(0, b"mine")
        with pytest.raises(UnsupportedError):
            await f.advise(Advice.DONT_NEED)
        assert await f.read(0, 4) == b"mine"


@pytest.mark.parametrize("advice", [Advice.DONT_NEED, Advice.COLD, Advice.PAGE_OUT])
async def test_advise_refused_by_locked_pages(path, advice):
    async with aiommap.open(path, "r+") as f:
        async with f.locked(2 * PAGE, PAGE):
            await f.advise(advice, 0, 2 * PAGE)
            with pytest.raises(UnsupportedError, match="locked") as caught:
                await f.advise(advice)
            assert str(path) in str(caught.value)
        await f.advise(advice)


@pytest.mark.parametrize("wrong", ["random", 1, None])
async def test_advice_of_another_type(path, wrong):
    async with aiommap.open(path) as f:
        with pytest.raises(TypeError, match="Advice"):
            await f.advise(wrong)


async def test_advise_out_of_bounds(path):
    async with aiommap.open(path) as f:
        with pytest.raises(OutOfBoundsError):
            await f.advise(Advice.WILL_NEED, 16 * PAGE, 1)
        with pytest.raises(OutOfBoundsError):
            await f.view(0, PAGE).advise(Advice.WILL_NEED, 0, PAGE + 1)


async def test_advise_of_nothing(path):
    async with aiommap.open(path) as f:
        await f.advise(Advice.WILL_NEED, PAGE, 0)


async def test_advise_of_a_closed_file(path):
    async with aiommap.open(path) as f:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        await f.advise(Advice.NORMAL)
