"""The system calls that make bytes durable: exactly those that docs/durability.md promises.

Each case is a script under strace(1). A call that is not listed must not happen: no sync without a
promise, and none twice.
"""

from __future__ import annotations

import os
from functools import partial

import pytest

from tests.support.tracing import missing, run_traced, trace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def strace():
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)


@pytest.fixture
def syncs(strace, path, tmp_path):
    """Run a script that finds its file of sixteen pages at ``path``; return its syncs by phase."""
    return partial(trace, path=path, log=tmp_path / "log")


# Policies: flushes that nobody asks for.


def test_never_syncs_nothing_even_at_close(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+", flush=FlushPolicy.never()) as f:
            mark("written")
            for i in range(100):
                await f.write(i, b"x" * PAGE)
            await f.resize(20 * PAGE)
            with f.view(0, PAGE) as view:
                view.memory[0] = 1
            mark("closed")
    """) == {"open": [], "written": [], "closed": []}


def test_never_creates_without_any_sync(syncs, path):
    path.unlink()
    assert syncs("""
        async with aiommap.open(path, "x+", size=PAGE, flush=FlushPolicy.never()) as f:
            mark("written")
            await f.write(0, b"x")
            mark("closed")
    """) == {"open": [], "written": [], "closed": []}


def test_manual_syncs_dirty_at_close(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+", flush=FlushPolicy.manual()) as f:
            mark("written")
            for i in range(100):
                await f.write(i, b"x" * PAGE)
            mark("closed")
    """) == {"open": [], "written": [], "closed": ["fdatasync file"]}


def test_manual_syncs_nothing_durable_at_close(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+") as f:
            await f.write(0, b"x")
            mark("flushed")
            await f.flush()
            mark("closed")
    """) == {"open": [], "flushed": ["fdatasync file"], "closed": []}


def test_always_syncs_once_a_write(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
            mark("first")
            await f.write(0, b"x")
            mark("second")
            await f.write(7 * PAGE, b"y" * PAGE)
            mark("several")
            await f.write_many([(i * PAGE, b"z") for i in range(16)])
            mark("closed")
    """) == {
        "open": [],
        "first": ["fdatasync file"],
        "second": ["fdatasync file"],
        "several": ["fdatasync file"],
        "closed": [],
    }


def test_always_shares_flush_under_way_and_next(syncs):
    found = syncs("""
        async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
            mark("together")
            async with anyio.create_task_group() as group:
                for i in range(50):
                    group.start_soon(f.write, i * 100, b"x" * 100)
            mark("closed")
    """)
    assert set(found["together"]) == {"fdatasync file"}
    assert len(found["together"]) <= 2
    assert found["closed"] == []


def test_always_syncs_view_stores_at_close(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
            mark("stored")
            with f.view(0, PAGE) as view:
                view.memory[0] = 1
            mark("closed")
    """) == {"open": [], "stored": [], "closed": ["fdatasync file"]}


def test_every_bytes_syncs_once_that_many(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+", flush=FlushPolicy.every_bytes(1000)) as f:
            mark("short of it")
            await f.write(0, b"x" * 999)
            mark("reached")
            receipt = await f.write(0, b"y")
            await until(lambda: receipt.durable)
            mark("short again")
            await f.write(0, b"x" * 999)
            mark("closed")
    """) == {
        "open": [],
        "short of it": [],
        "reached": ["fdatasync file"],
        "short again": [],
        "closed": ["fdatasync file"],
    }


