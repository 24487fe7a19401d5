"""Background flushes while the loop is busy or at rest, and the clock that starts them."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from aiommap.testing import failing_flush, slow_disk
from tests.support.fork_server import run_code
from tests.support.internals import clock, core_of
from tests.support.waiting import nothing_happens, until

pytestmark = pytest.mark.anyio


def busy_until(condition):
    """Keep the loop busy until a condition holds."""
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, "it did not happen while the loop was busy"
        time.sleep(0.001)


@pytest.mark.parametrize(
    "policy",
    [FlushPolicy.every_interval(0.01), FlushPolicy.every_bytes(1), FlushPolicy.every_writes(1)],
    ids=str,
)
class TestBusyLoop:
    async def test_write_is_flushed(self, path, policy):
        async with aiommap.open(path, "r+", flush=policy) as f:
            for count in range(1, 4):
                receipt = await f.write(0, b"x")
                busy_until(lambda receipt=receipt: receipt.durable)
                busy_until(lambda: not f._open.background._asked)
                assert f.statistics().flushes == count

    async def test_large_queued_write_is_flushed(self, path, policy):
        os.truncate(path, 1 << 20)
        async with aiommap.open(path, "r+", flush=policy) as f, anyio.create_task_group() as group:
            group.start_soon(f.write, 0, b"x" * (1 << 20))
            await until(lambda: core_of(f).own.queued_bytes)
            busy_until(lambda: f._open.flusher.writeback.groups.count)

    async def test_word_changed_in_thread_is_flushed(self, path, policy):
        async with aiommap.open(path, "r+", flush=policy) as f:
            thread = threading.Thread(target=f.atomic_u64(0).store, args=(1,))
            thread.start()
            busy_until(lambda: f._open.flusher.writeback.groups.count)
            thread.join()

    async def test_failure_latches_and_is_told_later(self, path, policy):
        told = []
        f = await aiommap.open(path, "r+", flush=policy)
        f.on_error(told.append)
        with failing_flush(f):
            receipt = await f.write(0, b"x")
            busy_until(lambda: core_of(f).unsynced.failure is not None)
        assert not receipt.durable
        with pytest.raises(aiommap.FlushError):
            await f.write(0, b"x")
        await until(lambda: told)
        with pytest.raises(aiommap.FlushError):
            await f.aclose()

    async def test_lost_page_is_found_once(self, path, policy):
        f = await aiommap.open(path, "r+", flush=policy)
        view = f.view(8 * PAGE, PAGE)
        memory = view.memory
        os.truncate(path, PAGE)
        memory[0] = 1
        busy_until(lambda: not f._open.background._asked and not f._open.flusher.busy)
        memory.release()
        view.release()
        with pytest.raises((aiommap.MappingFaultError, aiommap.FlushError)):
            await f.aclose()


async def test_interval_of_memory_on_a_busy_loop(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_interval(0.01)) as f:
        flushes = f._open.flusher.writeback.groups
        with f.view(0, PAGE) as view:
            for value in range(3):
                view.memory[0] = value
                seen = flushes.count
                busy_until(lambda seen=seen: flushes.count >= seen + 2)


async def test_interval_of_growth_on_a_busy_loop(tmp_path):
    policy = FlushPolicy.every_interval(0.01)
    opening = aiommap.open(tmp_path / "f", "x+", size=PAGE, capacity=1 << 20, flush=policy)
    async with opening as f:
        with f.view(growable=True) as view:
            view.memory[100 * PAGE] = 1
            seen = f._open.flusher.writeback.groups.count
            busy_until(lambda: f._open.flusher.writeback.groups.count >= seen + 2)
            assert not core_of(f).unsynced.resized


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_interval_of_a_loop_at_rest(path, kind):
    """A loop rests between two runs, as in a notebook or a test suite."""

    loop = pytest.importorskip(kind).new_event_loop()

    async def begin():
        f = await aiommap.open(path, "r+", flush=FlushPolicy.every_interval(0.01))
        return f, await f.write(0, b"x")

    f, receipt = loop.run_until_complete(begin())
    busy_until(lambda: receipt.durable)
    receipt = loop.run_until_complete(f.write(PAGE, b"x"))
    busy_until(lambda: receipt.durable)
    loop.run_until_complete(f.aclose())
    loop.close()


async def test_close_during_background_flush(path):
    f = await aiommap.open(path, "r+", flush=FlushPolicy.every_interval(0.01))
    with slow_disk(f, only="flush") as disk:
        receipt = await f.write(0, b"x")
        await disk.wait_stalled()
        async with anyio.create_task_group() as group:
            group.start_soon(f.aclose)
            await until(lambda: f.closed)
            await nothing_happens()
            assert not f._mapping.closed
            disk.release()
    assert receipt.durable
    assert f._mapping.closed


async def test_flush_during_background_flush(path):
    """A flush waits for a background flush under way, even if nothing else is dirty (I4)."""
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_interval(0.01)) as f:
        with slow_disk(f, only="flush") as disk:
            receipt = await f.write(0, b"x")
            await disk.wait_stalled()
            asked = []

            async def flush():
                await f.flush()
                asked.append(receipt.durable)

            async with anyio.create_task_group() as group:
                group.start_soon(flush)
                await nothing_happens()
                assert not asked
                disk.release()
            assert asked == [True]


@pytest.mark.parametrize("discard", [False, True])
async def test_reopen_during_background_flush(path, discard):
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_interval(0.01)) as f:
        with slow_disk(f, only="flush") as disk:
            await f.write(0, b"old")
            await disk.wait_stalled()
            path.rename(f"{path}.1")
            path.write_bytes(b"new")
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: f.reopen(discard=discard))
                await nothing_happens()
                disk.release()
        assert await f.read(0, 3) == b"new"
    assert path.with_name("file.1").read_bytes()[:3] == b"old"


async def test_clock_runs_only_when_needed(path):
    await until(lambda: not clock.runs)
    async with aiommap.open(path, "r+") as f:
        assert not clock.runs
        f.flush_policy = FlushPolicy.every_interval(3600)
        assert clock.runs
        f.flush_policy = FlushPolicy.every_writes(10)
        f.flush_policy = FlushPolicy.manual()
        await until(lambda: not clock.runs)
        f.flush_policy = FlushPolicy.every_interval(0.01)
        receipt = await f.write(0, b"x")
        await until(lambda: receipt.durable)
    await until(lambda: not clock.runs)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_dropped_file_releases_the_clock(path):
    async def drop():
        f = await aiommap.open(path, "r+", flush=FlushPolicy.every_interval(3600))
        await f.write(0, b"x")
        return weakref.ref(f), weakref.ref(f._open.background)

    gone = await drop()

    def is_gone():
        gc.collect()
        return [reference() for reference in gone] == [None, None] and not clock.runs

    await until(is_gone)


AT_EXIT = """
import asyncio, os, sys, aiommap
from aiommap import FlushPolicy

