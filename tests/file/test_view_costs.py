"""Costs that grow with the number of views: the calls of ``carve``, and the scan for statistics."""

from __future__ import annotations

import gc
import sys

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE

pytestmark = pytest.mark.anyio


def calls_of(function):
    """Count the calls, of Python and of native functions, that one call makes."""
    count = 0

    def profile(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()
    sys.setprofile(profile)
    try:
        kept = function()
    finally:
        sys.setprofile(None)
        gc.enable()
    del kept
    return count


async def test_carve_makes_few_calls_a_part(path):
    async with aiommap.open(path, "r+") as f:
        parts = {number: (number, 1) for number in range(2 * PAGE)}
        few = {number: parts[number] for number in range(PAGE)}
        for carve in (f.carve, f.view().carve):
            # The check, the view and its lease, none of them twice.
            assert (calls_of(lambda: carve(parts)) - calls_of(lambda: carve(few))) / PAGE < 9.5  # noqa: B023


async def test_statistics_after_leases_go(path):
    async with aiommap.open(path, "r+") as f:
        views = [f.view(at, 1) for at in range(200)]
        for gone, oldest in ((0, 1), (199, 1), (1, 2), (100, 2)):
            views[gone].release()
            found = f.statistics()
            assert found.leased[0].offset == oldest
        expected = [at for at in range(2, 200) if at != 100][:64]
        assert [each.offset for each in found.leased] == expected
        for view in views:
            view.release()
        assert f.statistics().leased == ()
        again = f.view(7, 1)
        assert [each.offset for each in f.statistics().leased] == [7]
        again.release()


async def test_dirty_bytes_find_the_writable_view_among_others(path):
    async with aiommap.open(path, "r+") as f:
        first = f.view(0, 1).memory
        others = [f.view(PAGE, 1) for _ in range(10)]
        last = f.view(2 * PAGE, 1).memory
        others += [f.view(3 * PAGE, 1) for _ in range(10)]
        await f.flush()
        assert f.statistics().dirty_bytes == 2 * PAGE
        del first, last, others
