"""Our hops never wait for the application's threads, however busy it keeps them (I12).

The application's threads are held by an event that is set only when the test is over: a verb that
needed one of them would never finish.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice, FlushPolicy

pytestmark = pytest.mark.anyio
SIZE = 1024 * PAGE
#: More than the threads of asyncio's default executor: min(32, processors + 4).
EXECUTOR_CALLS = 64


@pytest.fixture
def path(tmp_path):
    """Larger than what any verb does inline."""
    made = tmp_path / "file"
    made.write_bytes(b"o" * SIZE)
    return made


@asynccontextmanager
async def busy_application():
    """Fill anyio's default limiter and, on asyncio, the default executor, and queue more."""
    release = threading.Event()
    limiter = anyio.to_thread.current_default_thread_limiter()
    calls = []
    async with anyio.create_task_group() as group:
        try:
            for _ in range(int(limiter.total_tokens)):
                group.start_soon(anyio.to_thread.run_sync, release.wait)
            if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
                loop = asyncio.get_running_loop()
                calls = [loop.run_in_executor(None, release.wait) for _ in range(EXECUTOR_CALLS)]
            while limiter.available_tokens:
                await anyio.lowlevel.checkpoint()
            yield
            assert not limiter.available_tokens
            assert not any(call.done() for call in calls)
        finally:
            release.set()
    await asyncio.wait(calls) if calls else None


async def read_cold(f, path):
    """DONT_NEED drops the pages, so that the read has to wait for the disk."""
    await f.advise(Advice.DONT_NEED)
    before = f.statistics().offloaded_reads
    assert await f.read(0, SIZE) == b"o" * SIZE
    assert f.statistics().offloaded_reads == before + 1


async def write_in_the_lane(f, path):
    before = f.statistics().offloaded_writes
    await f.write(0, b"n" * SIZE)
    assert f.statistics().offloaded_writes == before + 1
    assert path.read_bytes() == b"n" * SIZE


async def flush(f, path):
    receipt = await f.write(0, b"n")
    await f.flush()
    assert receipt.durable


async def page(f, path):
    assert await f.prewarm() == SIZE
    assert (await f.residency()).fraction == 1.0
    async with f.locked(0, PAGE):
        pass


async def resize(f, path):
    await f.resize(2 * SIZE)
    await f.punch_hole(0, SIZE)
    assert path.stat().st_size == 2 * SIZE


async def open_and_close(f, path):
    async with aiommap.open(path, "r+", prewarm=True) as other:
        await other.write(0, b"n")
    async with aiommap.Hub() as hub:
        await hub.open(path)


VERBS = {
    verb.__name__: verb
    for verb in (read_cold, write_in_the_lane, flush, page, resize, open_and_close)
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_a_verb_finishes_while_the_application_keeps_all_its_threads(path, verb):
    f = await aiommap.open(path, "r+")
    async with busy_application():
        with anyio.fail_after(5):
            await verb(f, path)
            await f.aclose()


async def test_a_whole_life_of_a_file_needs_no_thread_of_the_application(path):
    async with busy_application():
        with anyio.fail_after(5):
            f = await aiommap.open(path, "r+", flush=FlushPolicy.always())
            await f.write(0, b"n" * SIZE)
            assert await f.read(0, SIZE) == b"n" * SIZE
            assert f.statistics().dirty_bytes == 0
            await f.aclose()


@pytest.mark.parametrize("held", ["reads", "stores", "flushes"])
async def test_our_own_kinds_of_work_do_not_starve_one_another(path, held):
    """W1: all the threads of one kind are taken, and every other kind goes on."""
    async with aiommap.open(path, "r+") as f:
        limiter = getattr(f._core.workers, held)
        holders = [object() for _ in range(int(limiter.total_tokens))]
        for holder in holders:
            limiter.acquire_on_behalf_of_nowait(holder)
        try:
            with anyio.fail_after(5):
                for kind, verb in {
                    "reads": f.residency,
                    "stores": lambda: f.write(0, b"n" * SIZE),
                    "flushes": f.start_writeback,
                    "control": lambda: f.resize(SIZE + PAGE),
                }.items():
                    if kind != held:
                        await verb()
        finally:
            for holder in holders:
                limiter.release_on_behalf_of(holder)
