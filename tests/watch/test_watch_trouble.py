"""Watching when the kernel sends no events, too many, or misleading ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

import aiommap
from aiommap import ChangeKind
from tests.support.fork_server import run_code
from tests.support.internals import OwnChanges, core_of
from tests.support.internals import notifier as _notifier
from tests.support.internals import scanner as _scanner
from tests.support.internals import stat_differ as _stat_differ
from tests.support.internals import watched_path as _watched_path
from tests.support.internals import watcher as _watcher
from tests.support.watching import Deaf, fetch, fetch_event, missing, reach, size, watch, write

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hub():
    async with aiommap.Hub() as made:
        yield made


async def test_lost_events_are_found_by_polling(hub, tmp_path, monkeypatch):
    from watchfiles import _rust_notify

    monkeypatch.setattr(_rust_notify, "RustNotify", Deaf)
    path = tmp_path / "f"
    path.write_bytes(b"x")
    async with watch(hub, path) as changes:
        os.truncate(path, 5)
        change = await fetch(changes)
        assert (change.kind, change.source) == (ChangeKind.GROWN, "poll")
        path.unlink()
        assert (await fetch(changes)).kind is ChangeKind.REMOVED
        path.write_bytes(b"")
        assert (await fetch(changes)).kind is ChangeKind.CREATED


async def test_refusing_kernel_is_polled(hub, tmp_path, monkeypatch, caplog):
    from watchfiles import _rust_notify

    def refuse(*_):
        raise OSError(24, "too many open files")

    path = tmp_path / "f"
    path.write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(_rust_notify, "RustNotify", refuse)
        patch.setattr(_notifier, "RETRY_SECONDS", 0.05)
        async with watch(hub, path) as changes:
            os.truncate(path, 5)
            assert (await fetch(changes)).source == "poll"
            assert "so they are polled" in caplog.records[0].getMessage()
            patch.undo()
            await fetch_event(changes, path)


def test_first_watch_without_a_descriptor(tmp_path):
    code = """
import os, resource, sys
import anyio, aiommap

async def main():
    async with aiommap.open(sys.argv[1], "r+") as f:
        assert "watchfiles" not in sys.modules
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        with anyio.fail_after(100):
            async with f.watch() as changes:
                os.truncate(sys.argv[1], 5)
                assert (await anext(changes)).source == "poll"
        for fd in taken:
            os.close(fd)

