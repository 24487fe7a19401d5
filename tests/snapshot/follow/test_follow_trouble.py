"""Followed paths and bad files: those that are refused, changed in place or overtaken."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections import Counter

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.following import (
    Gate,
    check_good,
    content,
    replace,
    replace_off_loop,
    until,
    until_mapped,
    until_serves,
)
from tests.support.internals import MAX_OVERTAKEN, core_of
from tests.support.internals import opening as _opening

pytestmark = pytest.mark.anyio


# Bad files.


async def test_bad_file_is_reported_old_one_serves(path, errors):
    async with aiommap.follow(path, validate=check_good, on_error=errors) as live:
        first = live.current
        replace(path, b"bad")
        error = await errors.wait(ValueError)
        assert str(error) == "not good: b'bad'"
        assert live.current is first
        assert await content(first) == b"good 0"
        await until_mapped(path, 1)
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        assert live.generation == 2


async def test_validation_false_refuses(path, errors):
    async def is_good(snapshot):
        return (await content(snapshot)).startswith(b"good")

    async with aiommap.follow(path, validate=is_good, on_error=errors) as live:
        replace(path, b"bad")
        await errors.wait(ValueError, "validate returned False")
        replace(path, b"good 1")
        await until_serves(live, b"good 1")


async def test_validation_cancelled_refuses(path, errors, anyio_backend):
    """asyncio raises this in a task that waits for a future that another one has cancelled."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio has no cancellation without a scope that was cancelled")

    async def validate(snapshot):
        if await content(snapshot) == b"bad":
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    async with aiommap.follow(path, validate=validate, on_error=errors) as live:
        replace(path, b"bad")
        await errors.wait(RuntimeError, "ended by a cancellation of its own")
        assert await content(live.current) == b"good 0"
        replace(path, b"good 1")
        await until_serves(live, b"good 1")


async def test_empty_file_is_tried(path, errors):
    tried = []

    async def validate(snapshot):
        tried.append(snapshot.size)
        await anyio.sleep(0.05)  # until the watcher has reported it

    async with aiommap.follow(path, validate=validate, on_error=errors) as live:
        replace(path, b"")
        await until_serves(live, b"")
        assert (tried, errors.found) == ([6, 0], [])


def make_folder(path):
    path.unlink()
    path.mkdir()


def make_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.with_name("pipe").rename(path)


def dangle(path):
    path.with_name("dangling").symlink_to("nowhere")
    path.with_name("dangling").rename(path)


def loop(path):
    path.with_name("loop").symlink_to(path.name)
    path.with_name("loop").rename(path)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (os.unlink, FileNotFoundError),
        (make_folder, aiommap.UnsupportedError),
        (make_pipe, aiommap.UnsupportedError),
        (dangle, FileNotFoundError),
        (loop, OSError),
    ],
    ids=["unlinked", "folder", "pipe", "dangling-link", "loop"],
)
async def test_unopenable_file_is_reported(path, errors, spoil, kind):
    async with aiommap.follow(path, on_error=errors) as live:
        spoil(path)
        await errors.wait(kind)
        assert (await content(live.current), live.generation) == (b"good 0", 1)
        if path.is_dir():
            path.rmdir()
        replace(path, b"good 1")
        await until_serves(live, b"good 1")


async def test_truncated_during_validation(path, errors):
    gate = Gate()
    async with aiommap.follow(path, validate=gate, on_error=errors, prewarm=False) as live:
        replace(path, b"good 1" + bytes(PAGE))
        with anyio.fail_after(100):
            await gate.begun.wait()
        os.truncate(path, 6)
        gate.opened.set()
        await until_serves(live, b"good 1")  # tried again as it is now; never served as it was
        assert live.generation == 2


async def test_truncated_at_end_of_validation(path):
    """The follower finds it before the watcher can report it."""

    async def validate(snapshot):
        if snapshot.size > 6:
            await anyio.to_thread.run_sync(os.truncate, path, 6)

    async with aiommap.follow(path, validate=validate, prewarm=False) as live:
        replace(path, b"good 1" + bytes(PAGE))
        await until_serves(live, b"good 1")  # it can be read without an error
        assert live.generation == 2


