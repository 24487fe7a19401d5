"""Prewarming: the pages that are resident afterwards (mincore(2)), the result, the progress."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import AccessModeError, MappingFaultError, OutOfBoundsError
from tests.support.pages import COLD_PAGES as PAGES
from tests.support.pages import dirty_pages, resident_pages

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
async def test_prewarm_makes_a_file_resident(cold, mode):
    async with aiommap.open(cold, mode) as f:
        assert not resident_pages(cold)
        assert await f.prewarm() == PAGES * PAGE
        assert resident_pages(cold) == set(range(PAGES))
        assert (await f.residency()).resident == PAGES
        assert len(f.read_nowait(0, PAGES * PAGE)) == PAGES * PAGE


async def test_prewarm_returns_bytes_of_a_range(cold):
    async with aiommap.open(cold) as f:
        assert await f.prewarm(3 * PAGE + 5, 2 * PAGE) == 2 * PAGE
        assert resident_pages(cold) >= {3, 4, 5}
        assert await f.prewarm(7, 0) == 0
        assert await f.prewarm(PAGES * PAGE) == 0


async def test_prewarm_of_a_view_is_relative(cold):
    async with aiommap.open(cold) as f:
        await f.advise(aiommap.Advice.RANDOM)
        assert await f.view(100 * PAGE, 4 * PAGE).prewarm(PAGE) == 3 * PAGE
        assert resident_pages(cold) == {101, 102, 103}


async def test_prewarm_dirties_nothing(cold):
    async with aiommap.open(cold, "r+") as f:
        await f.prewarm()
        assert dirty_pages(cold) == 0
        assert not f.statistics().dirty_bytes


async def test_prewarm_for_writing_keeps_the_bytes(cold):
    before = cold.read_bytes()
    async with aiommap.open(cold, "r+") as f:
        assert await f.prewarm(0, 8 * PAGE, write=True) == 8 * PAGE
        await f.write(PAGE, b"new")
    assert cold.read_bytes() == before[:PAGE] + b"new" + before[PAGE + 3 :]


@pytest.mark.parametrize("mode", ["r", "c"])
async def test_prewarm_for_writing_by_mode(cold, mode):
    async with aiommap.open(cold, mode) as f:
        if mode == "r":
            with pytest.raises(AccessModeError):
                await f.prewarm(write=True)
            assert not resident_pages(cold)
        else:
            assert await f.prewarm(write=True) == PAGES * PAGE
            assert dirty_pages(cold) == 0


async def test_prewarm_reports_progress_in_order(cold):
    reports = []
    async with aiommap.open(cold) as f:
        await f.prewarm(progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (PAGES * PAGE, PAGES * PAGE)
    assert reports == sorted(reports)
    assert {total for _, total in reports} == {PAGES * PAGE}


async def test_prewarm_progress_that_raises(cold):
    async with aiommap.open(cold) as f:
        with pytest.raises(ZeroDivisionError):
            await f.prewarm(progress=lambda done, total: 1 // 0)
        assert await f.read(0, 1)


async def test_prewarm_at_opening(cold):
    async with aiommap.open(cold, prewarm=True):
        assert resident_pages(cold) == set(range(PAGES))


async def test_prewarm_of_an_empty_file(tmp_path):
    (tmp_path / "empty").touch()
    async with aiommap.open(tmp_path / "empty", prewarm=True) as f:
        assert await f.prewarm() == 0


async def test_prewarm_out_of_bounds(cold):
    async with aiommap.open(cold) as f:
        for offset, length in ((0, PAGES * PAGE + 1), (PAGES * PAGE + 1, None), (-1, 1), (0, -1)):
            with pytest.raises(OutOfBoundsError):
                await f.prewarm(offset, length)
        assert not resident_pages(cold)


async def test_prewarm_of_a_truncated_file(cold):
    async with aiommap.open(cold) as f:
        os.truncate(cold, 8 * PAGE)
        with pytest.raises(MappingFaultError):
            await f.prewarm()
        assert await f.prewarm(0, 8 * PAGE) == 8 * PAGE


async def test_prewarm_cancelled_before_it_began(cold):
    async with aiommap.open(cold) as f:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await f.prewarm()
        assert scope.cancelled_caught
        assert await f.prewarm() == PAGES * PAGE


async def test_prewarm_from_many_tasks(cold):
    async with aiommap.open(cold) as f, anyio.create_task_group() as group:
        for at in range(0, PAGES, 16):
            group.start_soon(f.prewarm, at * PAGE, 16 * PAGE)
    assert resident_pages(cold) == set(range(PAGES))


async def test_prewarm_leaves_holes_of_tmpfs():
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        pytest.skip("there is no /dev/shm to write to")
    path = folder / f"aiommap-prewarm-{os.getpid()}"
    with open(path, "wb") as file:
        file.truncate(64 * PAGE)
    try:
        async with aiommap.open(path) as f:
            assert await f.prewarm() == 64 * PAGE
            assert path.stat().st_blocks == 0
            assert await f.read(0, 3) == bytes(3)
    finally:
        path.unlink()


def test_oracle_tells_resident_pages(cold):
    with open(cold, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_RANDOM)
        assert not resident_pages(cold)
        assert len(mapped[5 * PAGE : 5 * PAGE + 1]) == 1
        assert resident_pages(cold) == {5}
