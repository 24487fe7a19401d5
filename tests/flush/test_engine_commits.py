"""Commits at work in the engine: cancelled, failed, forked, hung, and left behind by their loop.

``gate.c`` holds or fails their system calls, in a process of its own.
"""

from __future__ import annotations

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.gates import expect_gated
from tests.support.internals import pool_of, workers_of
from tests.support.scripts import expect_alive

LOOPS = ("asyncio", "uvloop", "trio")
every_loop = pytest.mark.parametrize("backend", LOOPS)

COMMON = """
from contextlib import asynccontextmanager
from aiommap import FlushPolicy, Log
ALWAYS = FlushPolicy.always()

async def until(condition):
    with anyio.fail_after(100):
        while not condition():
            await anyio.sleep(0)

async def reached():
    assert await anyio.to_thread.run_sync(gate.gate_reached)

def stored(name, length=4):
    with open(name, "rb") as file:
        return file.read(length)

@asynccontextmanager
async def by_write():
    async with aiommap.open(make(), "r+", flush=ALWAYS) as f:
        yield lambda data: f.write(0, data), lambda: stored(f.path)

@asynccontextmanager
async def by_receipt():
    async with aiommap.open(make(), "r+") as f:
        async def write(data):
            await (await f.write(0, data)).wait_durable()
        yield write, lambda: stored(f.path)

@asynccontextmanager
async def by_flush():
    async with aiommap.open(make(), "r+") as f:
        async def write(data):
            await f.write(0, data)
            await f.flush()
        yield write, lambda: stored(f.path)

@asynccontextmanager
async def by_log():
    async with Log.open(os.path.join(path, "log"), flush=ALWAYS) as log:
        yield log.append, lambda: next(iter(segment_of(log)), b"")

def segment_of(log):
    name = next(name for name in sorted(os.listdir(log.folder)) if name.endswith(".log"))
    with open(os.path.join(log.folder, name), "rb") as file:
        return [data for data in (b"new!", b"next") if data in file.read()]
"""

WAYS = ("by_write", "by_receipt", "by_flush", "by_log")
every_way = pytest.mark.parametrize("way", WAYS)


def script(way, body):
    return (
        COMMON
        + f"""
async def main():
    async with {way}() as (write, on_disk), anyio.create_task_group() as group:
        await write(b"once")
{body}

run(main)
"""
    )


