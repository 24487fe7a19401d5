"""Waiting for space: in order, without leaks on cancellation, and with an error at close."""

from __future__ import annotations

import asyncio
import gc

import anyio
import pytest
from anyio.lowlevel import checkpoint

import aiommap
from aiommap import PAGE_SIZE as PAGE

pytestmark = pytest.mark.anyio


@pytest.fixture
async def file(path):
    async with aiommap.open(path, "r+") as f:
        yield f


@pytest.fixture
def alloc(file):
    """An allocator of a hundred bytes, from 1000 on."""
    return file.allocator(1000, end=1100)


class Queue:
    """Tasks that wait for space, begun one after the other, and the range that each one got."""

    def __init__(self, alloc, group):
        self.alloc, self.group = alloc, group
        self.got, self.scopes, self.ended = {}, {}, {}

    async def join(self, name, length):
        """Start a task and return when it waits."""
        waiting = len(self.alloc._waiters)
        self.scopes[name], self.ended[name] = anyio.CancelScope(), anyio.Event()
        self.group.start_soon(self.wait, name, length)
        while len(self.alloc._waiters) == waiting and not self.ended[name].is_set():
            await checkpoint()

    async def wait(self, name, length):
        with self.scopes[name]:
            try:
                self.got[name] = await self.alloc.acquire(length)
            except anyio.ClosedResourceError as error:
                self.got[name] = error
        self.ended[name].set()

    async def end_of(self, name):
        with anyio.fail_after(100):  # a forgotten task then fails the test instead of hanging it
            await self.ended[name].wait()

    async def place(self, name):
        """Return the place of the range that a task got."""
        await self.end_of(name)
        return self.got[name].offset, self.got[name].length


async def test_acquire_with_room_does_not_wait(alloc):
    allocated = await alloc.acquire(100)
    assert (allocated.offset, allocated.length, alloc.remaining) == (1000, 100, 0)


async def test_acquire_is_served_in_order(alloc):
    blocks = [alloc.allocate(10) for _ in range(10)]
    async with anyio.create_task_group() as group:
        queue = Queue(alloc, group)
        for name, length in (("large", 30), ("small", 5), ("medium", 15)):
            await queue.join(name, length)
        for block in blocks[:2]:
            alloc.free(block)
        assert alloc.remaining == 20  # "small" would fit, but waits for its turn
        for block in blocks[2:4]:
            alloc.free(block)
        assert await queue.place("large") == (1000, 30)
        assert await queue.place("small") == (1030, 5)
        await queue.join("late", 5)
        assert alloc.remaining == 5  # "medium" came before "late", and needs more
        alloc.free(blocks[4])
        assert await queue.place("medium") == (1035, 15)
        assert alloc.remaining == 0
        alloc.free(blocks[5])
        assert await queue.place("late") == (1050, 5)


async def test_free_serves_all_that_fit(alloc):
    whole = alloc.allocate(100)
    async with anyio.create_task_group() as group:
        queue = Queue(alloc, group)
        for name in range(5):
            await queue.join(name, 25)
        alloc.free(whole)
        assert alloc.remaining == 0  # granted before the tasks run, so no other can come between
        assert [await queue.place(name) for name in range(4)] == [
            (1000, 25),
            (1025, 25),
            (1050, 25),
            (1075, 25),
        ]
        assert 4 not in queue.got
        alloc.free(queue.got[2])
        assert await queue.place(4) == (1050, 25)


@pytest.mark.parametrize("length", [101, PAGE, 2**64])
async def test_acquire_too_large_fails_at_once(alloc, length):
    alloc.allocate(100)
    with (
        anyio.fail_after(100),
        pytest.raises(aiommap.OutOfBoundsError, match=f"no room for {length} bytes") as caught,
    ):
        await alloc.acquire(length)
    error = caught.value
    assert (error.offset, error.length, error.limit) == (1000, length, 100)
    assert "acquire()" not in str(error)


async def test_acquire_too_large_once_aligned_fails(file):
    alloc = file.allocator(1, PAGE, end=PAGE + 10)
    with pytest.raises(aiommap.OutOfBoundsError, match="at most 10 in one piece"):
        await alloc.acquire(11)
    assert (await alloc.acquire(10)).offset == PAGE


