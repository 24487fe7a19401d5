"""Followed paths: what is served after whatever happens to them, and until when the old is kept."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import shutil
import threading
import weakref
from collections import Counter

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Snapshot
from aiommap._following import MOST_OVERTAKEN

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "table"
    made.write_bytes(b"good 0")
    return made


def replace(path, content):
    other = path.with_name("incoming")
    other.write_bytes(content)
    other.replace(path)


async def replace_off_loop(path, content):
    """Replace within what the package calls, where the loop must not wait."""
    await anyio.to_thread.run_sync(replace, path, content)


async def content(snapshot):
    return await snapshot.read_exact(0, snapshot.size)


async def check_good(snapshot):
    """Refuse what is not good, as a user's validation does."""
    found = await content(snapshot)
    if not found.startswith(b"good"):
        raise ValueError(f"not good: {found!r}")


async def until(condition):
    """Wait for what another task or thread brings about, and fail if it never does."""
    with anyio.fail_after(20):
        while not await condition():
            await anyio.sleep(0.001)


async def until_serves(live, expected):
    async def serves():
        return await content(live.current) == expected

    await until(serves)


async def until_serves_stably(live, expected):
    """The same where a snapshot may lose bytes while it is read."""

    async def serves():
        try:
            return await content(live.current) == expected
        except aiommap.MappingFaultError:
            return False

    await until(serves)


def mappings(path):
    with open("/proc/self/maps") as lines:
        return sum(path.name in line for line in lines)


async def until_mapped(path, count):
    async def mapped():
        return mappings(path) == count

    await until(mapped)


class Errors:
    """What ``on_error`` was told."""

    def __init__(self):
        self.found = []
        self._told = anyio.Event()

    def __call__(self, error):
        self.found.append(error)
        self._told.set()
        self._told = anyio.Event()

    async def wait(self, kind, match=""):
        """Wait for an error of a kind; what came before it is forgotten."""
        with anyio.fail_after(20):
            while True:
                while self.found:
                    error = self.found.pop(0)
                    if isinstance(error, kind) and match in str(error):
                        return error
                await self._told.wait()


@pytest.fixture
def errors():
    return Errors()


class Gate:
    """A validation that tells when it began, and waits until it is let through."""

    def __init__(self):
        self.begun, self.opened = anyio.Event(), anyio.Event()
        self.calls, self.cancelled = 0, 0

    async def __call__(self, snapshot):
        self.calls += 1
        if self.calls == 1:
            return  # the first file
        self.begun.set()
        try:
            await self.opened.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        await check_good(snapshot)


# The first file.


async def test_the_file_at_the_path_is_served_first(path):
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


async def test_awaiting_it_leaves_closing_to_the_caller(path):
    live = await aiommap.follow(str(path))
    replace(path, b"good 1")
    await until_serves(live, b"good 1")
    async with live as same:
        assert same is live
    assert mappings(path) == 0


async def test_a_path_that_is_missing_at_the_start_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file") as caught:
        await aiommap.follow(tmp_path / "missing")
    assert caught.value.filename == str(tmp_path / "missing")


async def test_a_path_can_be_waited_for_before_it_is_followed(tmp_path):
    missing = tmp_path / "missing"
    async with aiommap.Hub() as hub:
        async with hub.watch(missing) as changes:
            replace(missing, b"good 0")
            with anyio.fail_after(20):
                change = await anext(changes)
        assert (change.kind, change.path) == (aiommap.ChangeKind.CREATED, str(missing))
        async with aiommap.follow(missing, hub=hub) as live:
            assert await content(live.current) == b"good 0"


async def test_a_directory_is_refused(tmp_path):
    with pytest.raises(aiommap.UnsupportedError, match="it is a directory"):
        await aiommap.follow(tmp_path)


async def returns_false(_):
    return False