async def begin():
    f = await aiommap.open(sys.argv[1], "r+", flush=FlushPolicy.every_interval(0.001))
    view = f.view()
    view.memory[0] = 90
    return f, view

kept = asyncio.new_event_loop().run_until_complete(begin())
"""
IN_A_CHILD = """
import asyncio, os, sys, time, aiommap
from aiommap import FlushPolicy

async def open_and_write():
    f = await aiommap.open(sys.argv[1], "r+", flush=FlushPolicy.every_interval(0.001))
    return f, await f.write(0, b"x")

kept = asyncio.new_event_loop().run_until_complete(open_and_write())
child = os.fork()
if not child:
    f, receipt = asyncio.new_event_loop().run_until_complete(open_and_write())
    while not receipt.durable:
        time.sleep(0.001)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.parametrize("script", [AT_EXIT, IN_A_CHILD], ids=["exit", "fork"])
def test_interval_in_ending_or_forked_process(path, script):
    done = run_code(script, path)
    assert (done.returncode, done.stderr) == (0, "")


WHILE_PLANNING = """
import sys, threading, time
import anyio, aiommap
from aiommap import FlushPolicy

def hold_up(frame, event, argument):
    if frame.f_code.co_name not in ("_due", "flush_if_due"):
        return None
    if event == "return":
        time.sleep(0.001)
    return hold_up

async def main():
    policy = getattr(FlushPolicy, sys.argv[3])(int(sys.argv[4]))
    async with aiommap.open(sys.argv[1], "r+", flush=policy) as f:
        await f.prewarm()
        for _ in range(40):
            for _ in range(8):
                await anyio.lowlevel.checkpoint()
                time.sleep(0.0002)  # shorter than the delay of the worker
                await f.write(0, b"x" * 16)
            with anyio.fail_after(100):
                while f.statistics().oldest_dirty_seconds is not None:
                    await anyio.lowlevel.checkpoint()
    print("flushed")

threading.settrace(hold_up)
anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("policy", [("every_writes", 8), ("every_bytes", 128)])
def test_stores_while_a_flush_ends(tmp_path, backend, policy):
    """The worker plans the next flush while the loop stores the bytes that make it due."""
    (tmp_path / "file").write_bytes(bytes(4 * PAGE))
    done = run_code(WHILE_PLANNING, tmp_path / "file", backend, *policy)
    assert (done.returncode, done.stdout) == (0, "flushed\n"), done.stderr
