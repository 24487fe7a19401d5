"""Followed paths: which files are served, and how following begins and ends."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
import weakref

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Snapshot
from tests.support.following import (
    REPLACEMENTS,
    Gate,
    check_good,
    content,
    mappings,
    replace,
    until,
    until_mapped,
    until_serves,
)

pytestmark = pytest.mark.anyio


# The first file.


async def test_follow_serves_the_first_file(path):
    async with aiommap.follow(path) as live:
        assert isinstance(live.current, Snapshot)
        assert live.current is live.current
        assert await content(live.current) == b"good 0"
        assert (live.generation, live.path, live.closed) == (1, str(path), False)
        assert repr(live) == f"<LiveSnapshot {path} generation 1>"
    assert live.closed
    assert repr(live) == f"<LiveSnapshot {path} closed>"
    with pytest.raises(anyio.ClosedResourceError, match="not followed any more"):
        _ = live.current
    await live.aclose()


async def test_follow_awaited_is_closed_by_caller(path):
    live = await aiommap.follow(str(path))
    replace(path, b"good 1")
    await until_serves(live, b"good 1")
    async with live as same:
        assert same is live
    assert mappings(path) == 0


async def test_follow_missing_path_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file") as caught:
        await aiommap.follow(tmp_path / "missing")
    assert caught.value.filename == str(tmp_path / "missing")


async def test_follow_after_waiting_for_the_path(tmp_path):
    missing = tmp_path / "missing"
    async with aiommap.Hub() as hub:
        async with hub.watch(missing) as changes:
            replace(missing, b"good 0")
            with anyio.fail_after(100):
                change = await anext(changes)
        assert (change.kind, change.path) == (aiommap.ChangeKind.CREATED, str(missing))
        async with aiommap.follow(missing, hub=hub) as live:
            assert await content(live.current) == b"good 0"


async def test_follow_directory_is_refused(tmp_path):
    with pytest.raises(aiommap.UnsupportedError, match="it is a directory"):
        await aiommap.follow(tmp_path)


async def returns_false(_):
    return False


@pytest.mark.parametrize(
    ("validate", "kind", "match"),
    [
        (check_good, ValueError, "not good: b'bad'"),
        (returns_false, ValueError, "validate returned False"),
        (lambda _: None, TypeError, "it has to be async"),
    ],
    ids=["raises", "false", "sync"],
)
async def test_follow_bad_first_file_is_an_error(path, validate, kind, match):
    path.write_bytes(b"bad")
    with pytest.raises(kind, match=match):
        await aiommap.follow(path, validate=validate)
    assert mappings(path) == 0


@pytest.mark.parametrize("option", ["load", "validate", "on_error"])
async def test_follow_refuses_no_function(path, option):
    with pytest.raises(TypeError, match="pass a function of one argument"):
        aiommap.follow(path, **{option: "x"})


# Replacements.


@pytest.mark.parametrize("how", REPLACEMENTS)
@pytest.mark.parametrize("prewarm", [True, False], ids=["prewarm", "cold"])
async def test_replacement_is_served(path, how, prewarm):
    async with aiommap.follow(path, prewarm=prewarm) as live:
        for number in range(1, 4):
            how(path, b"good %d" % number)
            await until_serves(live, b"good %d" % number)
        assert live.generation >= 4


async def test_kubernetes_volume_is_followed(tmp_path):
    """Its files are links through ``..data``, which is a link to a folder and is replaced."""

    def mount(number):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "table").write_bytes(b"good %d" % number)
        (tmp_path / "..data_tmp").symlink_to(folder.name)
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        if number:
            shutil.rmtree(tmp_path / f"..{number - 1}")

    mount(0)
    path = tmp_path / "table"
    path.symlink_to("..data/table")
    async with aiommap.follow(path) as live:
        for number in range(1, 6):
            mount(number)
            await until_serves(live, b"good %d" % number)


async def test_new_file_is_resident_when_served(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"0" * 16 * PAGE)

    def replace_cold(letter):
        with path.with_name("incoming").open("wb") as file:
            file.write(letter * 4096 * PAGE)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        path.with_name("incoming").replace(path)

    async with aiommap.follow(path) as live:
        replace_cold(b"1")
        async for snapshot in live:
            if snapshot.size > 16 * PAGE:
                residency = await snapshot.residency()
                assert residency.resident == residency.total == 4096
                break


async def test_same_file_moved_back_is_no_news(path, errors):
    async with aiommap.follow(path, on_error=errors) as live:
        first = live.current
        path.rename(path.with_name("away"))
        await errors.wait(FileNotFoundError)
        path.with_name("away").rename(path)
        replace(path.with_name("other"), b"")  # a change in the same directory that does not matter
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        assert live.generation == 2
        assert await content(first) == b"good 0"


# Iterating.


async def test_iterate_current_and_each_that_follows(path):
    served = []
    async with aiommap.follow(path) as live:
        with anyio.fail_after(100):
            async for snapshot in live:
                served.append(await content(snapshot))
                if len(served) == 4:
                    break
                replace(path, b"good %d" % len(served))
    assert served == [b"good %d" % number for number in range(4)]


async def test_iterate_slowly_skips_to_the_newest(path):
    async with aiommap.follow(path) as live:
        generations = aiter(live)
        assert await content(await anext(generations)) == b"good 0"
        for number in range(1, 5):
            replace(path, b"good %d" % number)
            await until_serves(live, b"good %d" % number)
        assert await content(await anext(generations)) == b"good 4"
        assert generations.skipped == 3
        replace(path, b"good 5")
        with anyio.fail_after(100):
            assert await content(await anext(generations)) == b"good 5"
        assert generations.skipped == 0


@pytest.mark.parametrize("end", ["live", "hub"])
async def test_iterate_ends_with_following(path, end):
    begun = anyio.Event()
    ended = []

    async def iterate(live):
        async for _ in live:
            begun.set()
        ended.append(True)

    async with anyio.create_task_group() as group, aiommap.Hub() as hub:
        live = await aiommap.follow(path, hub=hub)
        group.start_soon(iterate, live)
        group.start_soon(iterate, live)
        await begun.wait()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(100):
            await (live if end == "live" else hub).aclose()
    assert ended == [True, True]
    assert live.closed
    with pytest.raises(anyio.ClosedResourceError, match="not followed any more"):
        _ = live.current
    await live.aclose()


async def test_iterate_cancelled_leaves_others(path):
    async with aiommap.follow(path) as live:
        generations = aiter(live)
        await anext(generations)
        with anyio.move_on_after(0):
            await anext(generations)
        replace(path, b"good 1")
        with anyio.fail_after(100):
            assert await content(await anext(generations)) == b"good 1"


# Ending.


async def test_leave_cancels_a_trial(path):
    gate = Gate()
    async with aiommap.follow(path, validate=gate) as live:
        replace(path, b"good 1")
        await gate.begun.wait()
    assert gate.cancelled == 1
    assert live.generation == 1
    assert mappings(path) == 0


async def test_leave_hub_during_a_trial(path, errors):
    gate = Gate()
    async with aiommap.Hub() as hub:
        live = await aiommap.follow(path, hub=hub, validate=gate, on_error=errors)
        replace(path, b"good 1")
        with anyio.fail_after(100):
            await gate.begun.wait()
    await live.aclose()
    assert (gate.cancelled, errors.found) == (1, [])
    assert mappings(path) == 0


async def test_start_cancelled_leaves_nothing(path):
    async def never(_):
        await anyio.sleep_forever()

    with anyio.move_on_after(0.05):
        await aiommap.follow(path, validate=never)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await aiommap.follow(path)
    await until_mapped(path, 0)


async def test_start_cancelled_while_watching_begins(path, anyio_backend):
    """With asyncio's own cancellation, which comes once; a scope would cancel every wait in it."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio has no cancellation without a scope that was cancelled")
    for turns in range(12):
        task = asyncio.ensure_future(aiommap.follow(path).__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=10)
        assert done, f"hangs if it is cancelled after {turns} turns"
        if not task.cancelled():
            await task.result().aclose()
    await until_mapped(path, 0)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
