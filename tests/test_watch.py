"""What a mapped file tells of changes by others, and that it keeps silent about our own."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import ChangeKind, FlushPolicy

pytestmark = pytest.mark.anyio


async def fetch(changes):
    with anyio.fail_after(20):
        return await anext(changes)


async def expect(changes, *kinds):
    """Fetch changes, and check that they are of these kinds."""
    found = [await fetch(changes) for _ in kinds]
    assert [change.kind for change in found] == list(kinds)
    return found[-1]


async def fence(path, changes):
    """Show that all that was found has been fetched: the next change is the one made here."""
    size = os.stat(path).st_size + 1
    os.truncate(path, size)
    change = await expect(changes, ChangeKind.GROWN)
    assert (change.new.size, change.merged) == (size, 0)


async def until(condition):
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.005)


def write(path, offset=0, data=b"by another"):
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, offset)
    os.close(fd)


def store_from_another_process(path):
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), 0) as m: m[0] = 1 + m[0] % 200"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def replace_by_rename(path):
    other = path.with_name("other")
    other.write_bytes(b"new")
    os.replace(other, path)


BASIC = {
    "modified": (write, ChangeKind.MODIFIED),
    "metadata": (lambda path: path.chmod(0o600), ChangeKind.METADATA),
    "grown": (lambda path: os.truncate(path, 17 * PAGE), ChangeKind.GROWN),
    "truncated": (lambda path: os.truncate(path, PAGE), ChangeKind.TRUNCATED),
    "replaced": (replace_by_rename, ChangeKind.REPLACED),
    "removed": (os.unlink, ChangeKind.REMOVED),
}


@pytest.mark.parametrize(("act", "kind"), BASIC.values(), ids=BASIC)
async def test_a_change_is_reported_with_the_states_before_and_after(path, act, kind):
    before = os.stat(path)
    async with aiommap.open(path) as f, f.watch() as changes:
        act(path)
        change = await expect(changes, kind)
        assert (change.path, change.merged, change.source) == (str(path), 0, "event")
        assert (change.old.size, change.old.inode) == (before.st_size, before.st_ino)
        after = os.stat(path) if path.exists() else None
        assert (change.new and change.new.mtime_ns) == (after and after.st_mtime_ns)
        assert f.orphaned == (kind in (ChangeKind.REPLACED, ChangeKind.REMOVED))


async def test_a_removed_file_that_is_created_again_is_reported_and_watched_on(path):
    async with aiommap.open(path) as f, f.watch() as changes:
        path.unlink()
        await expect(changes, ChangeKind.REMOVED)
        path.write_bytes(b"")
        change = await expect(changes, ChangeKind.CREATED)
        assert change.old is None
        assert f.orphaned
        os.truncate(path, 10)
        await expect(changes, ChangeKind.GROWN)
        replace_by_rename(path)
        await expect(changes, ChangeKind.REPLACED)
        write(path, 0, b"xyz")
        await expect(changes, ChangeKind.MODIFIED)


async def test_an_orphan_whose_file_comes_back_is_none_any_more(path):
    async with aiommap.open(path) as f, f.watch() as changes:
        path.rename(path.with_name("away"))
        await expect(changes, ChangeKind.REMOVED)
        assert f.orphaned
        path.with_name("away").rename(path)
        await expect(changes, ChangeKind.CREATED)
        assert not f.orphaned


async def test_what_happened_since_the_file_was_opened_comes_first(path):
    async with aiommap.open(path) as f:
        replace_by_rename(path)
        async with f.watch() as changes:
            change = await expect(changes, ChangeKind.REPLACED)
            assert (change.source, change.old.size) == ("start", 16 * PAGE)
            assert f.orphaned


async def test_another_size_than_what_is_mapped_comes_first(path):
    async with aiommap.open(path) as f:
        os.truncate(path, PAGE)
        async with f.watch() as changes:
            change = await expect(changes, ChangeKind.TRUNCATED)
            assert (change.old.size, change.new.size) == (16 * PAGE, PAGE)


async def test_stores_through_a_mapping_of_another_process_are_found_by_looking(path):
    async with aiommap.open(path) as f, f.watch(poll_interval=0.02) as changes:
        for _ in range(3):
            await anyio.to_thread.run_sync(store_from_another_process, path)
            change = await expect(changes, ChangeKind.MODIFIED)
            assert change.source == "poll"
            await anyio.to_thread.run_sync(os.sync)  # until then a second store moves no time


async def test_everything_is_looked_at_also_by_default(path):
    async with aiommap.open(path) as f, f.watch() as changes:
        await anyio.to_thread.run_sync(store_from_another_process, path)
        assert (await expect(changes, ChangeKind.MODIFIED)).source == "poll"


# Our own changes.

POLICIES = {
    "manual": FlushPolicy.manual(),
    "always": FlushPolicy.always(),
    "interval": FlushPolicy.every_interval(0.01),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_own_writes_and_flushes_are_not_reported(path, policy):
    async with (
        aiommap.open(path, "r+", flush=policy) as f,
        f.watch(poll_interval=0.002) as changes,
    ):
        for i in range(30):
            await f.write(i, b"own")
            if i % 3 == 0:
                await f.write(0, bytes(2 << 12))
            if i % 5 == 0:
                await f.flush()
            await anyio.sleep(0.003)
        await fence(path, changes)


async def test_large_own_writes_are_not_reported(tmp_path):
    path = tmp_path / "large"
    async with (
        aiommap.open(path, "w+", size=8 << 20) as f,
        f.watch(poll_interval=0.001) as changes,
    ):
        for _ in range(5):
            await f.write(0, bytes(8 << 20))
            await f.flush()
        await fence(path, changes)


async def test_own_resizes_and_holes_are_not_reported(path):
    async with (
        aiommap.open(path, "r+", capacity=64 * PAGE) as f,
        f.watch(poll_interval=0.001) as changes,
    ):
        for pages in (20, 3, 40, 100, 1):
            await f.resize(pages * PAGE)
            await anyio.sleep(0.003)
        await f.punch_hole(0, PAGE)
        await f.prewarm(write=True)
        await fence(path, changes)


async def test_stores_through_own_memory_are_not_reported(path):
    async with aiommap.open(path, "r+") as f, f.watch(poll_interval=0.002) as changes:
        with f.view(0, PAGE) as view:
            memory = view.memory
            for i in range(10):
                memory[i] = 1
                await f.flush()
                await anyio.sleep(0.004)
            await fence(path, changes)
            del memory


async def test_files_of_one_hub_at_one_path_do_not_report_each_other(path):
    async with (
        aiommap.Hub() as hub,
        hub.open(path, "r+") as f,
        hub.open(path, "r+") as g,
        g.watch(poll_interval=0.002) as changes,
    ):
        await f.write(0, b"f to g")
        await f.flush()
        assert await g.read(0, 6) == b"f to g"
        await f.resize(20 * PAGE)
        await anyio.sleep(0.01)
        await fence(path, changes)


async def test_a_file_reached_by_another_name_is_still_our_own(path):
    link = path.with_name("link")
    link.symlink_to(path)
    async with (
        aiommap.Hub() as hub,
        hub.open(path, "r+") as f,
        hub.open(link) as g,
        g.watch(poll_interval=0.002) as changes,
    ):
        await f.write(0, bytes(2 * PAGE))
        await f.flush()
        await anyio.sleep(0.01)
        await fence(path, changes)


async def test_hubs_of_one_process_report_each_other_once(path):
    async with (
        aiommap.open(path, "r+") as f,
        aiommap.open(path, "r+") as g,
        f.watch() as ours,
        g.watch() as theirs,
    ):
        await f.resize(20 * PAGE)
        change = await expect(theirs, ChangeKind.GROWN)
        assert change.new.size == 20 * PAGE
        await fence(path, theirs)
        await expect(ours, ChangeKind.GROWN)


async def test_writes_by_others_are_reported_while_we_store_ourselves(path):
    """Mapped stores of ours explain no event of the kernel."""
    async with aiommap.open(path, "r+") as f, f.watch(poll_interval=10) as changes:
        await f.write(0, b"own")
        await anyio.sleep(0.3)
        for i in range(5):
            await f.write(i, b"own")
            write(path, PAGE)
            await expect(changes, ChangeKind.MODIFIED)


@pytest.mark.parametrize("pages", [5, 16], ids=["another-size", "the-size-before-ours"])
async def test_a_truncation_by_others_is_reported_while_we_write_and_resize(path, pages):
    async with (
        aiommap.open(path, "r+", flush=FlushPolicy.never()) as f,
        f.watch(poll_interval=0.005) as changes,
    ):
        await f.resize(20 * PAGE)
        await f.write(0, bytes(PAGE))
        os.truncate(path, pages * PAGE)
        change = await expect(changes, ChangeKind.TRUNCATED)
        assert (change.old.size, change.new.size) == (20 * PAGE, pages * PAGE)


# What to do about it.


async def test_reads_beyond_the_new_end_say_both_sizes(path):
    async with aiommap.open(path) as f, f.watch() as changes:
        os.truncate(path, 2 * PAGE)
        await expect(changes, ChangeKind.TRUNCATED)
        assert f.size == 16 * PAGE
        with pytest.raises(aiommap.MappingFaultError, match="shrank to") as caught:
            await f.read(0, 16 * PAGE)
        assert (caught.value.size, caught.value.offset) == (2 * PAGE, 2 * PAGE)
        await f.refresh()
        with pytest.raises(aiommap.OutOfBoundsError, match="only") as bounds:
            await f.read(2 * PAGE, PAGE)
        assert (bounds.value.offset, bounds.value.limit) == (2 * PAGE, 2 * PAGE)


async def test_a_grown_file_is_refreshed_in_place(path):
    async with aiommap.open(path, capacity=32 * PAGE) as f, f.watch() as changes:
        address = f._core.mapping.address
        with path.open("ab") as file:
            file.write(b"tail")
        change = await expect(changes, ChangeKind.GROWN)
        assert (f.size, change.new.size) == (16 * PAGE, 16 * PAGE + 4)
        await f.refresh()
        assert f.size == 16 * PAGE + 4
        assert await f.read(16 * PAGE, 4) == b"tail"
        assert f._core.mapping.address == address
        await fence(path, changes)


@pytest.mark.parametrize("mode", ["r", "r+"])
async def test_beyond_its_capacity_a_grown_file_is_mapped_anew(path, mode):
    async with aiommap.open(path, mode) as f:
        with f.view(0, PAGE) as view:
            memory = view.memory
            os.truncate(path, 40 * PAGE)
            write(path, 39 * PAGE, b"far")
            await f.refresh()
            assert f.size == 40 * PAGE
            assert await f.read(39 * PAGE, 3) == b"far"
            assert bytes(memory[:2]) == b"AA"
            del memory


async def test_growth_that_was_refreshed_before_it_was_seen_is_still_reported(path):
    async with aiommap.open(path, "r+", capacity=32 * PAGE) as f, f.watch() as changes:
        os.truncate(path, 20 * PAGE)
        await f.refresh()
        await expect(changes, ChangeKind.GROWN)


async def test_refresh_does_not_hide_that_unflushed_stores_were_cut_off(path):
    f = await aiommap.open(path, "r+")
    await f.write(10 * PAGE, b"lost")
    os.truncate(path, PAGE)
    with pytest.raises(aiommap.FlushError, match="truncated to"):
        await f.refresh()
    assert f.size == 16 * PAGE
    with pytest.raises(aiommap.FlushError, match="truncated to"):
        await f.aclose()


async def test_views_of_what_was_cut_off_read_zeros_after_a_refresh(path):
    async with aiommap.open(path) as f:
        with f.view() as view:
            memory = view.memory
            os.truncate(path, PAGE)
            await f.refresh()
            assert bytes(memory[8 * PAGE : 8 * PAGE + 2]) == b"\0\0"
            os.truncate(path, 16 * PAGE)
            await f.refresh()
            assert f.size == 16 * PAGE
            del memory


async def test_a_private_file_is_not_refreshed(path):
    async with aiommap.open(path, "c") as f:
        with pytest.raises(aiommap.AccessModeError, match="fixed size"):
            await f.refresh()


# Subscribers.


async def test_every_subscriber_gets_every_change(path):
    async with aiommap.open(path) as f, f.watch() as one, f.watch() as two:
        os.truncate(path, PAGE)
        assert await fetch(one) == await fetch(two)


async def test_a_slow_subscriber_finds_changes_merged_and_delays_nobody(path):
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
async def test_a_callback_is_called_with_each_change(path, asynchronous):
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
            await expect(changes, ChangeKind.REMOVED)  # as it was when this one began
            path.write_bytes(b"")
            await expect(changes, ChangeKind.CREATED)
        assert len(seen) == 2


async def test_a_write_right_after_on_change_returned_is_reported(path):
    os.utime(path, (0, 0))
    async with aiommap.open(path) as f:
        seen = []
        f.on_change(seen.append)
        write(path)
        await until(lambda: seen)
        assert (seen[0].kind, seen[0].old.mtime_ns) == (ChangeKind.MODIFIED, 0)


async def test_a_raising_callback_is_logged_and_goes_on(path, caplog):
    def fail(change):
        raise ValueError("the callback's own")

    async with aiommap.open(path) as f, f.watch() as changes:
        seen = []
        f.on_change(fail)
        f.on_change(seen.append)
        async with f.watch():  # by now all have begun
            pass
        os.truncate(path, 2 * PAGE)
        await expect(changes, ChangeKind.TRUNCATED)
        os.truncate(path, 1 * PAGE)
        await expect(changes, ChangeKind.TRUNCATED)
        await until(lambda: len(seen) == 2 and len(caplog.records) == 2)
    record = caplog.records[0]
    assert (record.name, record.levelno) == ("aiommap", logging.ERROR)
    assert "the callback's own" in record.exc_text
    assert "truncated" in record.getMessage().lower()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_on_error_is_told_instead_of_the_log(path, caplog, asynchronous):
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


async def test_an_on_error_that_raises_is_logged_too(path, caplog):
    def fail(*_):
        raise ValueError("again")

    async with aiommap.open(path) as f:
        f.on_change(fail, on_error=fail)
        os.truncate(path, PAGE)
        await until(lambda: caplog.records)
    assert "again" in caplog.records[0].exc_text


async def test_a_callback_that_hangs_holds_up_neither_others_nor_closing(path):
    entered = anyio.Event()

    async def hang(change):
        entered.set()
        await anyio.sleep(3600)

    with anyio.fail_after(20):
        async with aiommap.open(path) as f, f.watch() as changes:
            f.on_change(hang)
            os.truncate(path, PAGE)
            await entered.wait()
            await fetch(changes)
            os.truncate(path, 1)
            await fetch(changes)


async def test_arguments_that_cannot_be_meant_are_refused(path):
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


async def test_cancelling_the_task_ends_its_subscription(path):
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
        assert not watcher._running


@pytest.mark.parametrize("what", ["file", "hub"])
async def test_closing_ends_iterators_and_callbacks(path, what):
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
            with anyio.fail_after(20):
                await (f if what == "file" else hub).aclose()
        assert ended == [[]]


async def test_what_was_found_before_the_end_is_handed_out(path):
    async with aiommap.open(path) as f, f.watch() as changes, f.watch() as other:
        os.truncate(path, PAGE)
        await fetch(other)
        await f.aclose()
        assert [change.kind async for change in changes] == [ChangeKind.TRUNCATED]
        assert [change.kind async for change in other] == []


async def test_a_subscription_that_is_left_drops_what_it_did_not_fetch(path):
    async with aiommap.open(path) as f, f.watch() as changes, f.watch() as other:
        os.truncate(path, PAGE)
        await fetch(other)
        changes.close()
        assert [change async for change in changes] == []


async def test_cancelling_while_watching_begins_leaves_nothing_behind(path):
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
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in listdir())


def listdir():
    found = os.listdir("/proc/self/fd")
    return [fd for fd in found if os.path.islink(f"/proc/self/fd/{fd}")]


def watching_threads():
    """How many threads of the native notifier there are, and of ours that look."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):
            names.append(Path(f"/proc/self/task/{task}/comm").read_text())
    return sum("notify" in name for name in names)