@pytest.mark.parametrize("length", [0, -1])
async def test_acquire_zero_bytes_is_refused(alloc, length):
    with pytest.raises(ValueError, match=f"length is {length}"):
        await alloc.acquire(length)


async def test_acquire_cancelled_first_lets_next_in(alloc):
    alloc.allocate(70)
    async with anyio.create_task_group() as group:
        queue = Queue(alloc, group)
        for name, length in (("first", 50), ("second", 30), ("third", 10)):
            await queue.join(name, length)
        queue.scopes["first"].cancel()
        assert await queue.place("second") == (1070, 30)
        queue.scopes["third"].cancel()
    assert sorted(queue.got) == ["second"]
    alloc.free(queue.got["second"])
    assert alloc.remaining == 30


@pytest.mark.parametrize("free_first", [True, False], ids=["granted", "cancelled"])
async def test_acquire_cancelled_while_granted(alloc, free_first):
    whole = alloc.allocate(100)
    async with anyio.create_task_group() as group:
        queue = Queue(alloc, group)
        await queue.join("cancelled", 100)
        await queue.join("next", 100)
        if free_first:
            alloc.free(whole)
        queue.scopes["cancelled"].cancel()
        if not free_first:
            alloc.free(whole)
        assert alloc.remaining == 0  # granted, before the task runs
        await queue.end_of("cancelled")
        if "cancelled" in queue.got:
            alloc.free(queue.got["cancelled"])
        assert await queue.place("next") == (1000, 100)
    alloc.free(queue.got["next"])
    assert (alloc.remaining, alloc.largest) == (100, 100)


async def test_acquire_in_a_cancelled_scope(alloc):
    alloc.allocate(100)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await alloc.acquire(1)
    assert scope.cancelled_caught
    assert alloc.remaining == 0


async def test_acquire_cancelled_by_asyncio(alloc, anyio_backend_name):
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio only")
    whole = alloc.allocate(100)
    for granted in (False, True):
        task = asyncio.create_task(alloc.acquire(100))
        while not alloc._waiters:
            await checkpoint()
        if granted:
            alloc.free(whole)
        task.cancel()
        with pytest.raises(asyncio.CancelledError, match=r"^$"):
            await task
    assert alloc.remaining == 100


@pytest.mark.parametrize("closing", ["allocator", "in a thread", "file"])
async def test_close_tells_waiting_acquires(path, closing):
    async with aiommap.open(path, "r+") as f, anyio.create_task_group() as group:
        before = f.allocator(1000, end=1100)
        before.allocate(10)
        before.close()
        alloc = f.allocator(state=before.state())
        allocated = alloc.allocate(90)
        queue = Queue(alloc, group)
        for name in range(3):
            await queue.join(name, 1)
        if closing == "file":
            await f.aclose()
        elif closing == "allocator":
            alloc.close()
        else:
            await anyio.to_thread.run_sync(alloc.close)
        for name in range(3):
            await queue.end_of(name)
        assert [type(queue.got[name]) for name in range(3)] == [anyio.ClosedResourceError] * 3
        for verb in (alloc.allocate, lambda n: alloc.claim(1000, 10), allocated.split_at):
            with pytest.raises(anyio.ClosedResourceError, match="is closed"):
                verb(1)
        with pytest.raises(anyio.ClosedResourceError, match="is closed"):
            await alloc.acquire(1)
        assert (alloc.closed, allocated.valid) == (True, False)
        assert alloc.unclaimed == ((1000, 10),)
        alloc.free(allocated)
        assert alloc.remaining == 90


def test_acquire_of_a_dead_loop_passes_on(path):
    """A grant to a task of an ended loop goes back, because no cancellation would return it."""

    async def main():
        f = await aiommap.open(path, "r+")
        alloc = f.allocator(0, end=100)
        whole = alloc.allocate(100)
        tasks = [asyncio.create_task(alloc.acquire(100)) for _ in range(3)]
        while len(alloc._waiters) < 3:
            await checkpoint()
        return f, alloc, whole, tasks

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # "Task was destroyed but is pending"
    f, alloc, whole, tasks = loop.run_until_complete(main())
    loop.close()
    alloc.free(whole)
    assert (alloc.remaining, alloc.largest, len(alloc._waiters)) == (100, 100, 0)
    del f, tasks
    with pytest.warns(ResourceWarning, match="was never closed"):
        gc.collect()
