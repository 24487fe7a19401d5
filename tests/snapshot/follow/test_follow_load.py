"""Followed paths with ``load``: the value of each generation, and waiting for the first one."""

from __future__ import annotations

import asyncio
import gc
import os

import anyio
import anyio.to_thread
import numpy as np
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.following import (
    Gate,
    check_good,
    content,
    mappings,
    replace,
    replace_off_loop,
    until,
    until_mapped,
    until_serves,
    until_value,
)

pytestmark = pytest.mark.anyio


async def load_number(snapshot):
    """Parse a file as the tests write it: ``good`` and a number."""
    word, number = (await content(snapshot)).split()
    if word != b"good":
        raise ValueError(f"cannot load {word!r}")
    return int(number)


# Values.


async def test_load_gives_each_generation_a_value(path):
    async with aiommap.follow(path, load=load_number) as live:
        assert (live.value, live.generation) == (0, 1)
        seen = []
        with anyio.fail_after(100):
            async for snapshot in live:
                assert await load_number(snapshot) == live.value
                seen.append(live.value)
                if len(seen) == 4:
                    break
                replace(path, b"good %d" % len(seen))
        assert seen == [0, 1, 2, 3]
    with pytest.raises(anyio.ClosedResourceError, match="not followed any more"):
        _ = live.value


async def test_load_left_out_gives_none(path):
    async with aiommap.follow(path) as live:
        assert live.value is None


async def test_load_fails_and_old_value_stays(path, errors):
    async with aiommap.follow(path, load=load_number, on_error=errors) as live:
        first = live.current
        replace(path, b"bad 1")
        await errors.wait(ValueError, "cannot load b'bad'")
        assert (live.value, live.current) == (0, first)
        await until_mapped(path, 1)
        replace(path, b"")
        await errors.wait(ValueError, "not enough values")
        replace(path, b"good 2")
        await until_value(live, 2)
        assert not errors.found


async def test_load_fails_for_the_first_file(path):
    path.write_bytes(b"bad 0")
    with pytest.raises(ValueError, match="cannot load"):
        await aiommap.follow(path, load=load_number)
    with pytest.raises(TypeError, match="has to be async"):
        await aiommap.follow(path, load=lambda snapshot: snapshot.size)
    assert mappings(path) == 0


async def test_load_comes_after_validation_and_prewarming(path, errors):
    calls = []

    async def validate(snapshot):
        calls.append("validate")
        return (await content(snapshot)).startswith(b"good")

    async def load(snapshot):
        calls.append("load")
        residency = await snapshot.residency()
        assert residency.resident == residency.total
        return await load_number(snapshot)

    async with aiommap.follow(path, validate=validate, load=load, on_error=errors) as live:
        replace(path, b"bad 1")
        await errors.wait(ValueError, "validate returned False")
        assert (calls, live.value) == (["validate", "load", "validate"], 0)


async def test_load_of_a_file_that_is_cut_off(path):
    """A value is dropped if its file changed while it was loaded."""

    async def load(snapshot):
        loaded = await content(snapshot)
        if snapshot.size > 6:
            await anyio.to_thread.run_sync(os.truncate, path, 6)
        return loaded

    async with aiommap.follow(path, load=load, on_error=lambda _: None) as live:
        replace(path, b"good 1" + bytes(PAGE))
        await until_value(live, b"good 1")
        assert live.generation == 2


async def test_load_overtaken_is_cancelled(path, errors):
    gate = Gate()
    async with aiommap.follow(path, load=gate, on_error=errors) as live:
        replace(path, b"good 1")
        with anyio.fail_after(100):
            await gate.begun.wait()
        replace(path, b"good 2")

        async def cancelled():
            return gate.cancelled == 1 and gate.calls == 3

        await until(cancelled)
        assert live.generation == 1
        gate.opened.set()
        await until_serves(live, b"good 2")
        assert (live.generation, errors.found) == (2, [])


@pytest.mark.parametrize("end", ["live", "hub"])
async def test_leave_while_loading(path, errors, end):
    gate = Gate()
    async with aiommap.Hub() as hub:
        live = await aiommap.follow(path, load=gate, hub=hub, on_error=errors)
        replace(path, b"good 1")
        with anyio.fail_after(100):
            await gate.begun.wait()
            await (live if end == "live" else hub).aclose()
            await live.aclose()
    assert (gate.cancelled, errors.found) == (1, [])
    assert mappings(path) == 0


async def test_load_left_under_way_at_loop_end(path):
    def run():
        async def main():
            gate = Gate()
            await aiommap.follow(path, load=gate)
            replace(path, b"good 1")
            await gate.begun.wait()

        asyncio.run(main())

    await anyio.to_thread.run_sync(run)


@pytest.mark.slow
async def test_value_and_current_are_of_one_generation(path):
    """A reader of both gets two that belong together, however often they are swapped."""
    stop = anyio.Event()
    pairs = set()

    async def read(live):
        newest = 0
        while not stop.is_set():
            snapshot, value = live.current, live.value
            await anyio.sleep(0)
            assert await load_number(snapshot) == value
            assert value >= newest
            newest = value
            pairs.add(value)
            # If a loop never rests, other threads may wait seconds for the GIL.
            await anyio.sleep(0.02)

    async def read_of(number):
        async def was():
            return number in pairs

        await until(was)

    async with (
        aiommap.follow(path, load=load_number) as live,
        anyio.create_task_group() as group,
    ):
        for _ in range(50):
            group.start_soon(read, live)
        for number in range(1, 300):
            await replace_off_loop(path, b"good %d" % number)
            if not number % 9:
                await read_of(number)
        stop.set()
    assert len(pairs) > 30


# What a value keeps alive.


