"""How long old generations of a followed path are kept, and what readers see of a swap."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.following import (
    content,
    mappings,
    replace,
    until,
    until_mapped,
    until_serves,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_old_generation_lives_while_referred_to(path, no_collector):
    async with aiommap.follow(path) as live:
        old = live.current
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        assert live.current is not old
        assert mappings(path) == 2
        assert await content(old) == b"good 0"
        del old
        await until_mapped(path, 1)
        assert await content(live.current) == b"good 1"
    assert mappings(path) == 0


@pytest.mark.parametrize("keep", ["method", "view", "view-of-view", "hold", "block", "coroutine"])
async def test_readers_keep_the_generation_open(path, keep):
    async with aiommap.follow(path) as live, contextlib.AsyncExitStack() as stack:
        snapshot = live.current
        if keep == "method":
            read = snapshot.read_exact
        elif keep == "view":
            read = snapshot.view().read
        elif keep == "view-of-view":
            read = snapshot.view().view(0, 4).split_at(4)[0].read
        elif keep == "hold":
            read = stack.enter_context(snapshot.hold()).read
        elif keep == "block":
            read = (await stack.enter_async_context(snapshot)).read
        else:
            coroutine = snapshot.read_exact(0, 4)

            async def read(*_):
                return await coroutine

        del snapshot
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        gc.collect()
        assert mappings(path) == 2
        assert await read(0, 4) == b"good"
        await stack.aclose()
        read = coroutine = None
        await until_mapped(path, 1)


async def test_view_memory_outlives_its_generation(path):
    async with aiommap.follow(path) as live:
        memory = live.current.view().memory
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
    assert memory == b"good 0"


async def test_released_view_keeps_nothing(path):
    async with aiommap.follow(path) as live:
        view = live.current.view()
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        assert mappings(path) == 2
        view.release()
        await until_mapped(path, 1)


async def test_generation_ends_in_another_thread(path):
    async with aiommap.follow(path) as live:
        kept = [live.current]
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        await anyio.to_thread.run_sync(kept.clear)
        await until_mapped(path, 1)


@pytest.mark.parametrize("live_one", [False, True], ids=["old", "live"])
async def test_lost_page_of_old_generation_on_close(path, caplog, live_one):
    kept = path.with_name("kept")
    path.write_bytes(bytes(4 * PAGE))
    async with contextlib.AsyncExitStack() as stack:
        live = await aiommap.follow(path)
        stack.push_async_callback(live.aclose)
        old = live.current
        memory = old.view().memory
        os.link(path, kept)
        if not live_one:
            replace(path, b"good 1")
            await until_serves(live, b"good 1")
        newest = live.current
        os.truncate(kept, 0)
        assert memory[2 * PAGE] == 0
        if live_one:
            for _ in range(2):
                with pytest.raises(aiommap.MappingFaultError):
                    await live.aclose()
            stack.pop_all()
        else:
            await live.aclose()
            assert "closing an old generation failed" in caplog.text
        assert old.closed
        assert newest.closed


async def test_current_closed_by_hand_disturbs_nobody(path):
    async with aiommap.follow(path) as live:
        await live.current.aclose()
        async with live.current as snapshot:
            assert await content(snapshot) == b"good 0"
        assert await content(live.current) == b"good 0"


async def test_leave_waits_for_holds(path):
    left = anyio.Event()

    async def leave(live):
        await live.aclose()
        left.set()

    async with anyio.create_task_group() as group:
        live = await aiommap.follow(path)
        old = live.current
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        current = live.current
        with old.hold():
            group.start_soon(leave, live)

            async def closed():
                return current.closed

            await until(closed)
            await anyio.wait_all_tasks_blocked()
            assert not left.is_set()
            assert await content(old) == b"good 0"
        with anyio.fail_after(100):
            await left.wait()
    assert old.closed
    assert mappings(path) == 0
    with pytest.raises(anyio.ClosedResourceError, match="is closed"):
        await content(old)


async def test_leave_cancelled_disturbs_no_hold(path):
    live = await aiommap.follow(path)
    old = live.current
    with old.hold():
        with anyio.CancelScope() as scope:
            async with live:
                scope.cancel()
        assert await content(old) == b"good 0"
    await until_mapped(path, 0)


# Many readers.


@pytest.mark.slow
async def test_swap_under_a_thousand_readers(path):
    """Every read returns one whole generation, and no reader ever sees an older one again."""
    length = 8 * PAGE
    replace(path, b"\0" * length)
    stop = anyio.Event()
    reads = Counter()

    async def read(live):
        newest = 0
        while not stop.is_set():
            snapshot = live.current
            half = await snapshot.read_exact(0, length // 2)
            await anyio.sleep(0)
            whole = half + await snapshot.read_exact(length // 2, length // 2)
            number = whole[0]
            assert whole.count(number) == length
            assert number >= newest
            newest = number
            reads[number] += 1
            del snapshot

    async with aiommap.follow(path) as live:
        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(read, live)
            for number in range(1, 9):
                await anyio.to_thread.run_sync(replace, path, bytes([number]) * length)

                async def read_of(number=number):
                    return reads[number] > 0

                await until(read_of)
            stop.set()
        await until_mapped(path, 1)
    assert set(reads) == set(range(9))
