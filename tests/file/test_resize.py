"""Changes of size beside flushes, writes and one another."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.internals import core_of, workers_of
from tests.support.limiters import held
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


async def test_resize_concurrent_ends_at_one_size(path):
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        for _ in range(30):
            async with anyio.create_task_group() as group:
                for pages in (2, 64, 7, 33):
                    group.start_soon(f.resize, pages * PAGE)
            assert f.size == os.stat(path).st_size


async def test_shrink_during_flush_is_no_truncation(path):
    async with aiommap.open(path, "r+") as f:
        for _ in range(30):
            await f.resize(16 * PAGE)
            await f.write(12 * PAGE, b"x" * PAGE)
            async with anyio.create_task_group() as group:
                group.start_soon(f.flush)
                group.start_soon(f.resize, 4 * PAGE)
        await f.flush()


async def test_shrink_fails_durable_write_behind_it(path):
    """Its range was checked before the shrink; none of its bytes is stored, its neighbours are."""
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        outcomes = {}

        async def attempt(name, verb, *arguments):
            try:
                outcomes[name] = await verb(*arguments)
            except Exception as error:
                outcomes[name] = error

        async with anyio.create_task_group() as group:
            with held(workers_of(f), workers_of(f).flushes):
                group.start_soon(attempt, "first", f.write, 0, b"kept")
                await submitted(f, 1)
                group.start_soon(attempt, "shrink", f.resize, 4 * PAGE)
                await submitted(f, 2)
                group.start_soon(attempt, "outside", f.write, 8 * PAGE, b"lost")
                group.start_soon(attempt, "inside", f.write, PAGE, b"kept")
                await submitted(f, 4)
        assert isinstance(outcomes["outside"], aiommap.MappingFaultError)
        assert outcomes["first"].durable
        assert outcomes["inside"].durable
        assert f.size == 4 * PAGE
    assert os.stat(path).st_size == 4 * PAGE


async def submitted(f, count):
    """Wait until the commit queue holds this many items, in flight or gathering."""
    queue = f._open.flusher._queue
    while len(queue.waiting()) + (len(queue._in_flight.items) if queue._in_flight else 0) < count:
        await anyio.lowlevel.checkpoint()


async def test_policy_change_keeps_write_order(path):
    """I9 across both queues: the store queue is held while the policy changes."""
    async with aiommap.open(path, "r+") as f:
        receipts = []

        async def write():
            receipts.append(await f.write(0, b"b"))

        await f.resize(1 << 20)
        async with anyio.create_task_group() as group:
            with held(workers_of(f), workers_of(f).stores):
                group.start_soon(f.write, 0, b"a" * (128 << 10))
                await until(lambda: core_of(f).own.queued_bytes)
                f.flush_policy = FlushPolicy.always()
                group.start_soon(write)
                await until(f._open.writer._queue.waiting)
        assert await f.read(0, 2) == b"ba"
        assert receipts[0].durable


async def test_policy_change_after_durable_writes(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        async with anyio.create_task_group() as group:
            with held(workers_of(f), workers_of(f).flushes):
                group.start_soon(f.write, 0, b"a" * 100)
                await submitted(f, 1)
                f.flush_policy = FlushPolicy.manual()
                group.start_soon(f.write, 0, b"b")
                await submitted(f, 2)
        assert await f.read(0, 2) == b"ba"
        await f.write(0, b"c")
        assert f.statistics().inline_writes == 1


@pytest.mark.parametrize("replaced", ["before", "between"])
async def test_inline_write_waits_for_last_durable(path, replaced):
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:

        async def write_twice():
            await f.write(0, b"a")
            if replaced == "between":
                f.flush_policy = FlushPolicy.manual()
            await f.write(0, b"c")  # the batch of "b" has not begun

        async with anyio.create_task_group() as group:
            with held(workers_of(f), workers_of(f).flushes):
                group.start_soon(write_twice)
                await submitted(f, 1)
                group.start_soon(f.write, 0, b"b")
                await submitted(f, 2)
                if replaced == "before":
                    f.flush_policy = FlushPolicy.manual()
        assert await f.read(0, 1) == b"c"


async def test_resize_waits_for_gathering_writes(path):
    async with aiommap.open(path, "r+") as f:
        long, left = b"x" * 17 * PAGE, []
        await f.resize(64 * PAGE)

        async def wait():
            await f._open.writer.wait_stored()
            left.append(f._open.writer._queue.busy)

        async with anyio.create_task_group() as group:
            with held(workers_of(f), workers_of(f).stores):
                for count in (1, 2):
                    group.start_soon(f.write, 0, long)
                    await until(
                        lambda count=count: len(f._open.writer._queue.unfinished()) >= count
                    )
                group.start_soon(wait)
                await anyio.lowlevel.checkpoint()
        assert left == [False]


@pytest.mark.parametrize("verb", ["resize", "write"])
async def test_resize_and_store_exclude_each_other(path, verb):
    async with aiommap.open(path, "r+") as f:
        ended = []

        async def act():
            await (f.resize(4 * PAGE) if verb == "resize" else f.write(0, b"x" * 32 * PAGE))
            ended.append(verb)

        await f.resize(32 * PAGE)
        async with anyio.create_task_group() as group:
            with core_of(f).resize_mutex:  # as if the other verb had it
                group.start_soon(act)
                for _ in range(5):  # hops, during which the worker gets as far as it can
                    async with aiommap.open(path, "r"):
                        pass
                assert not ended
        assert ended == [verb]


@pytest.mark.parametrize("verb", ["prewarm", "residency", "advise", "locked", "punch_hole"])
async def test_resize_under_a_verb_is_out_of_bounds(path, verb):
    """The verb was checked before the shrink; native code then raises the same error."""
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
        await f.resize(16 * PAGE)
        act = {
            "prewarm": lambda: f._open.pager._stretch(0, 16 * PAGE, False),
            "residency": lambda: core_of(f).mapping.residency(0, 16 * PAGE),
            "advise": lambda: f._open.pager._advise(aiommap.Advice.NORMAL, 0, 16 * PAGE),
            "locked": lambda: f._open.pager._lock_piece(0, 16 * PAGE),
            "punch_hole": lambda: f._open.resizer.punch_hole(0, 16 * PAGE),
        }[verb]
        await f.resize(PAGE)
        with pytest.raises(aiommap.OutOfBoundsError):
            await anyio.to_thread.run_sync(act)


async def test_shrink_beside_verbs_says_what_is_out(path):
    async with aiommap.open(path, "r+", sparse=True, flush=aiommap.FlushPolicy.never()) as f:
        for _ in range(10):
            await f.resize(1024 * PAGE)

            async def attempt(verb):
                with suppress(aiommap.OutOfBoundsError, aiommap.MappingFaultError):
                    await verb

            async def pin():
                async with f.locked():
                    pass

            async with anyio.create_task_group() as group:
                group.start_soon(attempt, f.prewarm())
                group.start_soon(attempt, f.residency())
                group.start_soon(attempt, pin())
                group.start_soon(attempt, f.start_writeback())
                group.start_soon(attempt, f.advise(aiommap.Advice.WILL_NEED))
                group.start_soon(attempt, f.punch_hole(PAGE, 1023 * PAGE))
                group.start_soon(f.resize, PAGE)


async def test_shrink_that_fails_changes_nothing():
    """The file is sealed, so ftruncate(2) fails after the tail was fenced."""
    descriptor = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, b"x" * 8 * PAGE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        async with aiommap.open(f"/proc/self/fd/{descriptor}", "r+") as f:
            with f.view() as view:
                with pytest.raises(PermissionError):
                    await f.resize(4 * PAGE)
                assert f.size == 8 * PAGE
                assert bytes(view.memory) == b"x" * 8 * PAGE
                await f.write(7 * PAGE, b"y")
                assert view.memory[7 * PAGE] == ord("y")
    finally:
        os.close(descriptor)
