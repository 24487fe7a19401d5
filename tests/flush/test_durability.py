"""Flush, receipts and the latch; cachestat(2) tells which pages are really dirty."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from aiommap.testing import failing_flush
from tests.support.internals import flusher_of, workers_of
from tests.support.limiters import held, until_queued
from tests.support.pages import write_back
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


def dirty(f, offset, length):
    try:
        return f._mapping.cachestat(offset, length)[1]
    except OSError as error:
        pytest.skip(f"cachestat(2) is missing here: {error}")


@pytest.fixture
async def f(path, anyio_backend):
    """A file with a dirty page; a flush of it is going to fail."""
    file = await aiommap.open(path, "r+")
    await file.write(0, b"lost")
    yield file
    with pytest.raises(aiommap.FlushError):
        await file.aclose()


async def expect_failure(verb):
    with pytest.raises(aiommap.FlushError, match="flush failed"):
        await verb()


async def test_flush_range_cleans_its_pages_only(path):
    async with aiommap.open(path, "r+") as f:
        await f.flush()
        write_back(path)
        await f.write(0, b"x" * 16 * PAGE)
        await f.flush_range(4 * PAGE, 4 * PAGE)
        assert dirty(f, 4 * PAGE, 4 * PAGE) == 0
        assert f.statistics().dirty_bytes == 12 * PAGE
        await f.flush()
        assert dirty(f, 0, 16 * PAGE) == 0
        assert f.statistics().dirty_bytes == 0


async def test_receipts_learn_what_is_durable(path):
    async with aiommap.open(path, "r+") as f, aiommap.open(path, "r+") as other:
        first, second = await f.write(0, b"a"), await f.write(9 * PAGE, b"b")
        assert second.sequence == first.sequence + 1
        assert not first.durable
        await f.flush_range(first)
        assert (first.durable, second.durable) == (True, False)
        await second.wait_durable()
        assert second.durable
        with pytest.raises(aiommap.ReceiptError, match="not a receipt of"):
            await other.flush_range(first)
        with pytest.raises(TypeError, match="a receipt and length=5: leave one out"):
            await f.flush_range(first, 5)


async def test_few_pages_are_flushed_with_those_of_a_receipt(path):
    """One fdatasync flushes them all; msync would wait for the device once for each range."""
    async with aiommap.open(path, "r+") as f:
        receipts = [await f.write(i * PAGE, b"a") for i in range(8)]
        await receipts[3].wait_durable()
        assert all(receipt.durable for receipt in receipts)
        assert f.statistics().dirty_bytes == 0


async def test_many_pages_wait_for_their_own_flush(path):
    async with aiommap.open(path, "r+", sparse=True) as f:
        await f.resize(200 * PAGE)
        await f.flush()
        receipts = [await f.write(i * PAGE, b"a") for i in range(200)]
        await receipts[3].wait_durable()
        assert receipts[3].durable
        assert not receipts[4].durable
        assert f.statistics().dirty_bytes == 199 * PAGE


async def test_always_shares_one_flush(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        receipts = []

        async def write(i):
            receipts.append(await f.write(i * 10, b"0123456789"))

        async with anyio.create_task_group() as group:
            for i in range(50):
                group.start_soon(write, i)
        found = f.statistics()
        assert all(receipt.durable for receipt in receipts)
        assert found.flush_requests == 50
        assert found.flushes <= 3
        assert await f.read(0, 500) == b"0123456789" * 50


async def test_close_flushes_by_policy(path):
    for policy, flushes in ((FlushPolicy.never(), 0), (FlushPolicy.manual(), 1)):
        f = await aiommap.open(path, "r+", flush=policy)
        await f.write(0, b"x")
        await f.aclose()
        assert f.statistics().flushes == flushes


async def test_flush_covers_stores_through_views(path):
    async with aiommap.open(path, "r+") as f:
        memory = f.view(3 * PAGE, PAGE).memory
        memory[:3] = b"new"
        await f.flush()
        assert dirty(f, 3 * PAGE, PAGE) == 0
        memory[:3] = b"two"
        await f.flush()
        assert dirty(f, 3 * PAGE, PAGE) == 0


@pytest.mark.parametrize("loss", ["truncated", "replaced", "removed"])
async def test_flush_of_lost_data_latches(path, outside, loss):
    f = await aiommap.open(path, "r+")
    receipt = await f.write(10 * PAGE, b"gone")
    if loss == "truncated":
        outside(path, 4 * PAGE)
    elif loss == "replaced":
        path.with_name("new").write_bytes(b"other")
        path.with_name("new").replace(path)
    else:
        path.unlink()
    for _ in range(2):
        with pytest.raises(aiommap.FlushError, match=r"truncated|no name left") as caught:
            await f.flush()
        assert caught.value.ranges == ((10 * PAGE, 11 * PAGE),)
    for verb in (lambda: f.write(0, b"x"), receipt.wait_durable, lambda: f.flush_range(0, 1)):
        with pytest.raises(aiommap.FlushError, match="flush failed"):
            await verb()
    assert await f.read(0, 1) == b"A"
    assert not receipt.durable
    for _ in range(2):
        with pytest.raises(aiommap.FlushError, match="flush failed"):
            await f.aclose()
        assert f.closed


async def test_flush_failure_ends_inline_stores(f):
    with failing_flush(f), pytest.raises(aiommap.FlushError):
        await f.flush()
    assert f._mapping.write_now(0, b"x") is None
    assert f._mapping.write_inline(0, b"x") is None


async def test_never_tells_a_failure_at_close(path):
    f = await aiommap.open(path, "r+", flush=FlushPolicy.never())
    await f.write(0, b"lost")
    with failing_flush(f):
        await expect_failure(f.flush)
    await expect_failure(f.aclose)


async def test_flush_failure_drops_gathered_writes(f):
    told = []
    f.on_error(told.append)
    later = await f.write(PAGE, b"later")
    with failing_flush(f) as fault:
        async with anyio.create_task_group() as group:
            with held(workers_of(f), workers_of(f).flushes):
                group.start_soon(expect_failure, f.flush)
                await until_queued(workers_of(f).flushes)
                group.start_soon(expect_failure, later.wait_durable)
                await until(f._open.flusher._queue.waiting)
        assert fault.hits == 1
    assert not later.durable
    assert len(told) == 1


async def test_flush_failure_names_store_under_way(f):
    await f.resize(32 * PAGE)
    async with anyio.create_task_group() as group:
        with held(workers_of(f), workers_of(f).stores):
            group.start_soon(f.write, 4 * PAGE, b"x" * 17 * PAGE)
            await until_queued(workers_of(f).stores)
            with failing_flush(f), pytest.raises(aiommap.FlushError) as caught:
                await f.flush()
            assert caught.value.ranges == ((0, PAGE),)
    with pytest.raises(aiommap.FlushError) as caught:
        await f.flush()
    assert caught.value.ranges == ((0, PAGE), (4 * PAGE, 21 * PAGE))


async def test_flush_behind_a_failed_background_is_not_tried(f):
    """The kernel would report success, because it dropped the pages that it could not write."""
    later = await f.write(PAGE, b"later")
    begun, go_on = threading.Event(), threading.Event()

    def due():  # called while the background flush has the turn
        begun.set()
        return go_on.wait(100)

    async def expect_failure():
        with pytest.raises(aiommap.FlushError):
            await later.wait_durable()

    with failing_flush(f) as fault:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, flusher_of(f).flush_if_due, due)
            await until(begun.is_set)
            group.start_soon(expect_failure)
            await until(lambda: flusher_of(f)._queue.busy)
            go_on.set()
        assert fault.hits == 1
    assert not later.durable
    with pytest.raises(aiommap.FlushError):
        await f.aclose()


async def test_flush_failure_drops_resize_behind_it(f, path):
    """The flush fails, and the resize and the flush behind it are not tried."""
    later = await f.write(PAGE, b"later")
    with failing_flush(f) as fault:
        async with anyio.create_task_group() as group:
            with held(workers_of(f), workers_of(f).control):
                group.start_soon(f.punch_hole, 8 * PAGE, PAGE)
                await until_queued(workers_of(f).control)
                for count, verb in enumerate(
                    (f.flush, partial(f.resize, 4 * PAGE), later.wait_durable), 1
                ):
                    group.start_soon(expect_failure, verb)
                    await until(lambda count=count: len(f._open.flusher._queue.waiting()) >= count)
        assert fault.hits == 1
    assert not later.durable
    assert (f.size, path.stat().st_size) == (16 * PAGE, 16 * PAGE)


async def test_durable_write_beside_a_failing_store(path, outside):
    """In the same batch another store stops short, because others cut off its range."""
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        receipts = []

        async def write(offset):
            receipts.append(await f.write(offset, b"kept"))

        async def lose():
            with pytest.raises(aiommap.MappingFaultError):
                await f.write(8 * PAGE, b"lost")

        async with anyio.create_task_group() as group:
            with held(workers_of(f), workers_of(f).flushes):
                group.start_soon(write, 0)
                await until_queued(workers_of(f).flushes)
                group.start_soon(write, PAGE)
                group.start_soon(lose)
                await until(lambda: len(f._open.flusher._queue.waiting()) >= 2)
                outside(path, 4 * PAGE)
        assert [receipt.durable for receipt in receipts] == [True, True]
        assert f.statistics().dirty_bytes == 0


async def test_word_changed_during_flush_stays_dirty(path):
    """writeback.2: the receipt of the write is durable; ``durable_sequence`` stays below it."""
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        word = f.atomic_u64(8 * PAGE)

        def change_during_the_flush(over):
            while not over.is_set():
                if f._mapping.writeback_since:
                    word.store(1)
                    break

        for _ in range(1000):
            before, over = f._mapping.sequence, threading.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, change_during_the_flush, over)
                try:
                    receipt = await f.write(0, b"x")
                finally:
                    over.set()  # else that thread would never end
            assert receipt.durable
            if receipt.sequence == before + 2:  # the word was changed in time
                break
            await f.flush()
        assert receipt.sequence == before + 2
        assert f._mapping.durable_sequence == before
        assert f.statistics().dirty_bytes == PAGE


PRIVILEGES = """
import os, sys, anyio, aiommap
from aiommap import FlushPolicy

