"""Verbs leave no reference cycles: their objects are freed when they return, not later."""

from __future__ import annotations

import gc
import os
import weakref
from contextlib import suppress

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy

pytestmark = pytest.mark.anyio
LARGE = 64 * PAGE  # stores of this size go through the queue


async def garbage_of(verb, times=20):
    """Count the objects that a verb leaves to the collector; the first call may fill caches.

    The result is the lowest of three rounds: in one of them a task of an earlier test may end.
    """
    await verb()
    rounds = []
    for _ in range(3):
        gc.collect()
        gc.disable()
        try:
            for _ in range(times):
                await verb()
            rounds.append(gc.collect())
        finally:
            gc.enable()
    return min(rounds)


@pytest.fixture
async def large(path):
    os.truncate(path, LARGE)
    async with aiommap.Hub() as hub, hub.open(path, "r+") as f:
        yield f


async def test_queued_store_is_freed_at_once(large):
    data = b"x" * LARGE
    assert await garbage_of(lambda: large.write(0, data)) == 0


async def test_durable_write_is_freed_at_once(large):
    large.flush_policy = FlushPolicy.always()
    assert await garbage_of(lambda: large.write(0, b"x")) == 0


async def test_cold_read_is_freed_at_once(large):
    async def cold():
        os.posix_fadvise(large._mapping.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        await large.read(0, LARGE)

    await large.flush()
    assert await garbage_of(cold) == 0


async def test_faulting_store_is_freed_at_once(large):
    async def fault():
        with suppress(aiommap.MappingFaultError):
            await large.write(0, b"x" * LARGE)

    os.truncate(large.path, PAGE)
    large.flush_policy = FlushPolicy.never()
    assert await garbage_of(fault) == 0


async def test_failing_open_is_freed_at_once(path):
    async with aiommap.Hub() as hub:

        async def missing():
            with suppress(FileNotFoundError):
                await hub.open(f"{path}.missing")

        assert await garbage_of(missing) == 0


async def test_failing_resize_is_freed_at_once(large):
    async def fail():
        with suppress(OSError):
            await large.resize(1 << 46)

    assert await garbage_of(fail) == 0


async def test_error_callback_may_keep_new_objects(path):
    class Log:
        async def fill(self):
            async with aiommap.open(path, "r+") as f:
                f.on_error(self.fail)
                self.kept = f, f.view(), f.atomic_u32(0), f.allocator(0), aiommap.AsyncLock(f, 8)
                self.receipt = await f.write(0, b"x")

        def fail(self, error):
            raise NotImplementedError

    log = Log()
    await log.fill()
    gone = weakref.ref(log)
    del log
    gc.collect()
    assert gone() is None