@pytest.mark.slow
async def test_opening_and_closing_hubs_leaks_no_thread_and_no_descriptor(path):
    async def cycle():
        async with aiommap.Hub() as hub, hub.open(path) as f, f.watch() as changes:
            os.truncate(path, 16 * PAGE - 1)
            await fetch(changes)
            os.truncate(path, 16 * PAGE)

    await cycle()
    await until(lambda: watching_threads() == 0)
    gc.collect()
    before, running = len(listdir()), threading.active_count()
    for _ in range(200):
        await cycle()
    await until(lambda: watching_threads() == 0 and len(listdir()) == before)
    assert threading.active_count() <= running + 2


async def test_a_hub_that_watches_has_one_thread_however_many_files(tmp_path):
    paths = [tmp_path / str(i % 20) / str(i) for i in range(400)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
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
            assert watching_threads() == 1
            instances = [link for link in descriptors() if link == "anon_inode:inotify"]
            assert len(instances) == 1
            assert threading.active_count() <= before + 3
            for path in paths:
                write(path, 0, b"y")
        assert sorted(seen) == sorted(map(str, paths))


async def test_a_forked_child_leaves_the_watcher_alone(path):
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
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_a_loop_that_ends_while_something_is_watched_ends_cleanly(path):
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


def test_watchfiles_is_imported_only_when_something_is_watched(path):
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
