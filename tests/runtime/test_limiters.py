"""Our hops never wait for the application's threads, however busy it keeps them (I12).

An event that is set only at the end of the test holds the application's threads. A verb that needed
one of them would never finish.
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
from tests.support.internals import BatchQueue, Workers, workers_of
from tests.support.limiters import held

pytestmark = pytest.mark.anyio
SIZE = 1024 * PAGE
#: More than the threads of asyncio's default executor: min(32, processors + 4).
EXECUTOR_CALLS = 64
#: Only a verb that waits in vain for a thread takes so long.
HANG_SECONDS = 5


@pytest.fixture
def path(tmp_path):
    """A file that is too large for any verb to work inline."""
    made = tmp_path / "file"
    made.write_bytes(b"o" * SIZE)
    return made


@asynccontextmanager
async def busy_application():
    """Fill anyio's default limiter and, on asyncio, also the default executor and its queue."""
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


async def write_in_the_queue(f, path):
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
    for verb in (read_cold, write_in_the_queue, flush, page, resize, open_and_close)
}


async def finish(group, verb):
    """Run a verb in a task of the group; if it fails, the group waits until threads are free."""

    async def run():
        await verb()
        done.set()

    done = anyio.Event()
    group.start_soon(run)
    with anyio.fail_after(HANG_SECONDS):
        await done.wait()


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_verb_while_all_threads_are_taken(path, verb):
    f = await aiommap.open(path, "r+")
    async with anyio.create_task_group() as group, busy_application():
        await finish(group, lambda: verb(f, path))
        await finish(group, f.aclose)


async def whole_life(path):
    f = await aiommap.open(path, "r+", flush=FlushPolicy.always())
    await f.write(0, b"n" * SIZE)
    assert await f.read(0, SIZE) == b"n" * SIZE
    assert f.statistics().dirty_bytes == 0
    await f.aclose()


async def test_file_life_while_threads_are_taken(path):
    async with anyio.create_task_group() as group, busy_application():
        await finish(group, lambda: whole_life(path))


KINDS = {
    "reads": lambda f: f.residency(),
    "stores": lambda f: f.write(0, b"n" * SIZE),
    "flushes": lambda f: f.start_writeback(),
    "control": lambda f: f.advise(Advice.NORMAL),
}


@pytest.mark.parametrize("busy", KINDS)
async def test_own_kinds_of_work_do_not_starve(path, busy):
    """workers.1: if all threads of one kind are taken, every other kind goes on."""
    async with aiommap.open(path, "r+") as f, anyio.create_task_group() as group:
        with held(workers_of(f), getattr(workers_of(f), busy)):
            for kind, verb in KINDS.items():
                if kind != busy:
                    await finish(group, lambda verb=verb: verb(f))


async def test_batch_cancelled_by_all_is_waited_out():
    begun = []
    queue = BatchQueue(Workers(), lambda kind, items, done: begun.append((items, done)))
    ended = []

    async def submit(item, scope):
        with scope:
            await queue.submit(item)
        ended.append((item, scope.cancelled_caught))

    scopes = [anyio.CancelScope() for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for item, scope in enumerate(scopes):
            tasks.start_soon(submit, item, scope)
            await anyio.wait_all_tasks_blocked()
        begun[0][1]([None])
        await anyio.wait_all_tasks_blocked()
        assert [items for items, _ in begun] == [[0], [1, 2]]
        for scope in scopes[1:]:
            scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert ended == [(0, False)]
        begun[1][1]([None, None])
    assert sorted(ended) == [(0, False), (1, True), (2, True)]


async def test_very_many_new_files_are_flushed_at_once(tmp_path):
    """A worker flushes each, because its name is not durable, and gives its token back at once."""
    count = 1500  # more than Python's limit on nested calls
    async with aiommap.Hub() as hub:
        files = [await hub.open(tmp_path / str(i), "x+", size=1) for i in range(count)]
        with anyio.fail_after(100):
            async with anyio.create_task_group() as group:
                for f in files:
                    group.start_soon(f.flush)
        assert sum(f.statistics().flushes for f in files) == count