async def load_bytes(snapshot):
    return await content(snapshot)


async def load_view(snapshot):
    return snapshot.view()


async def load_snapshot(snapshot):
    return snapshot


async def load_array(snapshot):
    return snapshot.array(np.uint8)


@pytest.mark.parametrize(
    ("load", "kept"), [(load_bytes, 1), (load_view, 2), (load_snapshot, 2), (load_array, 2)]
)
async def test_value_keeps_what_it_refers_to(path, load, kept):
    async with aiommap.follow(path, load=load) as live:
        old = live.value
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        gc.collect()
        await until_mapped(path, kept)
        del old
        await until_mapped(path, 1)


async def test_value_that_is_memory_keeps_no_file_open(path):
    descriptors = len(os.listdir("/proc/self/fd"))
    async with aiommap.Hub() as hub:
        live = await aiommap.follow(path, load=load_array, hub=hub)
        array = live.value
        replace(path, b"good 1")
        await until_serves(live, b"good 1")

        async def closed():
            return len(hub.files) == 1

        await until(closed)
        assert array.tobytes() == b"good 0"
        await live.aclose()
    assert array.tobytes() == b"good 0"  # I7

    async def settled():
        return len(os.listdir("/proc/self/fd")) <= descriptors

    await until(settled)


@pytest.mark.slow
@pytest.mark.parametrize("load", [load_bytes, load_view, load_snapshot, load_array])
async def test_hundreds_of_swaps_keep_nothing(path, load):
    def counts():
        with open("/proc/self/maps") as lines:
            return sum(1 for _ in lines), len(os.listdir("/proc/self/fd"))

    swaps = 0
    async with aiommap.follow(path, load=load, prewarm=False) as live:
        gc.collect()
        before = counts()
        gc.disable()  # nothing may need it
        try:
            async for _ in live:
                swaps += 1
                if swaps == 500:
                    break
                await replace_off_loop(path, b"good %d" % swaps)
        finally:
            gc.enable()
        await until_mapped(path, 1)

        async def gone():
            maps, descriptors = counts()
            # There may be a few more: what malloc and threads have mapped meanwhile, and the
            # descriptor of the loop's engine, which begins with the first read that has to wait.
            return maps <= before[0] + 20 and descriptors <= before[1] + 1

        await until(gone)


# The first good file.


@pytest.mark.parametrize("folder", ["", "not/yet"], ids=["file", "folders"])
async def test_unrequired_file_may_come_later(tmp_path, errors, folder):
    path = tmp_path / folder / "table"
    options = {"required": False, "load": load_number, "on_error": errors}
    async with aiommap.follow(path, **options) as live:
        assert (live.ready, live.generation, live.closed) == (False, 0, False)
        for name in ("current", "value"):
            with pytest.raises(anyio.WouldBlock, match=r"nothing good at .* yet: await wait_ready"):
                getattr(live, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, b"good 7")
        with anyio.fail_after(100):
            await live.wait_ready()
        assert (live.ready, live.value, live.generation) == (True, 7, 1)
        assert not errors.found  # a first file that is missing is no error
        path.unlink()
        await errors.wait(FileNotFoundError)
        assert live.value == 7


async def test_unrequired_file_that_is_there_is_served(path):
    async with aiommap.follow(path, required=False, load=load_number) as live:
        assert (live.ready, live.value) == (True, 0)
        await live.wait_ready()
    assert not live.ready


@pytest.mark.parametrize("first", [b"", b"bad 0"], ids=["empty", "bad"])
async def test_unrequired_file_may_be_bad(path, errors, first):
    path.write_bytes(first)
    async with aiommap.follow(path, required=False, load=load_number, on_error=errors) as live:
        await errors.wait(ValueError)
        assert not live.ready
        replace(path, b"bad 1")
        await errors.wait(ValueError, "cannot load")
        assert not live.ready
        replace(path, b"good 2")
        await until_value(live, 2)
    assert mappings(path) == 0


async def test_unrequired_file_written_slowly(tmp_path):
    path = tmp_path / "table"
    async with aiommap.follow(
        path, required=False, validate=check_good, on_error=lambda _: None
    ) as live:
        with path.open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(b"good" * 64)
                await anyio.sleep(0.002)
        await live.wait_ready()
        await until_serves(live, b"good" * 64 * 20)


async def test_unrequired_directory_is_reported(tmp_path, errors):
    async with aiommap.follow(tmp_path, required=False, on_error=errors) as live:
        await errors.wait(aiommap.UnsupportedError, "it is a directory")
        assert not live.ready


async def test_iterate_waits_for_the_first(tmp_path):
    path = tmp_path / "table"
    async with aiommap.follow(path, required=False) as live:
        generations = aiter(live)
        with anyio.move_on_after(0):
            await anext(generations)
        replace(path, b"good 0")
        with anyio.fail_after(100):
            assert await content(await anext(generations)) == b"good 0"
        assert generations.skipped == 0


@pytest.mark.parametrize("end", ["live", "hub"])
async def test_wait_ready_ends_with_following(tmp_path, end, errors):
    ended = []

    async def wait(live):
        with pytest.raises(anyio.ClosedResourceError, match="not followed any more"):
            await live.wait_ready()
        ended.append(True)

    async with anyio.create_task_group() as group, aiommap.Hub() as hub:
        live = await aiommap.follow(tmp_path / "x", hub=hub, required=False, on_error=errors)
        group.start_soon(wait, live)
        group.start_soon(wait, live)
        with anyio.move_on_after(0):
            await live.wait_ready()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(100):
            await (live if end == "live" else hub).aclose()
    await live.aclose()
    assert (ended, errors.found) == ([True, True], [])
