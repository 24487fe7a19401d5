"""A cache of remote objects on a disk that fills up, and that has room again."""

from __future__ import annotations

import errno

import pytest

from aiommap.remote import RemoteCache
from tests.support.devices import fill
from tests.support.objects import BLOCK, Objects
from tests.support.remote import content
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

SIZE = 64 * BLOCK


async def test_full_disk_is_told_again_after_it_had_room(small_disk):
    failures = []
    objects = Objects(content(1, SIZE))
    filler = small_disk.folder / "filler"
    async with (
        RemoteCache(
            small_disk.folder / "cache",
            block_size=BLOCK,
            request_size=4 * BLOCK,
            min_free=0.0,
            on_error=failures.append,
        ) as cache,
        cache.open(objects, read_ahead=False) as s,
    ):
        for times in (1, 2):
            fill(filler)
            for _ in range(2):
                assert await s.read_exact(0, SIZE) == objects.data
            await until(lambda: len(failures) >= cache.statistics().errors)
            assert len(failures) == cache.statistics().errors == times
            filler.unlink()
            assert await s.prewarm() == SIZE
            assert await cache.clear() > 0
    assert {failure.errno for failure in failures} == {errno.ENOSPC}
    assert all("make room on the disk" in str(failure).lower() for failure in failures)