@pytest.mark.parametrize(
    ("validate", "kind", "match"),
    [
        (check_good, ValueError, "not good: b'bad'"),
        (returns_false, ValueError, "validate returned False"),
        (lambda _: None, TypeError, "validate has to be async"),
    ],
    ids=["raises", "false", "sync"],
)
async def test_a_first_file_that_is_bad_is_an_error(path, validate, kind, match):
    path.write_bytes(b"bad")
    with pytest.raises(kind, match=match):
        await aiommap.follow(path, validate=validate)
    assert mappings(path) == 0


@pytest.mark.parametrize("option", ["validate", "on_error"])
async def test_what_cannot_be_called_is_refused(path, option):
    with pytest.raises(TypeError, match="pass a function of one argument"):
        aiommap.follow(path, **{option: "x"})


# Replacements.


def link_swap(path, content):
    """Turn a symbolic link, as ``ln -sfn`` does."""
    target = path.with_name(f"target-{content.decode()}")
    target.write_bytes(content)
    link = path.with_name("link")
    link.symlink_to(target)
    link.replace(path)


def unlink_and_create(path, content):
    path.unlink()
    path.write_bytes(content)


def hard_link(path, content):
    other = path.with_name("other")
    other.write_bytes(content)
    path.unlink()
    os.link(other, path)
    other.unlink()


def move_away(path, content):
    path.rename(path.with_name("backup"))
    path.write_bytes(content)


REPLACEMENTS = [replace, link_swap, unlink_and_create, hard_link, move_away]


@pytest.mark.parametrize("how", REPLACEMENTS)
@pytest.mark.parametrize("prewarm", [True, False], ids=["prewarm", "cold"])
async def test_a_replacement_is_served_and_the_old_one_let_go(path, how, prewarm):
    async with aiommap.follow(path, prewarm=prewarm) as live:
        for number in range(1, 4):
            how(path, b"good %d" % number)
            await until_serves(live, b"good %d" % number)
        assert live.generation >= 4


async def test_a_kubernetes_volume_is_followed(tmp_path):
    """Its files are links through ``..data``, a link to a folder that is replaced as a whole."""

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


async def test_a_new_file_is_resident_before_it_is_served(tmp_path):
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
                residency = await snapshot._file.residency()
                assert residency.resident == residency.total == 4096
                break


async def test_the_same_file_moved_away_and_back_is_no_new_generation(path, errors):
    async with aiommap.follow(path, on_error=errors) as live:
        first = live.current
        path.rename(path.with_name("away"))
        await errors.wait(FileNotFoundError)
        path.with_name("away").rename(path)
        replace(path.with_name("other"), b"")  # told of in the same directory, and not concerned
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        assert live.generation == 2
        assert await content(first) == b"good 0"


# Until when old ones are kept.


async def test_an_old_generation_is_open_while_it_is_referred_to_and_then_unmapped(path):
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
async def test_whatever_reads_keeps_the_generation_open(path, keep):
    async with aiommap.follow(path) as live, contextlib.AsyncExitStack() as stack:
        snapshot = live.current
        if keep == "method":
            read = snapshot.read_exact
        elif keep == "view":
            read = snapshot.view().read
        elif keep == "view-of-view":
            read = snapshot.view().view(0, 4).split_at(4)[0].read
        elif keep == "hold":
            read = stack.enter_context(snapshot.hold())._file.read
        elif keep == "block":
            read = (await stack.enter_async_context(snapshot))._file.read
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


async def test_memory_of_a_view_outlives_its_generation(path):
    async with aiommap.follow(path) as live:
        memory = live.current.view().memory
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
    assert memory == b"good 0"


async def test_a_released_view_keeps_nothing(path):
    async with aiommap.follow(path) as live:
        view = live.current.view()
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        assert mappings(path) == 2
        view.release()
        await until_mapped(path, 1)


async def test_a_generation_that_ends_in_another_thread_is_closed(path):
    async with aiommap.follow(path) as live:
        kept = [live.current]
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        await anyio.to_thread.run_sync(kept.clear)
        await until_mapped(path, 1)


async def test_closing_the_current_one_by_hand_disturbs_nobody(path):
    async with aiommap.follow(path) as live:
        await live.current.aclose()
        async with live.current as snapshot:
            assert await content(snapshot) == b"good 0"
        assert await content(live.current) == b"good 0"


