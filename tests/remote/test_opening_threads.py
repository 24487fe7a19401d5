"""Opening an object of which nothing is cached: the threads that do it at the same time."""

from __future__ import annotations

import fcntl
import os
import struct
from functools import partial

import anyio
import anyio.to_thread
import pytest

from tests.support.fault_proxy import nothing
from tests.support.internals import CACHE_MARKER, beside, budget
from tests.support.objects import BLOCK, DATA, BegunObjects, Objects
from tests.support.remote import asked
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def objects():
    return BegunObjects(DATA)


def lock_folder(folder):
    """Lock the folder of a cache, as each change of it does; return what closes the lock."""
    fd = os.open(f"{folder}/{CACHE_MARKER}", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", fcntl.F_WRLCK, 0, 0, 1, 0))
    return partial(os.close, fd)


async def test_block_comes_while_the_files_are_made(make_cache, objects, monkeypatch):
    """The files cannot be made before the block is asked for: that unlocks the folder."""
    monkeypatch.setattr(budget, "PATIENCE_SECONDS", 30)
    async with make_cache() as cache:
        async with cache.open(Objects(b"other", url="test://host/other")):
            pass  # the folder is there
        unlock = await anyio.to_thread.run_sync(lock_folder, cache.folder)

        def tear(data):
            unlock()
            return data

        objects.tear = tear
        async with cache.open(objects) as s:
            assert await s.read_exact(0, 10) == DATA[:10]
            assert (await s.residency()).cached == BLOCK
        assert asked(cache) == (1, 1)


async def test_folder_is_made_while_the_store_is_asked(make_cache, objects):
    objects.door.clear()
    async with make_cache() as cache:

        async def let_in():
            await until(lambda: os.path.exists(f"{cache.folder}/{CACHE_MARKER}"))
            await anyio.to_thread.run_sync(objects.arrived.acquire)
            objects.door.set()

        async with anyio.create_task_group() as group:
            group.start_soon(let_in)
            async with cache.open(objects) as s:
                assert await s.read_exact(0, 10) == DATA[:10]
        assert (objects.begun, asked(cache)) == ([BLOCK], (1, 0))


async def test_opens_where_no_second_thread_can_be_started(make_cache, objects, monkeypatch):
    def no_thread(job):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(beside, "run_in_thread", no_thread)
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        assert (objects.begun, objects.fetched) == ([BLOCK], len(DATA) - BLOCK)


async def test_folder_that_cannot_be_made_fails_no_opening(make_cache, objects, tmp_path):
    (tmp_path / "file").touch()
    async with (
        make_cache(folder=tmp_path / "file" / "cache", on_error=nothing) as cache,
        cache.open(objects) as s,
    ):
        assert await s.read_exact(0, len(DATA)) == DATA
        assert (cache.statistics().errors > 0, objects.begun) == (True, [BLOCK])


async def test_first_block_that_cannot_be_stored_is_requested_once(make_cache, objects, tmp_path):
    """It comes, and there is no room for it, before the loop has time for the opening."""
    (tmp_path / "file").touch()

    def keep_the_loop_busy(_):
        while not cache.statistics().unstored_blocks:
            objects.asked.acquire(timeout=0.01)

    async with (
        make_cache(folder=tmp_path / "file" / "cache", on_error=keep_the_loop_busy) as cache,
        cache.open(objects, read_ahead=True) as s,
    ):
        assert await s.read_exact(0, 10) == DATA[:10]
        assert await s.read_exact(10, 10) == DATA[10:20]
        assert (objects.begun, objects.gets) == ([BLOCK], [])


async def test_abandoned_opening_leaves_nothing(make_cache, objects):
    """The task is gone when the response comes: nothing stays open, and no block is taken."""
    given_up = anyio.Event()

    async def open_it():
        try:
            await cache.open(objects)
        finally:
            given_up.set()

    objects.door.clear()
    async with make_cache(workers=1) as cache:
        async with cache.open(Objects(b"other", url="test://host/other")):
            pass  # the folder is there
        async with anyio.create_task_group() as group:
            group.start_soon(open_it)
            await anyio.to_thread.run_sync(objects.arrived.acquire)
            group.cancel_scope.cancel()
        assert given_up.is_set()
        objects.door.set()
        # The only thread is done with the abandoned object before it opens this one.
        async with cache.open(Objects(b"third", url="test://host/third")):
            assert cache.statistics().open_objects == 1
        assert not objects.asked.acquire(blocking=False)


async def test_opening_abandoned_while_its_files_are_made(make_cache, objects, monkeypatch):
    """The block is on its way by then, and is stored all the same; nothing stays open (R11)."""
    monkeypatch.setattr(budget, "PATIENCE_SECONDS", 30)
    async with make_cache(workers=1) as cache:
        async with cache.open(Objects(b"other", url="test://host/other")):
            pass  # the folder is there
        unlock = await anyio.to_thread.run_sync(lock_folder, cache.folder)
        async with anyio.create_task_group() as group:
            group.start_soon(cache.open(objects).__aenter__)
            await anyio.to_thread.run_sync(objects.asked.acquire)
            group.cancel_scope.cancel()
        unlock()
        # The only thread is done with the abandoned object before it opens this one.
        async with cache.open(Objects(b"third", url="test://host/third"), read_ahead=False):
            found = cache.statistics()
            assert (found.open_objects, found.stored_blocks) == (1, 1)
        async with cache.open(objects) as s:
            assert await s.read_exact(0, 10) == DATA[:10]
            assert (objects.begun, objects.gets) == ([BLOCK], [])


async def test_response_for_a_cached_block_occupies_a_thread(make_cache, objects):
    """Openings whose first block is cached wait for its bytes, or they would pile up."""

    def refuse(_known):
        raise PermissionError(13, "signed for GET", objects.url)

    objects.stat = refuse
    other = Objects(b"other", url="test://host/other")
    async with make_cache(workers=1) as cache:
        async with cache.open(objects) as s:
            assert await s.read_exact(0, 10) == DATA[:10]
        objects.asked.acquire()
        objects.gate.clear()
        async with cache.open(objects) as s:
            assert await s.read_exact(0, 10) == DATA[:10]
            await anyio.to_thread.run_sync(objects.asked.acquire)
            with anyio.move_on_after(0.1) as too_long:
                async with cache.open(other):
                    pass
            assert too_long.cancelled_caught
            objects.gate.set()
        async with cache.open(other):
            pass