anyio.run(main)
"""
    path = tmp_path / "f"
    path.write_bytes(b"x")
    done = run_code(code, path)
    assert done.returncode == 0, done.stderr


async def test_notifier_is_not_asked_without_thread(hub, tmp_path, monkeypatch):
    """The notifier would abort the process if it could not start a thread."""
    from watchfiles import _rust_notify

    def refuse():
        raise RuntimeError("can't start new thread")

    path = tmp_path / "f"
    path.write_bytes(b"x")
    monkeypatch.setattr(_rust_notify, "RustNotify", Deaf)
    monkeypatch.setattr(Deaf, "__init__", lambda *_: os.abort())
    monkeypatch.setattr(_notifier, "check_threads", refuse)
    async with watch(hub, path) as changes:
        os.truncate(path, 5)
        assert (await fetch(changes)).source == "poll"


@pytest.mark.parametrize("notify", [True, False])
async def test_watching_ends_while_it_wakes_others(notify):
    """The scanner ends although ``end`` is called while it delivers findings."""

    def deliver(found):
        if not found:
            scanner.end()
        return True

    scanner = _scanner.Scanner(OwnChanges(), deliver, notify=notify)
    scanner.add(_watched_path.WatchedPath("/"), None, None)
    with anyio.fail_after(100):
        await anyio.to_thread.run_sync(scanner.run, abandon_on_cancel=True)


async def test_watching_without_thread_says_so(hub, tmp_path, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    path = tmp_path / "f"
    path.write_bytes(b"x")
    with monkeypatch.context() as patches, anyio.fail_after(100):
        patches.setattr(_watcher, "run_in_thread", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await hub.watch(path).__aenter__()
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await aiommap.follow(path, hub=hub)
    async with watch(hub, path) as changes:
        os.truncate(path, 5)
        assert (await fetch(changes)).kind is ChangeKind.GROWN


class Panic(BaseException):
    """Stands for the exception that a panic in Rust becomes."""


@pytest.mark.parametrize("error", [RuntimeError, Panic])
async def test_failed_notifier_is_made_again(hub, tmp_path, monkeypatch, caplog, error):
    from watchfiles import _rust_notify

    class Broken(Deaf):
        def watch(self, *_):
            monkeypatch.undo()
            raise error("error in underlying watcher")

    monkeypatch.setattr(_rust_notify, "RustNotify", Broken)
    path = tmp_path / "f"
    path.write_bytes(b"x")
    async with watch(hub, path) as changes:
        os.truncate(path, 5)
        await reach(changes, size(5))
        assert "begins afresh" in caplog.records[0].getMessage()
        await fetch_event(changes, path)


async def test_polling_can_be_forced(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("WATCHFILES_FORCE_POLLING", "1")
    monkeypatch.setenv("WATCHFILES_POLL_DELAY_MS", "20")
    path = tmp_path / "f"
    path.write_bytes(b"x")
    async with watch(hub, path) as changes:
        assert not hub._watcher._threads[False].scanner._watches.notifier
        for length in (5, 6):
            os.truncate(path, length)
            assert (await fetch(changes)).source == "poll"


async def test_network_file_systems_have_a_thread(hub, tmp_path, monkeypatch):
    from tests.support.internals import watcher as _watcher

    monkeypatch.setattr(_watcher, "is_remote", lambda path: path.endswith("remote"))
    for name in ("remote", "local"):
        (tmp_path / name).write_bytes(b"x")
    async with (
        watch(hub, tmp_path / "remote") as remote,
        watch(hub, tmp_path / "local") as local,
    ):
        assert len(hub._watcher._threads) == 2
        os.truncate(tmp_path / "remote", 5)
        assert (await fetch(remote)).source == "poll"
        await fetch_event(local, tmp_path / "local")
    assert not hub._watcher._threads


# Many paths, and changes of the set of paths.


async def test_directories_added_and_removed_report(hub, tmp_path):
    """Each change is reported while directories are added to the watched set and removed."""
    path = tmp_path / "f"
    path.write_bytes(b"")
    others = [tmp_path / str(i) / "g" for i in range(30)]
    for other in others:
        other.parent.mkdir()
        other.write_bytes(b"")
    async with watch(hub, path) as changes:

        async def churn():
            for other in others:
                async with watch(hub, other):
                    pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(churn)
            for length in range(1, 40):
                os.truncate(path, length)
                assert set(await reach(changes, size(length))) == {ChangeKind.GROWN}


async def test_joining_subscriber_begins_with_states(hub, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"")
    async with watch(hub, path) as first:
        for length in range(1, 20):
            os.truncate(path, length)
            async with watch(hub, path) as second:
                os.truncate(path, length + 100)
                change = await fetch(second)
                assert (change.old.size, change.new.size) == (length, length + 100)
            os.truncate(path, length)
        await reach(first, size(19))


@pytest.mark.slow
async def test_storm_loses_no_final_state(hub, tmp_path):
    """Ten thousand changes in one directory: the last state of each file arrives."""
    paths = [tmp_path / str(i) for i in range(200)]
    for path in paths:
        path.write_bytes(b"")
    code = (
        "import os, sys\n"
        "for i in range(1, 51):\n"
        "    for name in os.listdir(sys.argv[1]): os.truncate(f'{sys.argv[1]}/{name}', i)\n"
    )
    seen = {}

    async with anyio.create_task_group() as tasks:
        entered = 0

        async def listen(path):
            nonlocal entered
            async with watch(hub, path, buffer=4) as changes:
                entered += 1
                seen[path] = await reach(changes, size(50))

        for path in paths:
            tasks.start_soon(listen, path)
        while entered < len(paths):
            await anyio.sleep(0.01)
        await anyio.run_process([sys.executable, "-c", code, str(tmp_path)])
    assert set(seen) == set(paths)
    assert {kind for kinds in seen.values() for kind in kinds} == {ChangeKind.GROWN}


async def test_large_batch_is_followed_by_a_scan(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(_scanner, "LARGE_BATCH", 1)
    monkeypatch.setattr(_scanner, "POLL_SECONDS", 1e9)
    far = tmp_path / "d" / "far"
    far.parent.mkdir()
    near = tmp_path / "near"
    for path in (far, near):
        path.write_bytes(b"")
    async with watch(hub, far) as changes, watch(hub, near) as others:
        os.rename(far.parent, tmp_path / "e")
        os.truncate(near, 5)
        await fetch(others)
        await reach(changes, missing)


@pytest.mark.parametrize(
    ("release", "coarse"),
    [("6.12.9-arch1", True), ("5.15.0-91-generic", True), ("6.13.0", False), ("7.0-rc1", False)],
)
def test_coarse_file_times_are_known(release, coarse):
    assert _watched_path._has_coarse_times(release) is coarse


async def test_second_change_within_a_coarse_tick(hub, tmp_path, monkeypatch):
    """A stat that keeps returning the state after the first change simulates coarse times."""
    path = tmp_path / "f"
    path.write_bytes(b"x")
    monkeypatch.setattr(_watched_path, "COARSE_TIMES", True)
    monkeypatch.setattr(_watched_path, "TICK_NS", 10**12)
    monkeypatch.setattr(_scanner, "POLL_SECONDS", 1e9)
    async with watch(hub, path) as changes:
        os.truncate(path, 5)
        first = (await reach(changes, size(5)))[0]
        assert first is ChangeKind.GROWN
        frozen = os.stat(path)
        monkeypatch.setattr(_stat_differ, "stat_of", lambda _: frozen)
        os.truncate(path, 4)
        os.truncate(path, 5)
        change = await fetch(changes)
        assert (change.kind, change.old) == (ChangeKind.MODIFIED, change.new)


async def test_shortest_interval_holds(hub, tmp_path, monkeypatch):
    from watchfiles import _rust_notify

    monkeypatch.setattr(_rust_notify, "RustNotify", Deaf)
    monkeypatch.setattr(_scanner, "POLL_SECONDS", 1e9)
    path = tmp_path / "f"
    path.write_bytes(b"x")
    async with watch(hub, path, poll_interval=1e6) as slow:
        async with watch(hub, path, poll_interval=0.01) as quick:
            for length in range(2, 6):
                os.truncate(path, length)
                await reach(quick, size(length))
        await reach(slow, size(5))


async def test_path_is_polled_after_a_long_resize_of_ours(hub, tmp_path, monkeypatch):
    """During the resize no change can be attributed; the path stays suspect until its end."""
    from watchfiles import _rust_notify

    monkeypatch.setattr(_rust_notify, "RustNotify", Deaf)
    monkeypatch.setattr(_scanner, "MAX_DELAY_SECONDS", 0.05)
    compare, gave_up = _stat_differ.StatDiffer.compare, threading.Event()

    def compare_and_tell(differ, watched, source, *, patient=True):
        done = compare(differ, watched, source, patient=patient)
        if not (done or patient):
            gave_up.set()
        return done

    path = tmp_path / "f"
    path.write_bytes(b"x")
    async with hub.open(path, "r+") as f, watch(hub, path) as changes:
        monkeypatch.setattr(_stat_differ.StatDiffer, "compare", compare_and_tell)
        with core_of(f).own.resizing():
            os.truncate(path, 5)
            assert await anyio.to_thread.run_sync(gave_up.wait, 20)
        await reach(changes, size(5))


@contextmanager
def watching(code, path):
    """Run a script that watches a file, in a process of its own."""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process


@contextmanager
def while_stopped(process):
    """Run the block while a process stands that stops itself."""
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    yield
    process.send_signal(signal.SIGCONT)


OVERFLOW = """
import sys, anyio, aiommap