async def test_leaving_waits_for_holds_and_closes_what_is_only_referred_to(path):
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
        with anyio.fail_after(20):
            await left.wait()
    assert old.closed
    assert mappings(path) == 0
    with pytest.raises(anyio.ClosedResourceError, match="is closed"):
        await content(old)


async def test_leaving_while_cancelled_does_not_wait_and_disturbs_no_hold(path):
    live = await aiommap.follow(path)
    old = live.current
    with old.hold():
        with anyio.CancelScope() as scope:
            async with live:
                scope.cancel()
        assert await content(old) == b"good 0"
    await until_mapped(path, 0)


# Bad files.


async def test_a_bad_file_is_reported_and_the_old_one_serves_on(path, errors):
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


async def test_a_validation_that_returns_false_refuses(path, errors):
    async def is_good(snapshot):
        return (await content(snapshot)).startswith(b"good")

    async with aiommap.follow(path, validate=is_good, on_error=errors) as live:
        replace(path, b"bad")
        await errors.wait(ValueError, "validate returned False")
        replace(path, b"good 1")
        await until_serves(live, b"good 1")


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
async def test_what_cannot_be_opened_is_reported_and_a_good_file_recovers(
    path, errors, spoil, kind
):
    async with aiommap.follow(path, on_error=errors) as live:
        spoil(path)
        await errors.wait(kind)
        assert (await content(live.current), live.generation) == (b"good 0", 1)
        if path.is_dir():
            path.rmdir()
        replace(path, b"good 1")
        await until_serves(live, b"good 1")


async def test_a_file_truncated_while_it_is_validated_is_refused(path, errors):
    gate = Gate()
    async with aiommap.follow(path, validate=gate, on_error=errors, prewarm=False) as live:
        replace(path, b"good 1" + bytes(PAGE))
        with anyio.fail_after(20):
            await gate.begun.wait()
        os.truncate(path, 6)
        gate.opened.set()
        await until_serves(live, b"good 1")  # tried again as it is, and never as it was
        assert live.generation == 2


async def test_an_error_is_logged_by_default(path, caplog):
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


async def test_a_change_in_place_is_reported_as_one_and_tried_anew(path, errors):
    os.utime(path, ns=(0, 0))
    async with aiommap.follow(path, validate=check_good, on_error=errors) as live:
        first = live.current
        with path.open("r+b") as file:
            file.write(b"good 1 and more")
        error = await errors.wait(aiommap.StaleSnapshotError)
        assert (error.path, error.opened_size, error.size) == (str(path), 6, 15)
        await until_serves(live, b"good 1 and more")
        assert live.current is not first
        assert await content(first) == b"good 1"  # it is the same file: nothing can be done
        with pytest.raises(aiommap.StaleSnapshotError):
            await first.verify()


async def test_a_change_in_place_for_the_worse_is_reported_and_nothing_else(path, errors):
    os.utime(path, ns=(0, 0))
    async with aiommap.follow(path, validate=check_good, on_error=errors) as live:
        with path.open("r+b") as file:
            file.write(b"bad! 1")
        await errors.wait(aiommap.StaleSnapshotError)
        await errors.wait(ValueError, "not good")
        assert live.generation == 1


async def test_a_file_written_slowly_is_served_whole_in_the_end(path, errors):
    async with aiommap.follow(path, on_error=errors) as live:
        path.unlink()
        with path.open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(b"good" * 64)
                await anyio.sleep(0.002)
        await until_serves(live, b"good" * 64 * 20)


async def test_a_change_of_permissions_is_none_of_the_file(path):
    async with aiommap.follow(path) as live:
        path.chmod(0o600)
        replace(path.with_name("other"), b"")
        replace(path, b"good 1")
        await until_serves(live, b"good 1")
        assert live.generation == 2


# Overtaken trials.


