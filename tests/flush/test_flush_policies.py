"""Background flushes and writers that wait for room: each policy on a real file."""

from __future__ import annotations

import os
import time

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.internals import BACKGROUND_FLUSHES, Writeback, kept_threads
from tests.support.waiting import nothing_happens, until

pytestmark = pytest.mark.anyio


async def settled(f):
    """Wait until no background flush runs or is asked for; a running one shows as writeback."""
    await until(lambda: not f._mapping.writeback_since and not f._open.background._asked)


async def test_every_bytes_flushes_at_its_count(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_bytes(1000)) as f:
        receipts = [await f.write(i * 100, b"x" * 100) for i in range(9)]
        await nothing_happens()
        assert f.statistics().flushes == 0
        receipts.append(await f.write(900, b"x" * 100))
        await until(lambda: all(receipt.durable for receipt in receipts))
        await settled(f)
        assert f.statistics().flushes == 1
        assert f.statistics().dirty_bytes == 0


async def test_every_writes_counts_writes_not_bytes(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_writes(5)) as f:
        for round_ in range(1, 4):
            for _ in range(4):
                await f.write(0, b"x" * 3000)
            await nothing_happens()
            assert f.statistics().flushes == round_ - 1
            last = await f.write(0, b"y")
            await until(lambda last=last: last.durable)
            await settled(f)
            assert f.statistics().flushes == round_


async def test_every_writes_counts_write_many_items(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_writes(3)) as f:
        receipt = await f.write_many([(0, b"a"), (1, b"b"), (2, b"c")])
        await until(lambda: receipt.durable)


async def test_every_bytes_counts_queued_writes(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_bytes(65 << 10)) as f:
        await f.resize(1 << 20)
        receipt = await f.write(0, b"x" * (65 << 10))
        await until(lambda: receipt.durable)
        assert f.statistics().offloaded_writes == 1


async def test_every_interval_flushes_only_when_dirty(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_interval(0.02)) as f:
        for round_ in range(1, 4):
            start = time.monotonic()
            receipt = await f.write(round_, b"x")
            await until(lambda receipt=receipt: receipt.durable)
            assert time.monotonic() - start >= 0.02
            await settled(f)
            assert f.statistics().flushes == round_


async def test_every_interval_flushes_view_stores(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_interval(0.01)) as f:
        # Reading this changes nothing, unlike a call of statistics().
        flushes = f._open.flusher.writeback.groups
        view = f.view(0, PAGE)
        memory = view.memory
        await until(lambda: flushes.count >= 2)
        memory[0] = 90
        seen = flushes.count
        await until(lambda: flushes.count >= seen + 2)
        memory.release()
        view.release()
        await until(lambda: f.statistics().dirty_bytes == 0)
    assert path.read_bytes()[0] == 90


async def test_closed_file_leaves_the_scheduler(path):
    async with aiommap.Hub() as hub:
        f = await hub.open(path, "r+", flush=FlushPolicy.every_interval(3600))
        await f.write(0, b"x")
        assert not hub._scheduler.idle
        await f.aclose()
        assert hub._scheduler.idle


@pytest.mark.parametrize(
    "policy", [FlushPolicy.every_interval(0.01), FlushPolicy.every_writes(1)], ids=str
)
async def test_memory_lent_in_a_thread_delays_no_flush(path, tmp_path, policy):
    """A thread asks for writable memory and releases it; the flush comes all the same."""

    def store(view):
        memory = view.memory
        memory[0] = 90
        memory.release()
        view.release()

    async with (
        aiommap.Hub() as hub,
        hub.open(path, "r+", flush=policy) as f,
        hub.open(tmp_path / "other", "w+", size=PAGE, flush=policy) as other,
    ):
        await anyio.to_thread.run_sync(store, f.view(0, PAGE))
        receipts = [await f.write(PAGE, b"x"), await other.write(0, b"x")]
        await until(lambda: all(receipt.durable for receipt in receipts))
        await until(lambda: f.statistics().dirty_bytes == 0)