async def main(path):
    async with aiommap.Hub() as hub, hub.open(path) as f, f.watch() as changes:
        print("watching", flush=True)
        print((await anext(changes)).kind.value, flush=True)

anyio.run(main, sys.argv[1])
"""


@pytest.mark.slow
def test_overrun_kernel_queue_hides_nothing(tmp_path):
    """The watching process is stopped until the kernel's queue of events has overflowed."""
    path = tmp_path / "f"
    path.write_bytes(b"x")
    others = [os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in "gh"]
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with watching(OVERFLOW, path) as process:
        assert process.stdout.readline() == "watching\n"
        process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(limit):
                for fd in others:  # in turns, because the kernel merges equal events in a row
                    os.pwrite(fd, b"x", 0)
            os.truncate(path, 0)
        finally:
            process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "truncated\n"
    for fd in others:
        os.close(fd)


STOPPED = """
import os, signal, sys, anyio, aiommap

async def main(path):
    async with aiommap.open(path, "r+") as f, f.watch() as changes:
        await anyio.sleep(0.3)  # until no event of our own can follow
        f.atomic_u32(0).store(1)
        os.kill(os.getpid(), signal.SIGSTOP)
        with anyio.fail_after(100):
            print((await anext(changes)).kind.value, flush=True)

anyio.run(main, sys.argv[1])
"""


@pytest.mark.slow
def test_write_by_others_while_stopped_beside_our_store(tmp_path):
    """A thread that was held up compares all paths before it reads the events."""
    path = tmp_path / "f"
    path.write_bytes(bytes(100))
    with watching(STOPPED, path) as process:
        with while_stopped(process):
            write(path, 50)
            time.sleep(_scanner.LATE_SECONDS * 1.2)  # the test needs a thread held up so long
        assert process.stdout.readline() == "modified\n"


REBUILDING = """
import os, signal, sys, anyio, aiommap

async def main(path):
    async with aiommap.Hub() as hub, hub.open(path, "r+") as f, f.watch() as changes:
        await anyio.sleep(0.3)  # until no event of our own can follow
        for i in range(4):
            os.mkdir(f"{path}.{i}")
            f.atomic_u32(0).store(i)
            async with anyio.create_task_group() as group:
                async def watch_another():
                    async with hub.watch(f"{path}.{i}/g"):
                        await anyio.sleep_forever()
                group.start_soon(watch_another)
                await anyio.sleep(i % 2 / 1000)
                os.kill(os.getpid(), signal.SIGSTOP)
                with anyio.fail_after(100):
                    print((await anext(changes)).kind.value, flush=True)
                group.cancel_scope.cancel()

anyio.run(main, sys.argv[1])
"""


@pytest.mark.slow
def test_write_by_others_while_a_directory_is_added(tmp_path):
    """Events that are pending while the notifier is replaced show that others wrote, too."""
    path = tmp_path / "f"
    path.write_bytes(bytes(100))
    with watching(REBUILDING, path) as process:
        for _ in range(4):
            with while_stopped(process):
                write(path, 50)
            assert process.stdout.readline() == "modified\n"