@pytest.mark.anyio
async def test_commits_go_through_the_engine(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        pool = pool_of(workers_of(f))
        assert not pool.threads
        await f.write(0, b"new!")
        assert pool.threads
        assert not pool.in_flight
        assert f.statistics().flushes == 1


@every_way
@every_loop
def test_commit_cancelled_at_work_is_waited_out(tmp_path, way, backend):
    body = """
        arm("fdatasync")
        ended = []
        scope = anyio.CancelScope()
        async def act():
            with scope:
                await write(b"new!")
            ended.append(scope.cancelled_caught)
        group.start_soon(act)
        await reached()
        scope.cancel()
        for _ in range(50):
            await anyio.sleep(0)
        assert not ended
        gate.gate_open()
        await until(lambda: ended)
        assert ended == [True]
        assert on_disk() == b"new!"
        await write(b"next")
    """
    expect_gated(script(way, body), tmp_path, backend)


@pytest.mark.parametrize("way", ["by_write", "by_receipt"])
@every_loop
def test_batch_that_all_left_before_it_began(tmp_path, way, backend):
    """Such a batch stores nothing, flushes nothing, and holds up no other batch."""
    body = """
        arm("fdatasync")
        async with anyio.create_task_group() as first:
            first.start_soon(write, b"new!")
            await reached()
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(write, b"gone")
                leaving.start_soon(write, b"gone")
                for _ in range(50):
                    await anyio.sleep(0)
                leaving.cancel_scope.cancel()
            gate.gate_open()
        for _ in range(50):
            await anyio.sleep(0)
        await write(b"next")
    """
    expect_gated(script(way, body), tmp_path, backend)


@every_loop
def test_buffer_is_exported_until_the_commit_has_ended(tmp_path, backend):
    body = """
        data = bytearray(b"new!")
        arm("pwritev")
        group.start_soon(write, data)
        await reached()
        try:
            data.clear()
        except BufferError:
            gate.gate_open()
        await until(lambda: on_disk() == b"new!")
    data.clear()
    """
    expect_gated(script("by_write", body), tmp_path, backend)


@every_way
@every_loop
def test_commit_that_fails_latches_and_names_the_file(tmp_path, way, backend):
    code = (
        COMMON
        + f"""
async def main():
    try:
        async with {way}() as (write, on_disk):
            await write(b"once")
            fail("fdatasync", error=errno.EIO)
            for _ in range(3):
                try:
                    await write(b"new!")
                except aiommap.FlushError as error:
                    assert error.errno == errno.EIO and error.path.startswith(path), error
                    assert error.ranges, error
                else:
                    raise AssertionError("it did not fail")
            raise KeyError
    except* KeyError:
        pass
    except* aiommap.FlushError:
        pass

import logging
logging.disable()
run(main)
"""
    )
    expect_gated(code, tmp_path, backend)


@pytest.mark.parametrize("way", ["by_write", "by_receipt", "by_flush"])
def test_error_beside_a_commit_that_fails_keeps_its_outcome_from_nobody(tmp_path, way):
    """A broken logging filter of the application is such an error."""
    code = (
        COMMON
        + f"""
import logging

class Broken(logging.Filter):
    def filter(self, record):
        raise LookupError("nothing can be logged")

logging.getLogger("aiommap.flushes").addFilter(Broken())

async def main():
    told = []
    try:
        async with {way}() as (write, on_disk), anyio.create_task_group() as group:
            await write(b"once")
            fail("fdatasync", error=errno.EIO)

            async def act():
                try:
                    await write(b"new!")
                except aiommap.FlushError as error:
                    told.append(error)

            for _ in range(3):
                group.start_soon(act)
    except* aiommap.FlushError as group:
        told += group.exceptions
    assert len(told) == 4, told

run(main)
"""
    )
    expect_gated(code, tmp_path)


LOSSES = {
    "truncated": "os.truncate(name, 0)",
    "replaced": "os.replace(make('new'), name)",
    "removed": "os.unlink(name)",
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("way", ["by_write", "by_receipt", "by_flush"])
def test_data_that_is_lost_during_a_commit(tmp_path, way, loss):
    """The kernel reports success; the check after the flush finds the loss."""
    code = (
        COMMON
        + f"""
async def main():
    name = os.path.join(path, "file")
    failed = []
    try:
        async with {way}() as (write, on_disk), anyio.create_task_group() as group:
            await write(b"once")

            async def act():
                try:
                    await write(b"new!")
                except aiommap.FlushError as error:
                    failed.append(error)

            arm("fdatasync")
            group.start_soon(act)
            await reached()
            {LOSSES[loss]}
            gate.gate_open()
    except* aiommap.FlushError as group:
        failed += group.exceptions
    assert len(failed) == 2 and {{error.path for error in failed}} == {{name}}, failed
    assert failed[0].ranges == ((0, PAGE),), failed

import logging
logging.disable()
run(main)
"""
    )
    expect_gated(code, tmp_path)


@every_way
@every_loop
def test_commits_without_a_thread_for_the_engine(tmp_path, way, backend):
    """Worker threads that run already do the commits, or the reserve does."""
    code = (
        COMMON
        + f"""
async def main():
    async with {way}() as (write, on_disk):
        fail("thread", error=errno.EAGAIN, on=True)
        await write(b"new!")
        assert on_disk() == b"new!" and gate.gate_left()
    fail("thread", nth=0)

run(main)
"""
    )
    expect_gated(code, tmp_path, backend)


@every_loop
def test_hung_commit_holds_up_no_other_file(tmp_path, backend):
    body = """
        other = await aiommap.open(make("other"), "r+", flush=ALWAYS)
        log = await Log.open(os.path.join(path, "second"), flush=ALWAYS)
        arm("fdatasync")
        group.start_soon(write, b"new!")
        await reached()
        for number in range(100):
            await other.write(0, b"%d" % number)
            await log.append(b"%d" % number)
        await other.aclose()
        await log.aclose()
        gate.gate_open()
    """
    expect_gated(script("by_write", body), tmp_path, backend)


def test_background_flush_waits_for_a_commit_that_no_loop_ends(tmp_path):
    """The loop rests between two runs, so the thread that flushes next ends the commit."""
    code = (
        COMMON
        + """
async def begin():
    global f, waiting
    f = await aiommap.open(make(), "r+", flush=FlushPolicy.every_interval(0.05))
    first = await f.write(0, b"new!")
    arm("fdatasync")
    waiting = asyncio.ensure_future(first.wait_durable())
    await reached()
    await f.write(5 * PAGE, b"next")  # after the commit began, so not part of it

async def end():
    await waiting
    assert f.statistics().dirty_bytes == 0
    await f.aclose()

loop = asyncio.new_event_loop()
loop.run_until_complete(begin())
assert f._open.core.mapping.dirty_bytes() == PAGE
gate.gate_open()
deadline = time.monotonic() + 100
while f._open.core.mapping.dirty_bytes() or f._open.flusher.writeback.busy:
    assert time.monotonic() < deadline
    time.sleep(0.001)
assert not waiting.done()
loop.run_until_complete(end())
loop.close()
"""
    )
    expect_gated(code, tmp_path)


@pytest.mark.parametrize("way", ["by_write", "by_log"])
@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_loop_is_closed_while_a_commit_hangs(tmp_path, way, backend):
    """The commit keeps its buffers and descriptors until it ends, and then releases them."""
    code = (
        COMMON
        + f"""
import uvloop
loop = uvloop.new_event_loop() if backend == "uvloop" else asyncio.new_event_loop()

async def begin():
    global keep
    keep = {way}()
    write, _ = await keep.__aenter__()
    await write(b"once")
    arm("fdatasync")
    keep = keep, asyncio.ensure_future(write(b"new!"))
    await reached()

loop.run_until_complete(begin())
keep[1]._log_destroy_pending = False
loop.close()

async def again():
    async with aiommap.open(make("other"), "r+", flush=ALWAYS) as other:
        await other.write(0, b"once")
        gate.gate_open()
        await other.write(0, b"next")

run(again)
run(again)
warnings.simplefilter("ignore")
os._exit(print("alive", flush=True) or 0)
"""
    )
    expect_gated(code, tmp_path, backend)


@every_loop
def test_forked_child_commits_nothing(tmp_path, backend):
    """A child forked during a commit gets ForkedError, and the parent gets the outcome."""
    code = (
        COMMON
        + """
async def main():
    async with by_write() as (write, on_disk), anyio.create_task_group() as group:
        await write(b"once")
        arm("fdatasync")
        group.start_soon(write, b"new!")
        await reached()
        child = os.fork()
        if not child:
            code = 1
            try:
                write(b"next").send(None)
            except aiommap.ForkedError:
                code = 0
            finally:
                os._exit(code)
        gate.gate_open()
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
        assert status == 0, status
        await until(lambda: on_disk() == b"new!")
        await write(b"next")
    assert stored(os.path.join(path, "file")) == b"next"

warnings.simplefilter("ignore", DeprecationWarning)
run(main)
"""
    )
    expect_gated(code, tmp_path, backend)


@every_loop
def test_log_flushes_in_the_background_at_the_end_of_its_loop(tmp_path, backend):
    """A commit under way ends although trio cancels the task that watches the engine."""
    code = (
        COMMON
        + """
async def main():
    log = await Log.open(os.path.join(path, "log"), flush=FlushPolicy.every_writes(3))
    for number in range(50):
        await log.append(b"%d" % number)

run(main)
warnings.simplefilter("ignore")
print("alive", flush=True)
os._exit(0)
"""
    )
    expect_alive("import warnings\n" + code, tmp_path, backend)


@every_loop
def test_acknowledged_commits_survive_a_kill(tmp_path, backend):
    """A write that returned finds its bytes in the file, however the process ends."""
    code = (
        COMMON
        + """
import struct
counts = {}

async def child(pipe):
    async def write(f, task):
        for number in range(1, 1 << 30):
            await f.write(task * 8, struct.pack("<Q", number))
            os.write(pipe, struct.pack("<QQ", task, number))

    async with (
        aiommap.open(make(), "r+", flush=ALWAYS) as f,
        anyio.create_task_group() as group,
    ):
        for task in range(8):
            group.start_soon(write, f, task)

readable, writable = os.pipe()
process = os.fork()
if not process:
    run(lambda: child(writable))
os.close(writable)
with os.fdopen(readable, "rb") as pipe:
    rest = pipe.read(300 * 16)
    os.kill(process, signal.SIGKILL)
    rest += pipe.read()
for at in range(0, len(rest) - 15, 16):
    task, number = struct.unpack_from("<QQ", rest, at)
    counts[task] = number
os.waitpid(process, 0)
found = struct.unpack("<8Q", stored(os.path.join(path, "file"), 64))
for task, number in counts.items():
    assert number <= found[task] <= number + 1, (task, number, found)
print("alive")
"""
    )
    expect_alive(code, tmp_path, backend)
