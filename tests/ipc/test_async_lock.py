"""AsyncLock: other processes, the death of a holder, and a second acquire by the same task."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap.testing import slow_disk
from tests.support.internals import core_of
from tests.support.internals import file_locks as _file_locks

pytestmark = pytest.mark.anyio


@pytest.fixture
async def f(path):
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as opened:
        await opened.write(0, bytes(256))
        yield opened


HOLDER = r"""
import os, sys, anyio, aiommap
path, what = sys.argv[1:]

async def main():
    f = await aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never())
    async with aiommap.AsyncLock(f, 64) as lock, f.file_lock(128, 8):
        if what == "with child" and not os.fork():
            while True:
                os.read(0, 1) or os._exit(0)
        os.write(1, b"held\n")
        await anyio.sleep_forever()

anyio.run(main)
"""


@contextmanager
def holder(path, what="alone"):
    """Run another process that holds both locks."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("what", ["alone", "with child"])
async def test_lock_tells_of_a_dead_holder(f, path, what):
    """It does even if a forked child of the dead holder lives on (file_locks.5)."""
    with holder(path, what) as process:
        lock = aiommap.AsyncLock(f, 64)
        with pytest.raises(TimeoutError, match="still locked"):
            await lock.acquire(timeout=0.05)
        with pytest.raises(TimeoutError, match="still locked"):
            async with f.file_lock(130, 1, timeout=0.05):
                pass
        found = []

        async def enter():
            async with lock:
                found.append(lock.owner_died)

        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            await anyio.wait_all_tasks_blocked()
            process.send_signal(signal.SIGKILL)
            with anyio.fail_after(100):
                while not found:
                    await anyio.sleep(0.001)
        assert found == [True]
        async with lock, f.file_lock(128, 8, timeout=10):
            assert not lock.owner_died


ADDER = """
import sys, anyio, aiommap
path, times = sys.argv[1], int(sys.argv[2])

async def main():
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
        lock = aiommap.AsyncLock(f, 64)

        async def work():
            for _ in range(times):
                async with lock:
                    assert not lock.owner_died
                    value = int.from_bytes(await f.read(0, 8), "little")
                    await anyio.sleep(0)
                    await f.write(0, (value + 1).to_bytes(8, "little"))

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(work)

anyio.run(main)
"""


async def test_lock_excludes_processes(f, path):
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(anyio.run_process, [sys.executable, "-c", ADDER, str(path), "50"])
    assert int.from_bytes(await f.read(0, 8), "little") == 300


# A task that would wait for itself.


async def test_lock_again_in_one_task_is_told(f, path):
    """file_locks.6: through any object; with a timeout it raises TimeoutError as usual."""
    async with aiommap.open(path, "r+") as other:
        lock = aiommap.AsyncLock(f, 64)
        again = [lock, aiommap.AsyncLock(f, 64), aiommap.AsyncLock(other, 64)]
        ranges = [partial(file.file_lock, 66, 1) for file in (f, other)]
        async with lock:
            for attempt in again:
                with anyio.fail_after(100):
                    with pytest.raises(RuntimeError, match=r"bytes \[64, 72\) .* not reentrant"):
                        await attempt.acquire()
                    with pytest.raises(TimeoutError, match=r"after 0 seconds: .* this very task"):
                        await attempt.acquire(0)
            for attempt in ranges:
                with anyio.fail_after(100), pytest.raises(RuntimeError, match="not reentrant"):
                    async with attempt():
                        raise AssertionError
            assert lock.locked
        for attempt in again:
            async with attempt:
                assert not attempt.owner_died
    assert _file_locks._requested == {}


async def test_lock_shared_then_exclusive_in_one_task(f):
    async with f.file_lock(0, 4, shared=True), f.file_lock(2, 4, shared=True):
        with anyio.fail_after(100), pytest.raises(RuntimeError, match="not reentrant"):
            async with f.file_lock(3, 1):
                raise AssertionError


async def test_lock_keeps_other_tasks_waiting(f, path):
    """They wait even if the task that acquired the lock has ended, until another releases it."""
    lock = aiommap.AsyncLock(f, 64)
    entered = []

    async def enter(own):
        async with own:
            entered.append(own)

    async with aiommap.open(path, "r+") as other:
        async with anyio.create_task_group() as group:
            group.start_soon(lock.acquire)
        async with anyio.create_task_group() as group:
            group.start_soon(enter, aiommap.AsyncLock(f, 64))
            group.start_soon(enter, aiommap.AsyncLock(other, 64))
            with pytest.raises(TimeoutError, match=r"after 0 seconds$"):
                await aiommap.AsyncLock(f, 64).acquire(0)
            assert entered == []
            await lock.release()
        assert len(entered) == 2


# Leaving an AsyncLock after a reopen.


async def move_on(f, path):
    """Put another file at the path, reopen, and wait until the old file is given up."""
    old = core_of(f)
    other = path.with_name("other")
    other.write_bytes(bytes(PAGE))
    os.replace(other, path)
    await f.reopen(discard=True)
    with anyio.fail_after(100):
        while not old.mapping.closed:
            await anyio.sleep(0.001)


async def test_unlock_after_reopen_is_no_death(f, path):
    kept = path.with_name("kept")
    os.link(path, kept)
    async with aiommap.open(kept, "r+") as old:
        turn = old.atomic_u32(64)
        before = turn.load()
        async with aiommap.AsyncLock(f, 64):
            await move_on(f, path)
            with pytest.raises(TimeoutError):
                await aiommap.AsyncLock(old, 64).acquire(0)
            assert old.atomic_u32(68).load() == os.getpid()
        assert turn.load() == before + 1
        async with aiommap.AsyncLock(old, 64) as lock:
            assert not lock.owner_died


async def test_unlock_does_not_grow_a_cut_file(f, path):
    kept = path.with_name("kept")
    os.link(path, kept)
    async with aiommap.AsyncLock(f, 64):
        await move_on(f, path)
        os.truncate(kept, 70)
    assert kept.stat().st_size == 70


async def test_unlock_while_closing_is_no_death(path):
    f = await aiommap.open(path, "r+")
    await f.write(64, bytes(8))
    lock = aiommap.AsyncLock(f, 64)
    await lock.acquire()
    async with anyio.create_task_group() as group:
        with slow_disk(f, only="flush") as disk:
            group.start_soon(f.aclose)
            await disk.wait_stalled()
            await lock.release()
    async with aiommap.open(path, "r+") as anew, aiommap.AsyncLock(anew, 64) as found:
        assert not found.owner_died


async def test_close_inside_the_lock_is_a_death(path):
    """The close releases the lock inside the block, so the data may be half changed."""
    f = await aiommap.open(path, "r+")
    await f.write(64, bytes(8))
    async with aiommap.AsyncLock(f, 64):
        await f.aclose()
    async with aiommap.open(path, "r+") as anew, aiommap.AsyncLock(anew, 64) as found:
        assert found.owner_died