async def main():
    f = await aiommap.open(sys.argv[1], "r+", flush=FlushPolicy.always())
    os.setuid(54321)
    try:
        os.stat(sys.argv[1])
    except PermissionError:
        print((await f.write(0, b"x")).durable, flush=True)
    f.flush_policy = FlushPolicy.manual()
    await f.write(0, b"y")
    sys.stdin.readline()
    try:
        await f.flush()
        await f.aclose()
    except aiommap.FlushError as error:
        print("was removed" in str(error))
    else:
        print("flushed")

anyio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its privileges")
@pytest.mark.parametrize(("removed", "told"), [(False, "flushed"), (True, "True")])
def test_flush_without_access_to_the_path(path, removed, told):
    path.parent.chmod(0o700)
    command = [sys.executable, "-c", PRIVILEGES, path]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        first = process.stdout.readline()
        if removed:
            path.unlink()
        rest, errors = process.communicate("\n", timeout=150)
    assert (first, rest) == ("True\n", f"{told}\n"), errors


def rename(path, aside):
    path.rename(aside)


def rename_and_replace(path, aside):
    path.rename(aside)
    path.write_bytes(b"another" * PAGE)


def link_and_remove(path, aside):
    os.link(path, aside)
    path.unlink()


def put_a_file_above(path, aside):
    path.parent.rename(f"{path.parent}.old")
    path.parent.write_bytes(b"")
    aside.symlink_to(f"{path.parent}.old/{path.name}")


