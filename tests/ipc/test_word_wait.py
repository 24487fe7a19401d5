"""Waiting for a word to change: within a process, across processes, and all ways to end a wait."""

from __future__ import annotations

import sys
import threading

import anyio
import anyio.lowlevel
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.fork_server import run_code
from tests.support.internals import futex as _futex
from tests.support.internals import native, workers_of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_post_is_left_behind():
    """futex.2: a waiter thread ends once it has no waiters."""
    yield
    for _ in range(1000):
        if not _futex._waiter_threads:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{len(_futex._waiter_threads)} waiter threads still run")


@pytest.fixture
async def f(path):
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as opened:
        opened.atomic_u64(0).store(0)
        yield opened


def waiters():
    return sum(len(thread.waiters) for thread in _futex._waiter_threads)


async def until_waiting(count):
    with anyio.fail_after(100):
        while waiters() != count:
            await anyio.sleep(0.001)


async def test_wait_for_a_different_word(f):
    word = f.atomic_u32(0)
    word.store(5)
    assert await word.wait(4) == 5
    assert await word.wait(4, timeout=0) == 5
    assert not _futex._waiter_threads


async def test_notify_wakes_every_waiter(f):
    word, other = f.atomic_u32(0), f.atomic_u32(4)
    seen = []

    async def wait():
        seen.append(await word.wait(0))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(wait)
        group.start_soon(other.wait, 0)
        await until_waiting(6)
        word.store(7)
        word.notify(5)  # a waiter that does not sleep in the kernel yet sees the change by itself
        await until_waiting(1)
        while len(seen) < 5:  # the waits have ended, but the tasks have to run
            await anyio.lowlevel.checkpoint()
        assert seen == [7] * 5
        other.store(1)
        other.notify()


async def test_notify_without_change_wakes_nobody(f):
    word, sign = f.atomic_u32(0), f.atomic_u32(4)
    async with anyio.create_task_group() as group:
        group.start_soon(word.wait, 0)
        await until_waiting(1)
        word.notify()
        group.start_soon(sign.wait, 0)  # makes the waiter thread load the word again
        await until_waiting(2)
        sign.store(1)
        sign.notify()
        await until_waiting(1)
        group.cancel_scope.cancel()


async def test_wait_with_a_limit(f):
    word = f.atomic_u32(0)
    for seconds in (0.01, 0):
        told = rf"the word at 0 is still 0 after {seconds} seconds"
        with pytest.raises(TimeoutError, match=told):
            await word.wait(0, timeout=seconds)
    assert waiters() == 0


async def test_wait_cancelled_ends_at_once(f):
    word = f.atomic_u32(0)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(word.wait, 0)
        await until_waiting(3)
        group.cancel_scope.cancel()
    assert waiters() == 0


async def test_notify_of_a_cancelled_task_passes_on(f):
    """futex.3: the notified task is cancelled before its loop learns of the notification."""
    word = f.atomic_u32(0)
    notified = []
    async with anyio.create_task_group() as group:
        group.start_soon(word.wait, 0)
        await until_waiting(1)
        (waiter,) = _futex._waiter_threads[0].waiters
        waiter.word = type("Spy", (), {"load": word.load, "_notify": notified.append})()
        waiter._call = lambda function: True  # the loop is not told
        word.store(1)
        word.notify()
        await until_waiting(0)
        group.cancel_scope.cancel()
    assert notified == [1]


async def test_wait_of_more_tasks_than_a_thread_takes(f):
    word = f.atomic_u32(0)
    count = 2 * _futex.MAX_WAITERS + 1
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(word.wait, 0)
        await until_waiting(count)
        assert len(_futex._waiter_threads) == 3
        word.store(1)
        word.notify(count)


async def test_close_ends_waits_with_an_error(path):
    f = await aiommap.open(path, "r+")
    word = f.atomic_u32(0)
    found = []

    async def wait():
        try:
            await word.wait(word.load())
        except anyio.ClosedResourceError as error:
            found.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
        await until_waiting(3)
        with anyio.fail_after(100):
            await f.aclose()
    assert ["closed while" in str(error) for error in found] == [True] * 3
    with pytest.raises(anyio.ClosedResourceError, match="closed"):
        await word.wait(0)
    with pytest.raises(anyio.ClosedResourceError, match="closed"):
        word.notify()


async def test_close_hub_does_not_wait_for_waits(path):
    async with anyio.create_task_group() as group:
        with anyio.fail_after(100):
            async with aiommap.Hub() as hub:
                f = await hub.open(path)
                word = f.atomic_u32(0)

                async def wait():
                    with pytest.raises(anyio.ClosedResourceError, match="closed"):
                        await word.wait(word.load())

                group.start_soon(wait)
                await until_waiting(1)


async def test_wait_takes_no_other_worker(path):
    """I12: more waiters than worker threads."""
    async with aiommap.Hub(workers=1) as hub, anyio.create_task_group() as group:
        f = await hub.open(path, "r+")
        word = f.atomic_u32(0)
        value = word.load()
        for _ in range(50):
            group.start_soon(word.wait, value)
        await until_waiting(50)
        workers = workers_of(f)
        assert [w._free for w in (workers.reads, workers.stores)] == [
            1,
            workers.stores.total_tokens,
        ]
        with anyio.fail_after(100):
            await f.write(PAGE, bytes(200_000 % PAGE))
            await f.flush()
            await f.read(0, 16 * PAGE)
        group.cancel_scope.cancel()


async def test_wait_and_notify_in_a_reader(path):
    async with aiommap.open(path) as reader, aiommap.open(path, "r+") as writer:
        here, there = reader.atomic_u32(8), writer.atomic_u32(8)
        async with anyio.create_task_group() as group:
            group.start_soon(here.wait, here.load())
            await until_waiting(1)
            there.fetch_add(1)
            assert here.notify() <= 1  # 0 if the waiter was just loading the word