async def test_error_is_logged_by_default(path, caplog):
    async with aiommap.follow(path, validate=check_good) as live:
        replace(path, b"bad")

        async def logged():
            return "not good: b'bad'" in caplog.text

        await until(logged)
        assert str(path) in caplog.text
        assert "check_good" in caplog.text  # the traceback
        assert await content(live.current) == b"good 0"


async def test_on_error_may_be_async_and_may_fail(path, caplog):
    told = []

    async def on_error(error):
        told.append(str(error))
        raise RuntimeError("on_error is bad, too")

    async with aiommap.follow(path, validate=check_good, on_error=on_error) as live:
        for number in (1, 2):
            replace(path, b"bad %d" % number)

            async def told_of(text=f"not good: b'bad {number}'"):
                return text in told

            await until(told_of)
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
    assert "on_error is bad, too" in caplog.text


# Changes in place.


async def test_change_in_place_is_tried_again(path, errors):
    os.utime(path, ns=(0, 0))
    async with aiommap.follow(path, validate=check_good, on_error=errors) as live:
        first = live.current
        with path.open("r+b") as file:
            file.write(b"good 1 and more")
        error = await errors.wait(aiommap.StaleSnapshotError)
        assert (error.path, error.opened_size, error.size) == (str(path), 6, 15)
        await until_serves(live, b"good 1 and more")
        assert live.current is not first
        assert (
            await content(first) == b"good 1"
        )  # it is the same file, so its new bytes show here, too
        with pytest.raises(aiommap.StaleSnapshotError):
            await first.verify()


async def test_change_in_place_for_worse_is_reported(path, errors):
    os.utime(path, ns=(0, 0))
    async with aiommap.follow(path, validate=check_good, on_error=errors) as live:
        with path.open("r+b") as file:
            file.write(b"bad! 1")
        await errors.wait(aiommap.StaleSnapshotError)
        await errors.wait(ValueError, "not good")
        assert live.generation == 1


def overwrite_and_set_back(path, content):
    """Do what ``cp -p`` does with a file of equal size from a build that sets all times alike."""
    with path.open("r+b", buffering=0) as file:
        file.write(content)
        os.utime(file.fileno(), ns=(0, 0))


async def test_overwrite_with_same_size_and_mtime(path, errors):
    os.utime(path, ns=(0, 0))
    async with aiommap.follow(path, validate=check_good, on_error=errors) as live:
        first = live.current
        overwrite_and_set_back(path, b"bad! 1")
        await errors.wait(aiommap.StaleSnapshotError)
        await errors.wait(ValueError, "not good")
        assert live.generation == 1
        with pytest.raises(aiommap.StaleSnapshotError):
            await first.verify()
        overwrite_and_set_back(path, b"good 2")
        with anyio.fail_after(100):
            while live.generation < 2:
                await anyio.sleep(0.001)
        assert await content(live.current) == b"good 2"


@pytest.mark.parametrize("between", ["modified", "truncated"])
async def test_times_set_back_after_a_change_that_was_seen(path, errors, between):
    os.utime(path, ns=(0, 0))
    async with aiommap.follow(path, validate=check_good, on_error=errors) as live:
        if between == "modified":
            with path.open("r+b") as file:
                file.write(b"bad! 1")
        else:
            os.truncate(path, 1)
        await errors.wait(aiommap.StaleSnapshotError)
        await errors.wait(ValueError, "not good")
        overwrite_and_set_back(path, b"good 2")
        with anyio.fail_after(100):
            while live.generation < 2:
                await anyio.sleep(0.001)
        assert await content(live.current) == b"good 2"


async def test_served_file_moved_and_linked(path, errors):
    async with aiommap.follow(path, validate=check_good, on_error=errors) as live:
        first = live.current
        path.with_name("linked").hardlink_to(path)
        path.rename(path.with_name("moved"))
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        await first.verify()
        assert live.generation == 2
        assert not errors.found


async def test_file_written_slowly_is_served_whole(path, errors):
    async with aiommap.follow(path, on_error=errors) as live:
        path.unlink()
        with path.open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(b"good" * 64)
                await anyio.sleep(0.002)
        await until_serves(live, b"good" * 64 * 20)


