"""How the threads of a cache share the fetches that wait."""

from __future__ import annotations

import os

import anyio
import anyio.to_thread
import pytest

from aiommap.remote import RemoteError
from tests.support.internals import Workers
from tests.support.objects import BLOCK, Objects

pytestmark = pytest.mark.anyio

BLOCKS = 60


@pytest.fixture
def many():
    return Objects(os.urandom(BLOCKS * BLOCK))


async def read_all_at_once(s, many, outcomes):
    """Read all blocks concurrently; append the numbers of those that failed to ``outcomes``."""

    async def read(number):
        try:
            data = await s.read_exact(number * BLOCK, BLOCK)
            assert data == many.data[number * BLOCK : (number + 1) * BLOCK]
        except RemoteError:
            outcomes.append(number)

    async with anyio.create_task_group() as group:
        for number in range(BLOCKS):
            group.start_soon(read, number)


@pytest.mark.parametrize("workers", [1, 3])
async def test_each_block_is_fetched_once_by_few_threads(make_cache, many, workers):
    async with (
        make_cache(workers=workers, request_size=BLOCK) as cache,
        cache.open(many, read_ahead=False) as s,
    ):
        await read_all_at_once(s, many, [])
        assert sorted(many.gets) == [(at, at + BLOCK) for at in range(0, BLOCKS * BLOCK, BLOCK)]
        assert (await s.residency()).cached == len(many.data)


async def test_thread_goes_on_after_a_fetch_that_failed(make_cache, many):
    def change(start, end):
        if start // BLOCK % 10 == 3:
            raise RemoteError(many.url, "no such luck", start, end - start)

    many.change = change
    failed = []
    async with make_cache(workers=1) as cache, cache.open(many, read_ahead=False) as s:
        await read_all_at_once(s, many, failed)
        assert sorted(failed) == [3, 13, 23, 33, 43, 53]
        assert (await s.residency()).cached == len(many.data) - 6 * BLOCK


async def test_fetches_go_on_after_a_thread_that_could_not_start(make_cache, many, monkeypatch):
    def refuse(*_):
        raise MemoryError

    async with make_cache(workers=1) as cache, cache.open(many, read_ahead=False) as s:
        with monkeypatch.context() as patch:
            patch.setattr(Workers, "start", refuse)
            with pytest.raises(MemoryError):
                await s.read_exact(0, BLOCK)
        with anyio.fail_after(30):
            await read_all_at_once(s, many, [])


async def test_opening_waits_for_few_of_the_fetches_that_wait(make_cache, many):
    """An ``open`` does not wait for all fetches in the queue, even with one thread for both."""
    other = Objects(b"other" * 1000, url="test://host/other")
    async with make_cache(workers=1) as cache, cache.open(many, read_ahead=False) as s:
        many.gate.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(read_all_at_once, s, many, [])
            await anyio.to_thread.run_sync(many.asked.acquire)
            async with anyio.create_task_group() as opening:

                async def open_other():
                    async with cache.open(other):
                        assert len(many.gets) < BLOCKS

                opening.start_soon(open_other)
                await anyio.wait_all_tasks_blocked()
                many.gate.set()