def mount_over(path, aside):
    os.link(path, aside)
    done = subprocess.run(["mount", "-t", "tmpfs", "none", path.parent], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.decode()}")


MOVES = [rename, rename_and_replace, link_and_remove, put_a_file_above, mount_over]
VERBS = {
    "flush": lambda f, receipt: f.flush(),
    "flush_range": lambda f, receipt: f.flush_range(0, 1),
    "wait_durable": lambda f, receipt: receipt.wait_durable(),
    "view": lambda f, receipt: f.view(0, PAGE).flush(),
    "reopen": lambda f, receipt: f.reopen(discard=False),
    "aclose": lambda f, receipt: f.aclose(),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
async def test_flush_renamed_or_linked_elsewhere(tmp_path, move, verb):
    path, aside = tmp_path / "folder" / "file", tmp_path / "aside"
    path.parent.mkdir()
    path.write_bytes(bytes(4 * PAGE))
    f = await aiommap.open(path, "r+")
    receipt = await f.write(0, b"kept")
    move(path, aside)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):  # reopen may find no file
            await verb(f, receipt)
        assert receipt.durable or verb is VERBS["reopen"]
        if not f.closed:
            await f.write(PAGE, b"more")
            await f.aclose()
        assert aside.read_bytes()[:4] == b"kept"
    finally:
        await f.aclose()
        if move is mount_over:
            subprocess.run(["umount", "--lazy", path.parent], check=True)