async def test_wait_survives_resize_beyond_capacity(f):
    word = f.atomic_u32(0)
    async with anyio.create_task_group() as group:
        group.start_soon(word.wait, 0)
        await until_waiting(1)
        await f.resize(700 * PAGE)
        word.store(1)
        assert word.notify() <= 1  # 0 if the waiter was just loading the word


async def test_wait_refuses_bad_arguments(f):
    word = f.atomic_u32(0)
    for value in (-1, 2**32):
        with pytest.raises(OverflowError, match="32 bits"):
            await word.wait(value)
    with pytest.raises(ValueError, match="n is -1"):
        word.notify(-1)
    assert word.notify(2**40) == 0
    with pytest.raises(TypeError, match=r"expected is 0\.0: give an integer"):
        await word.wait(0.0)


async def test_wait_in_a_file_cut_off(f, path, outside):
    word, sign = f.atomic_u32(2 * PAGE), f.atomic_u32(0)
    value = word.load()
    found = []

    async def wait():
        try:
            await word.wait(value)
        except aiommap.MappingFaultError as error:
            found.append((error.offset, error.size))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await until_waiting(1)
        outside(path, PAGE)
        group.start_soon(sign.wait, 0)  # makes the waiter thread load all its words again
        with anyio.fail_after(100):
            while not found:
                await anyio.sleep(0.001)
        sign.store(1)
        sign.notify()
    assert found == [(2 * PAGE, PAGE)]


PARTNER = """
import sys, anyio, aiommap
path, rounds = sys.argv[1], int(sys.argv[2])

async def main():
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
        ping, pong = f.atomic_u32(0), f.atomic_u32(4)
        for i in range(rounds):
            assert await ping.wait(i, timeout=30) == i + 1
            pong.store(i + 1)
            pong.notify()

anyio.run(main)
"""


async def test_wait_between_two_processes(f, path):
    rounds = 200
    ping, pong = f.atomic_u32(0), f.atomic_u32(4)
    async with await anyio.open_process(
        [sys.executable, "-c", PARTNER, str(path), str(rounds)], stdout=None, stderr=None
    ) as partner:
        for i in range(rounds):
            ping.store(i + 1)
            ping.notify()
            assert await pong.wait(i, timeout=30) == i + 1
        assert await partner.wait() == 0


FORK = """
import os, sys, anyio, aiommap
path = sys.argv[1]

async def main():
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
        word = f.atomic_u32(0)
        word.store(0)
        async with anyio.create_task_group() as group:
            group.start_soon(word.wait, 0)
            await anyio.sleep(0.05)
            child = os.fork()
            if not child:
                try:
                    for act in (word.load, lambda: word.store(1), word.notify):
                        try:
                            act()
                        except aiommap.ForkedError:
                            continue
                        os._exit(1)
                    os._exit(0)
                finally:
                    os._exit(2)
            assert os.waitpid(child, 0)[1] == 0
            child = os.fork()
            if not child:
                async def change():
                    async with aiommap.open(path, "r+") as mine:
                        there = mine.atomic_u32(0)
                        there.store(9)
                        os._exit(0 if there.notify() == 1 else 3)
                import threading
                thread = threading.Thread(target=lambda: anyio.run(change))
                thread.start()
                thread.join()
            assert os.waitpid(child, 0)[1] == 0
        assert word.load() == 9
        print("alive")

anyio.run(main)
"""


def test_fork_child_has_no_words_or_waiters(path):
    done = run_code(FORK, path)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr


LOST_LOOP = """
import asyncio, gc, sys, threading, aiommap
from tests.support.internals import futex as _futex

async def begin():
    f = await aiommap.open(sys.argv[1], "r+")
    word = f.atomic_u32(0)
    return f, word, word.wait(word.load())

loop = asyncio.new_event_loop()
f, word, wait = loop.run_until_complete(begin())
task = loop.create_task(wait)
loop.run_until_complete(asyncio.sleep(0.05))
assert _futex._waiter_threads
loop.close()
task._log_destroy_pending = False
if sys.argv[2] == "collection":
    del task, wait
    gc.collect()
else:
    gc.disable()
    word.fetch_add(1)
    word.notify()
for _ in range(1000):
    if not _futex._waiter_threads:
        print("left")
        break
    threading.Event().wait(0.01)
"""


@pytest.mark.parametrize("event", ["change", "collection"])
def test_wait_of_an_ended_loop_goes_next(path, event):
    done = run_code(LOST_LOOP, path, event)
    assert done.stdout.strip() == "left", done.stderr


async def test_wait_without_time_at_end_of_slice(f):
    word = f.atomic_u32(0)
    word.store(5)
    for _ in range(20):
        while not native.time_slice_spent():
            pass
        assert await word.wait(4, timeout=0) == 5
    with pytest.raises(TimeoutError):
        await word.wait(5, timeout=0)


async def test_wait_for_a_word_we_cut_off(path):
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
        word = f.atomic_u32(2 * PAGE)

        async def wait():
            with pytest.raises(aiommap.OutOfBoundsError):
                await word.wait(word.load())

        with anyio.fail_after(100):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await until_waiting(1)
                await f.resize(PAGE)


async def test_wait_for_a_word_of_a_reopened_file(f, path):
    word = f.atomic_u32(0)

    async def wait():
        with pytest.raises(anyio.ClosedResourceError, match="was reopened"):
            await word.wait(0)

    with anyio.fail_after(100):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await until_waiting(1)
            other = path.with_name("other")
            other.write_bytes(bytes(PAGE))
            other.replace(path)
            await f.reopen()
            await wait()
