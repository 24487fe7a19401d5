"""A process that has no descriptor left."""

from __future__ import annotations

import os
import resource

import pytest

from tests.support.objects import DATA, Objects

pytestmark = pytest.mark.anyio


@pytest.fixture
def few_descriptors():
    """A limit of some descriptors more than are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 30, hard)
    )
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def open_many(cache, opened):
    for number in range(100):
        opened.append(await cache.open(Objects(DATA, url=f"test://h/{number}")))


async def test_error_names_the_object_and_the_remedy(make_cache, few_descriptors):
    opened = []
    async with make_cache(on_error=list) as cache:
        with pytest.raises(OSError, match="close some snapshots") as caught:
            await open_many(cache, opened)
        assert caught.value.filename == f"test://h/{len(opened)}"
        assert await opened[0].read_exact(0, 9) == DATA[:9]
        for snapshot in opened:
            await snapshot.aclose()
        async with cache.open(Objects(DATA, url="test://h/again")) as s:
            assert await s.read_exact(0, 9) == DATA[:9]