def test_every_writes_syncs_once_that_many(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+", flush=FlushPolicy.every_writes(3)) as f:
            mark("short of it")
            await f.write(0, b"x" * PAGE)
            await f.write(0, b"x" * PAGE)
            mark("reached")
            receipt = await f.write(0, b"y")
            await until(lambda: receipt.durable)
            mark("closed")
    """) == {"open": [], "short of it": [], "reached": ["fdatasync file"], "closed": []}


def test_every_interval_syncs_only_when_dirty(syncs):
    """A second file, which a view keeps dirty, counts the intervals in which the first rests."""
    found = syncs("""
        policy = FlushPolicy.every_interval(0.02)
        async with aiommap.open(path, "r+", flush=policy) as f:
            mark("due")
            receipt = await f.write(0, b"x")
            await until(lambda: receipt.durable)
            mark("clean")
            async with aiommap.open(path + "-clock", "w+", size=PAGE, flush=policy) as clock:
                with clock.view() as view, view.memory:
                    await until(lambda: clock.statistics().flushes == 5)
            mark("closed")
    """)
    assert found["due"] == ["fdatasync file"]
    assert found["clean"].count("fdatasync file-clock") >= 4
    assert "fdatasync file" not in found["clean"]
    assert found["closed"] == []


def test_max_dirty_syncs_before_the_write(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+", flush=FlushPolicy.max_dirty(2 * PAGE)) as f:
            mark("room")
            await f.write(0, b"x" * PAGE)
            await f.write(PAGE, b"x" * PAGE)
            await f.write(0, b"x" * PAGE)
            mark("no room")
            await f.write(2 * PAGE, b"x")
            mark("room again")
            await f.write(3 * PAGE, b"x")
            mark("closed")
    """) == {
        "open": [],
        "room": [],
        "no room": ["fdatasync file"],
        "room again": [],
        "closed": ["fdatasync file"],
    }


# Verbs: the effect of a request, whatever the policy.


@pytest.mark.parametrize("policy", ["never", "manual"])
def test_flush_syncs_metadata_after_resize_only(syncs, policy):
    assert syncs(f"""
        async with aiommap.open(path, "r+", flush=FlushPolicy.{policy}()) as f:
            await f.write(0, b"x" * 9 * PAGE)
            mark("dirty")
            await f.flush()
            mark("clean")
            await f.flush()
            await f.flush_range(0, PAGE)
            await f.resize(20 * PAGE)
            mark("resized")
            await f.flush()
            await f.punch_hole(0, PAGE)
            mark("punched")
            await f.flush()
            await f.write(0, b"y")
            mark("dirty again")
            await f.flush()
            mark("closed")
    """) == {
        "open": [],
        "dirty": ["fdatasync file"],
        "clean": [],
        "resized": ["fsync file"],
        "punched": ["fsync file"],
        "dirty again": ["fdatasync file"],
        "closed": [],
    }