async def test_change_of_permissions_is_none(path):
    async with aiommap.follow(path) as live:
        path.chmod(0o600)
        replace(path.with_name("other"), b"")
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        assert live.generation == 2


# Overtaken trials.


async def test_overtaken_trial_is_cancelled(path, errors):
    gate = Gate()
    async with aiommap.follow(path, validate=gate, on_error=errors) as live:
        replace(path, b"good 1")
        with anyio.fail_after(100):
            await gate.begun.wait()
        replace(path, b"good 2")

        async def cancelled():
            return gate.cancelled == 1 and gate.calls == 3

        await until(cancelled)
        gate.opened.set()
        await until_serves(live, b"good 2")
        assert (live.generation, gate.cancelled, errors.found) == (2, 1, [])
        await until_mapped(path, 1)


async def test_file_taken_back_while_opened(path, monkeypatch):
    """A roll-back: a change counts even if it is reported before the opened file is known."""
    old, new = path.with_name("old"), path.with_name("new")
    path.rename(old)
    new.write_bytes(b"good 1")
    opened, answered = threading.Event(), threading.Event()
    map_file = _opening._map

    def map_slowly(fd, found, options):
        made = map_file(fd, found, options)
        if found.st_ino == new.stat().st_ino:
            opened.set()
            assert answered.wait(100)
        return made

    def turn_to(target):
        link = path.with_name("link")
        link.symlink_to(target)
        link.replace(path)

    turn_to(old)
    monkeypatch.setattr(_opening, "_map", map_slowly)
    async with (
        aiommap.Hub() as hub,
        aiommap.follow(path, hub=hub) as live,
        hub.watch(path) as changes,
    ):
        first = live.current
        await anyio.to_thread.run_sync(turn_to, new)
        assert await anyio.to_thread.run_sync(opened.wait, 20)
        await anyio.to_thread.run_sync(turn_to, old)
        async for change in changes:
            if change.new is not None and change.new.inode == core_of(first).identity.inode:
                break
        await anyio.lowlevel.checkpoint()  # the follower hears of it in the same turn of the loop
        answered.set()
        await until_mapped(new, 0)
        await until_mapped(old, 1)
        assert live.current is first


async def test_overtaken_failure_is_not_reported(path, errors):
    """For example, that of a validation that turns its cancellation into an error."""
    calls = 0

    async def validate(snapshot):
        nonlocal calls
        calls += 1
        if await content(snapshot) == b"good 1":
            await replace_off_loop(path, b"good 2")
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError("overtaken")

    async with aiommap.follow(path, validate=validate, on_error=errors) as live:
        replace(path, b"good 1")
        await until_serves(live, b"good 2")
        assert (calls, errors.found) == (3, [])


async def test_replaced_faster_than_validated(path):
    """Each validation puts the next file into place before it ends."""
    number = 0
    done = anyio.Event()

    async def validate(snapshot):
        nonlocal number
        if await content(snapshot) == b"good 0" or done.is_set():
            return
        number += 1
        await replace_off_loop(path, b"good %d" % (number + 1))
        with anyio.move_on_after(0.2):  # it may be cancelled here, or end
            await anyio.sleep_forever()

    async with aiommap.follow(path, validate=validate) as live:
        replace(path, b"good 1")
        served = []
        with anyio.fail_after(100):
            async for snapshot in live:
                served.append(int((await content(snapshot)).split()[1]))
                if len(served) == 3:
                    done.set()
                    break
        assert served[0] == 0
        assert [b - a for a, b in itertools.pairwise(served)] == [MAX_OVERTAKEN + 1] * 2
        await until_serves(live, b"good %d" % (number + 1))


async def test_replaced_in_quick_succession(path):
    tried = []

    async def validate(snapshot):
        tried.append(await content(snapshot))

    async with aiommap.follow(path, validate=validate) as live:
        for number in range(1, 301):
            replace(path, b"good %d" % number)
        await until_serves(live, b"good 300")
    assert max(Counter(tried).values()) == 1
    assert len(tried) < 300