async def test_a_trial_that_is_overtaken_is_cancelled_and_the_newest_tried(path, errors):
    gate = Gate()
    async with aiommap.follow(path, validate=gate, on_error=errors) as live:
        replace(path, b"good 1")
        with anyio.fail_after(20):
            await gate.begun.wait()
        replace(path, b"good 2")

        async def cancelled():
            return gate.cancelled == 1 and gate.calls == 3

        await until(cancelled)
        gate.opened.set()
        await until_serves(live, b"good 2")
        assert (live.generation, gate.cancelled, errors.found) == (2, 1, [])
        await until_mapped(path, 1)


async def test_the_failure_of_an_overtaken_trial_is_not_reported(path, errors):
    """One that turns its cancellation into an error, say."""
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


async def test_a_path_replaced_faster_than_validated_moves_on_all_the_same(path):
    """The validation of every file waits until the next file is there."""
    number = 0
    done = anyio.Event()

    async def validate(snapshot):
        nonlocal number
        if await content(snapshot) == b"good 0" or done.is_set():
            return
        number += 1
        await replace_off_loop(path, b"good %d" % (number + 1))
        with anyio.move_on_after(0.2):  # to be cancelled in, or seen through
            await anyio.sleep_forever()

    async with aiommap.follow(path, validate=validate) as live:
        replace(path, b"good 1")
        served = []
        with anyio.fail_after(30):
            async for snapshot in live:
                served.append(int((await content(snapshot)).split()[1]))
                if len(served) == 3:
                    done.set()
                    break
        assert served[0] == 0
        assert [b - a for a, b in itertools.pairwise(served)] == [MOST_OVERTAKEN + 1] * 2
        await until_serves(live, b"good %d" % (number + 1))


async def test_replacements_in_quick_succession_end_with_the_last(path):
    tried = []

    async def validate(snapshot):
        tried.append(await content(snapshot))

    async with aiommap.follow(path, validate=validate) as live:
        for number in range(1, 301):
            replace(path, b"good %d" % number)
        await until_serves(live, b"good 300")
    assert max(Counter(tried).values()) == 1
    assert len(tried) < 300


# Iterating.


async def test_iterating_yields_the_current_one_and_each_that_follows(path):
    served = []
    async with aiommap.follow(path) as live:
        with anyio.fail_after(20):
            async for snapshot in live:
                served.append(await content(snapshot))
                if len(served) == 4:
                    break
                replace(path, b"good %d" % len(served))
    assert served == [b"good %d" % number for number in range(4)]


async def test_a_slow_iteration_gets_the_newest_and_says_what_it_skipped(path):
    async with aiommap.follow(path) as live:
        generations = aiter(live)
        assert await content(await anext(generations)) == b"good 0"
        for number in range(1, 5):
            replace(path, b"good %d" % number)
            await until_serves(live, b"good %d" % number)
        assert await content(await anext(generations)) == b"good 4"
        assert generations.skipped == 3
        replace(path, b"good 5")
        with anyio.fail_after(20):
            assert await content(await anext(generations)) == b"good 5"
        assert generations.skipped == 0


@pytest.mark.parametrize("end", ["live", "hub"])
async def test_iterations_end_with_following(path, end):
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
        with anyio.fail_after(20):
            await (live if end == "live" else hub).aclose()
    assert ended == [True, True]
    assert live.closed
    with pytest.raises(anyio.ClosedResourceError, match="not followed any more"):
        _ = live.current
    await live.aclose()


async def test_cancelling_an_iteration_leaves_the_others(path):
    async with aiommap.follow(path) as live:
        generations = aiter(live)
        await anext(generations)
        with anyio.move_on_after(0):
            await anext(generations)
        replace(path, b"good 1")
        with anyio.fail_after(20):
            assert await content(await anext(generations)) == b"good 1"


# Ends.


async def test_leaving_cancels_a_trial(path):
    gate = Gate()
    async with aiommap.follow(path, validate=gate) as live:
        replace(path, b"good 1")
        await gate.begun.wait()
    assert gate.cancelled == 1
    assert live.generation == 1
    assert mappings(path) == 0