async def test_flush_renamed_under_always(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        path.rename(f"{path}.1")
        assert (await f.write(0, b"kept")).durable
        assert (await f.write_many([(0, b"kept"), (PAGE, b"kept")])).durable


async def test_flush_once_the_last_name_goes(path):
    """Every name counts, not only the one by which the file was opened."""
    f = await aiommap.open(path, "r+")
    os.link(path, f"{path}.1")
    path.unlink()
    await f.write(0, b"kept")
    await f.flush()
    os.unlink(f"{path}.1")
    await f.write(0, b"lost")
    await expect_failure(f.flush)
    await expect_failure(f.aclose)


@pytest.mark.parametrize("kind", ["memfd", "tmpfile"])
async def test_flush_a_file_that_never_had_a_name(tmp_path, kind):
    if kind == "memfd":
        fd = os.memfd_create("nameless")
    else:
        try:
            fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
        except OSError as error:
            pytest.skip(f"no O_TMPFILE here: {error}")
    try:
        os.ftruncate(fd, 4 * PAGE)
        async with aiommap.open(f"/proc/self/fd/{fd}", "r+") as f:
            receipt = await f.write(0, b"kept")
            await f.flush()
            assert receipt.durable
            if kind == "tmpfile":  # from here on the file has a name
                # Without src_dir_fd Python calls link(2), which does not follow the link in /proc.
                os.link(f"/proc/self/fd/{fd}", tmp_path / "named", src_dir_fd=fd)
                await f.write(0, b"kept")
                await f.flush()
        assert os.pread(fd, 4, 0) == b"kept"
    finally:
        os.close(fd)


async def test_truncation_while_open_is_typed(path, outside):
    async with aiommap.open(path, "r+") as f:
        await f.prewarm()
        outside(path, 4 * PAGE)
        for verb in (
            lambda: f.read(8 * PAGE, 10),
            lambda: f.read(0, 16 * PAGE),
            lambda: f.read_into(8 * PAGE, bytearray(10)),
            lambda: f.read_many([(0, 1), (8 * PAGE, 1)]),
            lambda: f.write(8 * PAGE, b"x"),
            lambda: f.write(8 * PAGE, b"x" * 8 * PAGE),
            lambda: f.write_many([(8 * PAGE, b"x")]),
            f.prewarm,
        ):
            with pytest.raises(aiommap.MappingFaultError, match="shrank to 16384") as caught:
                await verb()
            assert caught.value.size == 4 * PAGE
            assert caught.value.offset >= 4 * PAGE
        assert await f.read(0, 4 * PAGE) == path.read_bytes()
        await f.write(0, b"still here")
        await f.flush()