async def test_closed_hub_follows_nothing(path, used):
    async with aiommap.Hub() as hub:
        if used:
            async with aiommap.follow(path, hub=hub):
                pass
    with anyio.fail_after(100), pytest.raises(anyio.ClosedResourceError, match="the hub is closed"):
        await aiommap.follow(path, hub=hub)


async def test_hub_outlives_many_followed_paths(tmp_path):
    paths = [tmp_path / f"followed-{number}" for number in range(20)]
    for path in paths:
        path.write_bytes(b"good 0")
    async with aiommap.Hub() as hub:
        lives = [await aiommap.follow(path, hub=hub) for path in paths]
        for path in paths:
            replace(path, path.name.encode())
        for live, path in zip(lives, paths, strict=True):
            await until_serves(live, path.name.encode())
        for live in lives:
            await live.aclose()
        async with hub.open(paths[0]) as f:
            assert f.size == len(paths[0].name)


async def test_closed_live_snapshot_makes_no_cycles(path):
    async with aiommap.follow(path) as live:
        reference = weakref.ref(live.current)
    gc.collect()
    assert reference() is None


@pytest.mark.slow
async def test_follow_repeatedly_leaks_nothing(path):
    async def once():
        async with aiommap.follow(path) as live:
            replace(path, b"good 1")
            async for snapshot in live:
                if await content(snapshot) == b"good 1":
                    break
            del snapshot

    async def settled():  # a thread that is not ours closes the kernel's notifier
        return mappings(path) == 0 and len(os.listdir("/proc/self/fd")) <= descriptors

    for _ in range(3):
        await once()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await once()
    await until(settled)
    assert threading.active_count() <= threads + 2


async def test_follow_left_open_at_loop_end(path):
    def run():
        async def main():
            live = await aiommap.follow(path)
            replace(path, b"good 1")
            await until_serves(live, b"good 1")

        asyncio.run(main())

    await anyio.to_thread.run_sync(run)