async def test_a_hub_that_is_left_during_a_trial_ends_it(path, errors):
    gate = Gate()
    async with aiommap.Hub() as hub:
        live = await aiommap.follow(path, hub=hub, validate=gate, on_error=errors)
        replace(path, b"good 1")
        with anyio.fail_after(20):
            await gate.begun.wait()
    await live.aclose()
    assert (gate.cancelled, errors.found) == (1, [])
    assert mappings(path) == 0


async def test_a_cancelled_start_leaves_nothing(path):
    async def never(_):
        await anyio.sleep_forever()

    with anyio.move_on_after(0.05):
        await aiommap.follow(path, validate=never)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await aiommap.follow(path)
    await until_mapped(path, 0)


async def test_a_hub_serves_many_followed_paths_and_outlives_them(tmp_path):
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


async def test_a_live_snapshot_that_is_closed_is_no_garbage_of_cycles(path):
    async with aiommap.follow(path) as live:
        reference = weakref.ref(live.current)
    gc.collect()
    assert reference() is None


@pytest.mark.slow
async def test_following_again_and_again_leaks_no_thread_and_no_descriptor(path):
    async def once():
        async with aiommap.follow(path) as live:
            replace(path, b"good 1")
            async for snapshot in live:
                if await content(snapshot) == b"good 1":
                    break
            del snapshot

    async def settled():  # the kernel's notifier is let go of by a thread that is not ours
        return mappings(path) == 0 and len(os.listdir("/proc/self/fd")) <= descriptors

    for _ in range(3):
        await once()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await once()
    await until(settled)
    assert threading.active_count() <= threads + 2


# Many readers.


@pytest.mark.slow
async def test_a_swap_under_a_thousand_readers_loses_no_read(path):
    """Every read finds one whole generation, and generations never go back for a reader."""
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


# Anything, in any order.


def append(path, content):
    with path.open("ab") as file:
        file.write(content)


def overwrite(path, content):
    path.write_bytes(content)


def cut(path, _):
    os.truncate(path, 3)


def change_mode(path, _):
    path.chmod(0o640)


def remove(path, _):
    path.unlink()


#: What leaves every file as it is once it has its bytes.
FROM_OUTSIDE = [*REPLACEMENTS, remove, change_mode]
IN_PLACE = [append, overwrite, cut]


def act(draw, path, actions, number):
    text = b"%s %d" % (draw.choice([b"good", b"bad"]), number)
    try:
        draw.choice(actions)(path, text)
    except FileNotFoundError:  # it was removed before
        replace(path, text)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
async def test_only_good_files_are_ever_served_and_the_last_one_in_the_end(path, seed):
    draw = random.Random(seed)
    async with aiommap.follow(path, validate=check_good, on_error=lambda _: None) as live:
        for number in range(1, 100):
            act(draw, path, FROM_OUTSIDE, number)
            await anyio.sleep(draw.choice([0, 0, 0.001, 0.02]))
            await check_good(live.current)
        last = path.exists() and path.read_bytes()
        if not last or not last.startswith(b"good"):
            replace(path, last := b"good at last")
        await until_serves(live, last)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
async def test_the_last_state_of_files_changed_in_place_is_served_in_the_end(path, seed):
    draw = random.Random(seed)
    async with aiommap.follow(path, validate=check_good, on_error=lambda _: None) as live:
        for number in range(1, 100):
            act(draw, path, [*FROM_OUTSIDE, *IN_PLACE], number)
            await anyio.sleep(draw.choice([0, 0, 0.001, 0.02]))
        last = path.exists() and path.read_bytes()
        if not last or not last.startswith(b"good"):
            replace(path, last := b"good at last")
        await until_serves_stably(live, last)


async def test_a_followed_path_left_open_at_the_end_of_the_loop_is_harmless(path):
    def run():
        async def main():
            live = await aiommap.follow(path)
            replace(path, b"good 1")
            await until_serves(live, b"good 1")

        asyncio.run(main())

    await anyio.to_thread.run_sync(run)
