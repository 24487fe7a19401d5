"""Subscribers: buffers, callbacks, errors, cancellation, and how subscriptions end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import ChangeKind
from tests.support.fork_server import run_code
from tests.support.watching import expect, fence, fetch, until, write

pytestmark = pytest.mark.anyio


# Subscribers.


async def test_every_subscriber_gets_every_change(path):
    async with aiommap.open(path) as f, f.watch() as one, f.watch() as two:
        os.truncate(path, PAGE)
        assert await fetch(one) == await fetch(two)


async def test_slow_subscriber_gets_merged_changes(path):
    async with aiommap.open(path) as f, f.watch(buffer=2) as slow, f.watch() as quick:
        for i in range(1, 8):
            write(path, i)
            await expect(quick, ChangeKind.MODIFIED)
        first, rest = await fetch(slow), await fetch(slow)
        assert (first.merged, rest.merged) == (0, 5)
        assert rest.old == first.new
        assert rest.new.mtime_ns == os.stat(path).st_mtime_ns
        os.truncate(path, 1)
        await expect(slow, ChangeKind.TRUNCATED)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_callback_gets_each_change(path, asynchronous):
    seen = []

    async def later(change):
        await anyio.sleep(0)
        seen.append(change.kind)

    async with aiommap.open(path) as f:
        subscription = f.on_change(later if asynchronous else lambda c: seen.append(c.kind))
        os.truncate(path, PAGE)
        await until(lambda: seen == [ChangeKind.TRUNCATED])
        path.unlink()
        await until(lambda: seen == [ChangeKind.TRUNCATED, ChangeKind.REMOVED])
        subscription.cancel()
        subscription.cancel()
        async with f.watch() as changes:
            await expect(changes, ChangeKind.REMOVED)  # the file was missing when this one began
            path.write_bytes(b"")
            await expect(changes, ChangeKind.CREATED)
        assert len(seen) == 2


async def test_callback_that_is_none_is_refused(path):
    async with aiommap.open(path) as f:
        for arguments in ((None,), ("later",)):
            with pytest.raises(TypeError, match="pass a function"):
                f.on_change(*arguments)
        with pytest.raises(TypeError, match="asked to call 'later'"):
            f.on_change(print, on_error="later")
        f.on_change(print, on_error=None).cancel()


async def test_callback_cancelled_at_once_is_let_go(path):
    async with aiommap.open(path) as f:
        kind = type(f.watch())
        before = how_many(kind)
        f.on_change(print).cancel()
        await until(lambda: how_many(kind) == before)


def how_many(kind):
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


async def test_write_right_after_on_change(path):
    os.utime(path, (0, 0))
    async with aiommap.open(path) as f:
        seen = []
        f.on_change(seen.append)
        write(path)
        await until(lambda: seen)
        assert (seen[0].kind, seen[0].old.mtime_ns) == (ChangeKind.MODIFIED, 0)


async def test_callback_raising_is_logged(path, caplog):
    def fail(change):
        raise ValueError("the callback's own")

    async with aiommap.open(path) as f, f.watch() as changes:
        seen = []
        f.on_change(fail)
        f.on_change(seen.append)
        async with f.watch():  # when this has begun, the callbacks have, too
            pass
        os.truncate(path, 2 * PAGE)
        await expect(changes, ChangeKind.TRUNCATED)
        os.truncate(path, 1 * PAGE)
        await expect(changes, ChangeKind.TRUNCATED)
        await until(lambda: len(seen) == 2 and len(caplog.records) == 2)
    record = caplog.records[0]
    assert (record.name, record.levelno) == ("aiommap.callbacks", logging.ERROR)
    assert "the callback's own" in record.exc_text
    assert "truncated" in record.getMessage().lower()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_on_error_is_told_instead_of_log(path, caplog, asynchronous):
    told = []

    def fail(change):
        raise ValueError("the callback's own")

    async def later(error, change):
        told.append((str(error), change.kind))

    def at_once(error, change):
        told.append((str(error), change.kind))

    async with aiommap.open(path) as f:
        f.on_change(fail, on_error=later if asynchronous else at_once)
        os.truncate(path, PAGE)
        await until(lambda: told)
    assert told == [("the callback's own", ChangeKind.TRUNCATED)]
    assert not caplog.records


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_callback_cancelled_goes_on(path, anyio_backend, asynchronous):
    if anyio_backend[0] == "trio":
        pytest.skip("trio has no cancellation without a scope that was cancelled")
    seen, told = [], []
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()

    async def later(change):
        seen.append(change)
        await cancelled

    def at_once(change):
        seen.append(change)
        cancelled.result()

    async with aiommap.open(path) as f:
        callback = later if asynchronous else at_once
        f.on_change(callback, on_error=lambda error, _: told.append(str(error)))
        os.truncate(path, PAGE)
        await until(lambda: told)
        os.truncate(path, 2 * PAGE)
        await until(lambda: len(told) == 2)
    assert len(seen) == 2
    assert "cancellation of its own" in told[0]


async def test_on_error_cancelled_is_logged(path, caplog, anyio_backend):
    if anyio_backend[0] == "trio":
        pytest.skip("trio has no cancellation without a scope that was cancelled")

    async def fail(*_):
        raise asyncio.CancelledError

    async with aiommap.open(path) as f:
        f.on_change(fail, on_error=fail)
        os.truncate(path, PAGE)
        await until(lambda: caplog.records)
    assert "cancellation of its own" in caplog.records[0].exc_text


async def test_on_error_raising_is_logged(path, caplog):
    def fail(*_):
        raise ValueError("again")

    async with aiommap.open(path) as f:
        f.on_change(fail, on_error=fail)
        os.truncate(path, PAGE)
        await until(lambda: caplog.records)
    assert "again" in caplog.records[0].exc_text


async def test_callback_hanging_holds_up_nobody(path):
    entered = anyio.Event()

    async def hang(change):
        entered.set()
        await anyio.sleep(3600)

    with anyio.fail_after(100):
        async with aiommap.open(path) as f, f.watch() as changes:
            f.on_change(hang)
            os.truncate(path, PAGE)
            await entered.wait()
            await fetch(changes)
            os.truncate(path, 1)
            await fetch(changes)


async def test_impossible_arguments_are_refused(path):
    async with aiommap.open(path) as f:
        with pytest.raises(ValueError, match="buffer is 0"):
            f.watch(buffer=0)
        with pytest.raises(ValueError, match="poll_interval is -1"):
            f.watch(poll_interval=-1)
        with pytest.raises(TypeError, match="asked to call 3"):
            f.on_change(3)
        with pytest.raises(RuntimeError, match="use async with"):
            await anext(f.watch())
        async with f.watch() as changes:
            with pytest.raises(RuntimeError, match="entered once"):
                await changes.__aenter__()
    with pytest.raises(anyio.ClosedResourceError):
        f.watch()
    with pytest.raises(anyio.ClosedResourceError):
        f.on_change(print)


# Ends.


async def test_cancel_ends_the_subscription(path):
    async with aiommap.open(path) as f:
        started = anyio.Event()

        async def listen():
            async with f.watch() as changes:
                started.set()
                async for _ in changes:
                    pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await started.wait()
            watcher = f._hub.watcher
            assert watcher._paths
            tasks.cancel_scope.cancel()
        assert not watcher._paths
        assert not watcher._threads


@pytest.mark.parametrize("what", ["file", "hub"])
async def test_close_ends_iterators_and_callbacks(path, what):
    ended = []
    async with aiommap.Hub() as hub:
        f = await hub.open(path)

        async def listen():
            async with f.watch() as changes:
                started.set()
                ended.append([change.kind async for change in changes])

        async with anyio.create_task_group() as tasks:
            started = anyio.Event()
            tasks.start_soon(listen)
            await started.wait()
            f.on_change(print)
            with anyio.fail_after(100):
                await (f if what == "file" else hub).aclose()
        assert ended == [[]]


async def test_second_waiting_task_is_refused(path):
    first = []
    async with aiommap.open(path) as f, f.watch() as changes:

        async def iterate():
            async for change in changes:
                first.append(change.kind)  # noqa: PERF401  read while the loop runs

        with anyio.fail_after(100):
            async with anyio.create_task_group() as group:
                group.start_soon(iterate)
                await until(lambda: changes._arrived is not None)
                with pytest.raises(anyio.BusyResourceError, match="call watch"):
                    await anext(changes)
                os.truncate(path, PAGE)
                await until(lambda: first)
                await f.aclose()
    assert first == [ChangeKind.TRUNCATED]


async def test_cancelled_wait_leaves_changes(path):
    async with aiommap.open(path) as f, f.watch() as changes:
        with anyio.move_on_after(0.01):
            await anext(changes)
        os.truncate(path, PAGE)
        await expect(changes, ChangeKind.TRUNCATED)


async def test_changes_before_the_end_are_handed_out(path):
    async with aiommap.open(path) as f, f.watch() as changes, f.watch() as other:
        os.truncate(path, PAGE)
        await fetch(other)
        await f.aclose()
        assert [change.kind async for change in changes] == [ChangeKind.TRUNCATED]
        assert [change.kind async for change in other] == []


async def test_left_subscription_drops_the_rest(path):
    async with aiommap.open(path) as f, f.watch() as changes, f.watch() as other:
        os.truncate(path, PAGE)
        await fetch(other)
        changes.close()
        assert [change async for change in changes] == []


async def test_cancel_while_watching_begins(path):
    async with aiommap.open(path) as f:
        for turns in range(6):
            with anyio.CancelScope() as scope:
                scope.cancel()
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                async with f.watch():
                    pass
        await until(lambda: not f._hub.watcher._paths)
        assert not f._hub.watcher._beginning
        async with f.watch() as changes:
            await fence(path, changes)


def descriptors():
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # a thread that ends may close one meanwhile
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(found)


def watching_threads():
    """Count the threads of the native notifier."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):
            names.append(Path(f"/proc/self/task/{task}/comm").read_text())
    return sum("notify" in name for name in names)