async def test_policy_replaced_in_another_thread(path):
    async with aiommap.open(path, "r+") as f:
        receipt = await f.write(0, b"x")

        def replace():
            f.flush_policy = FlushPolicy.every_interval(0.01)

        with pytest.raises(RuntimeError, match="belongs to the event loop it was opened in"):
            await anyio.to_thread.run_sync(replace)
        assert f.flush_policy == FlushPolicy.manual()
        replace()
        await until(lambda: receipt.durable)


async def test_combined_policies_flush_at_the_first(path):
    both = FlushPolicy.every_bytes(100) | FlushPolicy.every_writes(3)
    async with aiommap.open(path, "r+", flush=both) as f:
        by_bytes = await f.write(0, b"x" * 100)
        await until(lambda: by_bytes.durable)
        await settled(f)
        by_count = [await f.write(0, b"x") for _ in range(3)]
        await until(lambda: by_count[2].durable)


async def test_manual_and_never_flush_nothing(path):
    for policy, flushed in ((FlushPolicy.manual(), 1), (FlushPolicy.never(), 0)):
        f = await aiommap.open(path, "r+", flush=policy)
        receipts = [await f.write(i, b"x" * 4000) for i in range(200)]
        await nothing_happens()
        assert f.statistics().flushes == 0
        await f.aclose()
        assert f.statistics().flushes == flushed
        assert receipts[-1].durable == bool(flushed)


async def test_wait_durable_flushes_under_never(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.never()) as f:
        receipt = await f.write(0, b"x")
        await receipt.wait_durable()
        assert receipt.durable
        assert f.statistics().flushes == 1


async def test_policy_replaced_while_open(path):
    async with aiommap.open(path, "r+") as f:
        first = await f.write(0, b"x" * 100)
        f.flush_policy = FlushPolicy.every_bytes(100)
        assert f.flush_policy == FlushPolicy.every_bytes(100)
        await until(lambda: first.durable)
        f.flush_policy = FlushPolicy.always()
        assert (await f.write(0, b"y")).durable
        f.flush_policy = FlushPolicy.manual()
        assert not (await f.write(0, b"z")).durable
        with pytest.raises(TypeError, match="use one of the FlushPolicy class methods"):
            f.flush_policy = "always"
    with pytest.raises(anyio.ClosedResourceError, match="is closed"):
        f.flush_policy = FlushPolicy.manual()


async def test_max_dirty_writers_wait_in_order(path):
    policy = FlushPolicy.max_dirty(4 * PAGE)
    async with aiommap.open(path, "r+", flush=policy) as f:
        order = []

        async def write(name, offset, pages):
            await f.write(offset * PAGE, bytes([name]) * pages * PAGE)
            order.append(name)
            assert f._mapping.would_dirty(0, 0) <= 4 * PAGE

        await write(1, 0, 4)
        async with anyio.create_task_group() as group:
            for waiting, arguments in enumerate([(2, 2, 3), (3, 3, 1), (4, 4, 4)], 1):
                group.start_soon(write, *arguments)
                await until(
                    lambda waiting=waiting: f._open.background._waiting == waiting or order[1:]
                )
        assert order == [1, 2, 3, 4]
        assert f.statistics().flushes >= 2
        assert await f.read(3 * PAGE, PAGE) == bytes([3]) * PAGE


async def test_max_dirty_ignores_dirty_pages(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.max_dirty(PAGE)) as f:
        for i in range(100):
            await f.write(i, b"x")
        assert f.statistics().flushes == 0


async def test_max_dirty_large_write_goes_alone(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.max_dirty(PAGE)) as f:
        await f.write(8 * PAGE, b"before")
        await f.write(0, b"x" * 4 * PAGE)
        assert f.statistics().flushes == 1
        assert f.statistics().dirty_bytes == 4 * PAGE


async def test_max_dirty_ignores_dirty_views(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.max_dirty(2 * PAGE)) as f:
        with f.view(0, 4 * PAGE) as view:
            view.memory[0] = 1
            await f.write(8 * PAGE, b"x")
            assert f.statistics().flushes == 1