def test_flush_range_syncs_dirty_span_in_one_call(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+") as f:
            for i in (1, 4, 6, 9):
                await f.write(i * PAGE + 5, b"x")
            mark("part", f)
            await f.flush_range(3 * PAGE + 100, 5 * PAGE)
            mark("clean part", f)
            await f.flush_range(3 * PAGE, 5 * PAGE)
            mark("all that is dirty", f)
            await f.flush_range(PAGE, 9 * PAGE)
            mark("closed")
    """) == {
        "open": [],
        "part": ["msync pages 4-6 MS_SYNC"],
        "clean part": [],
        "all that is dirty": ["fdatasync file"],
        "closed": [],
    }


@pytest.mark.parametrize(
    ("verb", "one", "other"),
    [
        ("f.flush_range({})", ["msync pages 2-3 MS_SYNC"], ["fdatasync file"]),
        ("{}.wait_durable()", ["fdatasync file"], []),  # takes the other along
    ],
    ids=["range", "wait"],
)
@pytest.mark.parametrize("policy", ["never", "manual"])
def test_receipt_syncs_its_pages_once(syncs, verb, one, other, policy):
    assert syncs(f"""
        async with aiommap.open(path, "r+", flush=FlushPolicy.{policy}()) as f:
            first = await f.write(2 * PAGE + 5, b"x" * PAGE)
            second = await f.write(9 * PAGE, b"y")
            mark("one of two", f)
            await {verb.format("first")}
            mark("known to be durable", f)
            await {verb.format("first")}
            mark("the other", f)
            await {verb.format("second")}
            mark("closed")
    """) == {
        "open": [],
        "one of two": one,
        "known to be durable": [],
        "the other": other,
        "closed": [],
    }


def test_start_writeback_promises_nothing(syncs):
    assert syncs("""
        async with aiommap.open(path, "r+") as f:
            await f.write(0, b"x" * 16 * PAGE)
            mark("part", f)
            await f.start_writeback(3 * PAGE, 2 * PAGE)
            mark("whole", f)
            await f.start_writeback()
            mark("closed")
    """) == {
        "open": [],
        "part": ["sync_file_range file pages 3-4 SYNC_FILE_RANGE_WRITE"],
        "whole": ["sync_file_range file pages 0-15 SYNC_FILE_RANGE_WRITE"],
        "closed": ["fdatasync file"],
    }


@pytest.mark.parametrize("mode", ["r", "c"])
def test_stores_to_no_file_sync_nothing(syncs, mode):
    assert syncs(f"""
        async with aiommap.open(path, "{mode}", flush=FlushPolicy.always()) as f:
            if f.mode == "c":
                await f.write(0, b"private")
            mark("asked")
            await f.flush()
            await f.flush_range(0, PAGE)
            await f.start_writeback()
            mark("closed")
    """) == {"open": [], "asked": [], "closed": []}


# New files: the directory entry.

FIRST_ANSWERS = {
    "flush": "await f.flush()",
    "flush_range": "await f.flush_range(0, f.size)",
    "receipt": "await (await f.write(0, b'x')).wait_durable()",
    "always": "f.flush_policy = FlushPolicy.always(); await f.write(0, b'x')",
}


@pytest.mark.parametrize("answer", FIRST_ANSWERS.values(), ids=FIRST_ANSWERS)
@pytest.mark.parametrize("mode", ["x+", "w+"])
def test_first_durable_answer_syncs_directory(syncs, path, mode, answer):
    path.unlink()
    assert syncs(f"""
        async with aiommap.open(path, "{mode}", size=2 * PAGE) as f:
            mark("first")
            {answer}
            f.flush_policy = FlushPolicy.manual()
            await f.write(PAGE, b"y")
            mark("second")
            await f.flush()
            mark("closed")
    """) == {
        "open": [],
        "first": ["fsync file", "fsync directory"],
        "second": ["fdatasync file"],
        "closed": [],
    }


def test_close_syncs_unwritten_new_file(syncs, path):
    path.unlink()
    assert syncs("""
        async with aiommap.open(path, "x+", size=PAGE):
            mark("closed")
    """) == {"open": [], "closed": ["fsync file", "fsync directory"]}


def test_overwritten_file_has_its_name(syncs):
    assert syncs("""
        async with aiommap.open(path, "w+", size=PAGE) as f:
            mark("flushed")
            await f.flush()
            mark("closed")
    """) == {"open": [], "flushed": ["fsync file"], "closed": []}


@pytest.mark.parametrize("change", ["f.resize(20 * PAGE)", "f.punch_hole(0, PAGE)"])
@pytest.mark.parametrize("page", [0, 9], ids=["dirty", "clean"])
def test_flush_range_after_resize_is_whole(syncs, change, page):
    """Only fsync(2) syncs a size, and even a clean range needs it (I4)."""
    assert syncs(f"""
        async with aiommap.open(path, "r+") as f:
            await {change}
            await f.write(0, b"x")
            await f.write(5 * PAGE, b"y")
            mark("range")
            await f.flush_range({page} * PAGE, PAGE)
            mark("closed")
    """) == {"open": [], "range": ["fsync file"], "closed": []}


@pytest.mark.parametrize("page", [0, 9], ids=["dirty", "clean"])
def test_flush_range_of_new_file_syncs_name(syncs, path, page):
    path.unlink()
    assert syncs(f"""
        async with aiommap.open(path, "x+", size=16 * PAGE) as f:
            await f.write(0, b"x")
            await f.write(5 * PAGE, b"y")
            mark("range")
            await f.flush_range({page} * PAGE, PAGE)
            mark("closed")
    """) == {"open": [], "range": ["fsync file", "fsync directory"], "closed": []}


INTERRUPTED = """
import sys, anyio, aiommap
from aiommap import PAGE_SIZE as PAGE, FlushPolicy

async def main():
    async with aiommap.open(sys.argv[1], "r+", flush=FlushPolicy.always()) as f:
        await f.write(0, b"x")
        f.flush_policy = FlushPolicy.manual()
        await f.write(0, b"x")
        await f.write(3 * PAGE, b"x")
        await f.flush_range(0, PAGE)
        await f.flush()
        await f.punch_hole(0, PAGE)
        await f.resize(PAGE)
        await f.flush()

anyio.run(main)
"""


@pytest.mark.parametrize("call", ["fdatasync", "msync", "fsync", "fallocate", "ftruncate"])
def test_calls_go_on_after_a_signal(strace, path, call):
    """A FUSE server learns of the signal, and may answer EINTR."""
    inject = f"inject={call}:error=EINTR:when=1"
    options = ["-o", os.devnull, "-e", f"trace={call}", "-e", inject]
    done = run_traced(INTERRUPTED, path, options=options)
    assert done.returncode == 0, done.stderr