@pytest.mark.slow
async def test_hub_cycles_leak_nothing(path):
    async def cycle():
        async with aiommap.Hub() as hub, hub.open(path) as f, f.watch() as changes:
            os.truncate(path, 16 * PAGE - 1)
            await fetch(changes)
            os.truncate(path, 16 * PAGE)

    await cycle()
    await until(lambda: watching_threads() == 0)
    gc.collect()
    before, running = descriptors(), threading.active_count()
    for _ in range(200):
        await cycle()
    try:
        await until(lambda: watching_threads() == 0 and len(descriptors()) <= len(before))
    except TimeoutError:
        pytest.fail(f"{watching_threads()} threads, {descriptors()} where there were {before}")
    assert threading.active_count() <= running + 2


async def test_hub_has_one_watcher_thread(tmp_path):
    paths = [tmp_path / str(i % 20) / str(i) for i in range(400)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    await until(lambda: not watching_threads())  # threads of earlier tests may still be ending
    async with aiommap.Hub() as hub:
        files = [await hub.open(path) for path in paths]
        before = threading.active_count()
        async with anyio.create_task_group() as tasks:
            ready = [anyio.Event() for _ in files]
            seen = []

            async def listen(f, event):
                async with f.watch() as changes:
                    event.set()
                    seen.append((await fetch(changes)).path)

            for f, event in zip(files, ready, strict=True):
                tasks.start_soon(listen, f, event)
            for event in ready:
                await event.wait()
            # Notifiers that watched fewer folders may still be ending.
            await until(lambda: watching_threads() == 1)
            await until(lambda: descriptors().count("anon_inode:inotify") == 1)
            assert threading.active_count() <= before + 3
            for path in paths:
                write(path, 0, b"y")
        assert sorted(seen) == sorted(map(str, paths))


async def test_fork_child_leaves_the_watcher_alone(path):
    async with aiommap.open(path) as f, f.watch() as changes:
        child = os.fork()
        if not child:
            status = 1
            try:
                with pytest.raises(aiommap.ForkedError):
                    f.watch()
                changes.close()
                status = 0
            finally:
                os._exit(status)
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        os.truncate(path, PAGE)
        await expect(changes, ChangeKind.TRUNCATED)


def run_script(code, *arguments):
    done = run_code(code, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_loop_ends_while_watching(path):
    code = """
import asyncio, sys, aiommap
async def main():
    f = await aiommap.open(sys.argv[1])
    f.on_change(print)
    async with f.watch() as changes:
        asyncio.get_running_loop().call_later(0.05, task.cancel)
        await anext(changes)
async def outer():
    global task
    task = asyncio.ensure_future(main())
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled")
import warnings
warnings.simplefilter("ignore", ResourceWarning)
asyncio.run(outer())
"""
    assert run_script(code, path) == "cancelled\n"


def test_watchfiles_is_imported_when_watching(path):
    code = """
import asyncio, sys, aiommap
async def main():
    async with aiommap.open(sys.argv[1]) as f:
        await f.read(0, 1)
        assert "watchfiles" not in sys.modules
        async with f.watch():
            assert "watchfiles" in sys.modules
asyncio.run(main())
"""
    run_script(code, path)


@pytest.mark.parametrize("closed", [False, True], ids=["left-open", "just-closed"])
def test_interpreter_ends_while_watching(path, closed):
    """The interpreter would abort if the thread were still in native code when it ends."""
    code = """
import asyncio, sys, warnings, aiommap
warnings.simplefilter("ignore", ResourceWarning)
async def main():
    f = await aiommap.open(sys.argv[1])
    changes = f.watch()
    await changes.__aenter__()
    if sys.argv[2] == "True":
        await f.aclose()
    return f, changes
kept = asyncio.run(main())
"""
    for _ in range(5):
        run_script(code, path, closed)