async def test_max_dirty_holds_under_many_writers(tmp_path):
    limit = 64 * PAGE
    policy = FlushPolicy.max_dirty(limit)
    async with aiommap.open(tmp_path / "f", "x+", size=1024 * PAGE, flush=policy) as f:
        worst = 0

        async def write(first):
            nonlocal worst
            for page in range(first, 1024, 8):
                await f.write(page * PAGE, b"x" * PAGE)
                worst = max(worst, f._mapping.would_dirty(0, 0))

        async with anyio.create_task_group() as group:
            for first in range(8):
                group.start_soon(write, first)
        assert 0 < worst <= limit
    assert (tmp_path / "f").read_bytes() == b"x" * 1024 * PAGE


async def test_max_dirty_cancelled_never_lands(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.max_dirty(PAGE)) as f:
        await f.write(0, b"a")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await f.write(5 * PAGE, b"never")
        assert (await f.read(5 * PAGE, 5)) == b"FFFFF"
        await f.write(6 * PAGE, b"still goes")


async def test_background_failure_reaches_everyone(path):
    told = []

    async def listen(error):
        told.append(error)

    f = await aiommap.open(path, "r+", flush=FlushPolicy.every_interval(0.01))
    f.on_error(listen)
    cancelled = f.on_error(told.append)
    cancelled.cancel()
    f.on_error(lambda error: 1 / 0)
    receipt = await f.write(0, b"x")
    os.unlink(path)
    await until(lambda: told)
    assert isinstance(told[0], aiommap.FlushError)
    assert told[0].ranges == ((0, PAGE),)
    for verb in (
        lambda: f.write(0, b"y"),
        f.flush,
        receipt.wait_durable,
        lambda: f.flush_range(0, 1),
        f.aclose,
    ):
        with pytest.raises(aiommap.FlushError, match="orphaned"):
            await verb()
    assert not receipt.durable
    assert len(told) == 1
    assert f.statistics().flush_failed


async def test_scheduler_serves_many_files(tmp_path):
    async with aiommap.Hub() as hub:
        files = [
            await hub.open(
                tmp_path / str(i), "x+", size=PAGE, flush=FlushPolicy.every_interval(0.05)
            )
            for i in range(40)
        ]
        receipts = [await f.write(0, b"x") for f in files[:10]]
        await until(lambda: all(receipt.durable for receipt in receipts))
        await until(lambda: hub._scheduler.idle)
        assert [f.statistics().flushes for f in files] == [1] * 10 + [0] * 30


async def test_statistics_tell_of_flushes(path):
    async with aiommap.open(path, "r+") as f:
        assert f.statistics().oldest_dirty_seconds is None
        await f.write(0, b"x" * 2 * PAGE)
        assert f.statistics().oldest_dirty_seconds > 0
        await f.flush()
        found = f.statistics()
        assert found.oldest_dirty_seconds is None
        assert found.flushed_bytes == 2 * PAGE
        assert found.flush_seconds.count == found.flush_group.count == 1
        assert 0 < found.flush_seconds.p50 <= found.flush_seconds.maximum
        assert found.flush_group.maximum == 1


async def test_background_flush_without_a_thread(path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    async with aiommap.Hub() as hub:
        policy = FlushPolicy.every_interval(0.01)
        files = [await hub.open(path, "r+", flush=policy) for _ in range(2 * BACKGROUND_FLUSHES)]
        with monkeypatch.context() as patches:
            patches.setattr(kept_threads, "run_in_thread", refuse)
            receipts = [await f.write(i * PAGE, b"x") for i, f in enumerate(files)]
            await until(lambda: all(receipt.durable for receipt in receipts))
            await until(lambda: hub._scheduler.idle)


async def test_background_flush_without_memory(path, monkeypatch, caplog):
    async with aiommap.open(path, "r+", flush=FlushPolicy.every_interval(0.01)) as f:
        with monkeypatch.context() as patches:

            def fail(*_):
                raise MemoryError

            patches.setattr(Writeback, "_finds_work", fail)
            receipt = await f.write(0, b"x")
            await until(lambda: caplog.records)
        await until(lambda: receipt.durable)
    assert "was not flushed, and will be tried again" in caplog.records[0].getMessage()
