"""A mapped file reports changes by others, and does not report our own."""

from __future__ import annotations

import os
import threading

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import ChangeKind, FlushPolicy
from tests.support.internals import core_of
from tests.support.internals import stat_differ as _stat_differ
from tests.support.pages import write_back
from tests.support.watching import (
    expect,
    fence,
    replace_by_rename,
    store_from_another_process,
    write,
)

pytestmark = pytest.mark.anyio


BASIC = {
    "modified": (write, ChangeKind.MODIFIED),
    "metadata": (lambda path: path.chmod(0o600), ChangeKind.METADATA),
    "changed": (lambda path: os.setxattr(path, "user.name", b"value"), ChangeKind.CHANGED),
    "grown": (lambda path: os.truncate(path, 17 * PAGE), ChangeKind.GROWN),
    "truncated": (lambda path: os.truncate(path, PAGE), ChangeKind.TRUNCATED),
    "replaced": (replace_by_rename, ChangeKind.REPLACED),
    "removed": (os.unlink, ChangeKind.REMOVED),
}


@pytest.mark.parametrize(("act", "kind"), BASIC.values(), ids=BASIC)
async def test_change_has_states_before_and_after(path, act, kind):
    before = os.stat(path)
    async with aiommap.open(path) as f, f.watch() as changes:
        act(path)
        change = await expect(changes, kind)
        assert (change.path, change.merged, change.source) == (str(path), 0, "event")
        assert (change.old.size, change.old.inode) == (before.st_size, before.st_ino)
        after = os.stat(path) if path.exists() else None
        assert (change.new and change.new.mtime_ns) == (after and after.st_mtime_ns)
        assert f.orphaned == (kind in (ChangeKind.REPLACED, ChangeKind.REMOVED))


async def test_own_odd_size_below_growth(path):
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        memory = f.view(growable=True).memory
        await f.resize(3 * PAGE + 5)
        assert (len(memory), os.stat(path).st_size) == (64 * PAGE, 4 * PAGE)
        async with f.watch() as changes:
            await fence(path, changes)


async def test_own_growth_after_a_refresh(path, monkeypatch):
    compare = _stat_differ.StatDiffer.compare
    rested, compared = threading.Event(), threading.Event()

    def compare_later(*arguments, **options):
        rested.wait(20)
        done = compare(*arguments, **options)
        compared.set()
        return done

    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f, f.watch() as changes:
        monkeypatch.setattr(_stat_differ.StatDiffer, "compare", compare_later)
        with f.view(growable=True) as view:
            view.memory[20 * PAGE] = 1
        await f.refresh()
        rested.set()
        assert await anyio.to_thread.run_sync(compared.wait, 20)
        await fence(path, changes)


async def test_own_growth_while_watching_begins(path, monkeypatch):
    begin = _stat_differ.StatDiffer.begin

    def begin_and_grow(differ, watched):
        begin(differ, watched)
        memory[20 * PAGE] = 1

    monkeypatch.setattr(_stat_differ.StatDiffer, "begin", begin_and_grow)
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        memory = f.view(growable=True).memory
        async with f.watch() as changes:
            assert f.size > 20 * PAGE
            await fence(path, changes)


async def test_removed_and_created_is_watched_on(path):
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


async def test_orphan_whose_file_comes_back(path):
    async with aiommap.open(path) as f, f.watch() as changes:
        path.rename(path.with_name("away"))
        await expect(changes, ChangeKind.REMOVED)
        assert f.orphaned
        path.with_name("away").rename(path)
        await expect(changes, ChangeKind.CREATED)
        assert not f.orphaned


async def test_change_since_opening_comes_first(path):
    async with aiommap.open(path) as f:
        replace_by_rename(path)
        async with f.watch() as changes:
            change = await expect(changes, ChangeKind.REPLACED)
            assert (change.source, change.old.size) == ("start", 16 * PAGE)
            assert f.orphaned


async def test_size_unlike_mapping_comes_first(path):
    async with aiommap.open(path) as f:
        os.truncate(path, PAGE)
        async with f.watch() as changes:
            change = await expect(changes, ChangeKind.TRUNCATED)
            assert (change.old.size, change.new.size) == (16 * PAGE, PAGE)


async def test_mapped_stores_of_others_by_polling(path):
    async with aiommap.open(path) as f, f.watch(poll_interval=0.02) as changes:
        for _ in range(3):
            await anyio.to_thread.run_sync(store_from_another_process, path)
            change = await expect(changes, ChangeKind.MODIFIED)
            assert change.source == "poll"
            await anyio.to_thread.run_sync(
                write_back, path
            )  # before it, another store moves no times


async def test_polling_is_on_by_default(path):
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
async def test_own_writes_and_flushes_are_silent(path, policy):
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


async def test_own_durable_write_while_applied(path):
    async with aiommap.Hub() as hub, hub.open(path, "r+", flush=POLICIES["always"]) as f:
        core, samples = core_of(f), []
        disk = core.disk

        class Looking:
            def __getattr__(self, name):
                return getattr(disk, name)

            def write_many(self, stores):
                samples.append(hub._own.sample(core.identity))
                return disk.write_many(stores)

        core.disk = Looking()
        await f.write(0, b"own")
        core.disk = disk
        samples.append(hub._own.sample(core.identity))
        assert [(sample.calling, sample.calls) for sample in samples] == [(True, 0), (False, 1)]


async def test_own_large_writes_are_silent(tmp_path):
    path = tmp_path / "large"
    async with (
        aiommap.open(path, "w+", size=8 << 20) as f,
        f.watch(poll_interval=0.001) as changes,
    ):
        for _ in range(5):
            await f.write(0, bytes(8 << 20))
            await f.flush()
        await fence(path, changes)


async def test_own_resizes_and_holes_are_silent(path):
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


async def test_own_memory_stores_are_silent(path):
    async with aiommap.open(path, "r+") as f, f.watch(poll_interval=0.002) as changes:
        with f.view(0, PAGE) as view:
            memory = view.memory
            for i in range(10):
                memory[i] = 1
                await f.flush()
                await anyio.sleep(0.004)
            await fence(path, changes)
            del memory


async def test_own_stores_in_returned_memory(path):
    async with aiommap.open(path, "r+") as f, f.watch(poll_interval=0.05) as changes:
        for i in range(5):
            with f.view(0, PAGE) as view:
                view.memory[i] = 1
            await f.flush()  # so that the next store moves the times again
            await anyio.sleep(0.06)
        await fence(path, changes)


async def test_own_growth_and_trim_are_silent(path):
    async with aiommap.Hub() as hub, hub.open(path, "r+") as f, f.watch() as changes:
        g = await hub.open(path, "r+", capacity=1 << 20)
        before = path.stat().st_size
        with g.view(growable=True) as view:
            memory = view.memory
            for offset in range(before, before + (1 << 19), 1 << 16):
                memory[offset] = 1
                await anyio.sleep(0.02)
            memory.release()
        grown = path.stat().st_size
        await g.aclose()
        assert before < path.stat().st_size < grown
        await fence(path, changes)


async def test_own_resize_of_file_closing_at_once(path):
    async with aiommap.Hub() as hub, hub.open(path, "r+") as f, f.watch() as changes:
        for pages in (20, 3, 40):
            async with hub.open(path, "r+") as g:
                await g.resize(pages * PAGE)
            await fence(path, changes)


async def test_truncation_of_grown_file_is_reported(path):
    async with aiommap.open(path, "r+", capacity=1 << 20) as f, f.watch() as changes:
        before = path.stat().st_size
        with f.view(growable=True) as view:
            view.memory[before] = 1
            grown = path.stat().st_size
            os.truncate(path, before)
            change = await expect(changes, ChangeKind.TRUNCATED)
            assert (change.old.size, change.new.size) == (grown, before)
            os.truncate(path, grown)


async def test_files_of_one_hub_are_silent(path):
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


async def test_file_by_another_name_is_ours(path):
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


async def test_hubs_report_each_other_once(path):
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


async def test_others_writes_beside_our_stores(path):
    """Mapped stores of ours do not explain an event of the kernel."""
    async with aiommap.open(path, "r+") as f, f.watch(poll_interval=10) as changes:
        word = f.atomic_u32(0)
        word.store(1)
        await anyio.sleep(0.3)
        for i in range(5):
            word.store(i)
            write(path, PAGE)
            await expect(changes, ChangeKind.MODIFIED)


@pytest.mark.parametrize("pages", [5, 16], ids=["another-size", "the-size-before-ours"])
async def test_others_truncation_beside_our_resizes(path, pages):
    async with (
        aiommap.open(path, "r+", flush=FlushPolicy.never()) as f,
        f.watch(poll_interval=0.005) as changes,
    ):
        await f.resize(20 * PAGE)
        await f.write(0, bytes(PAGE))
        os.truncate(path, pages * PAGE)
        change = await expect(changes, ChangeKind.TRUNCATED)
        assert (change.old.size, change.new.size) == (20 * PAGE, pages * PAGE)


# Verbs after a change.


async def test_read_beyond_new_end_says_both_sizes(path):
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


async def test_refresh_grown_file_in_place(path):
    async with aiommap.open(path, capacity=32 * PAGE) as f, f.watch() as changes:
        address = core_of(f).mapping.address
        with path.open("ab") as file:
            file.write(b"tail")
        change = await expect(changes, ChangeKind.GROWN)
        assert (f.size, change.new.size) == (16 * PAGE, 16 * PAGE + 4)
        await f.refresh()
        assert f.size == 16 * PAGE + 4
        assert await f.read(16 * PAGE, 4) == b"tail"
        assert core_of(f).mapping.address == address
        await fence(path, changes)


@pytest.mark.parametrize("mode", ["r", "r+"])
async def test_refresh_beyond_capacity_maps_again(path, mode):
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


async def test_refresh_before_growth_was_seen(path):
    async with aiommap.open(path, "r+", capacity=32 * PAGE) as f, f.watch() as changes:
        os.truncate(path, 20 * PAGE)
        await f.refresh()
        await expect(changes, ChangeKind.GROWN)


async def test_refresh_shows_unflushed_stores_cut(path):
    f = await aiommap.open(path, "r+")
    await f.write(10 * PAGE, b"lost")
    os.truncate(path, PAGE)
    with pytest.raises(aiommap.FlushError, match="truncated to"):
        await f.refresh()
    assert f.size == 16 * PAGE
    with pytest.raises(aiommap.FlushError, match="truncated to"):
        await f.aclose()


async def test_refresh_zeros_views_of_what_was_cut(path):
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


async def test_refresh_of_a_private_file(path):
    async with aiommap.open(path, "c") as f:
        with pytest.raises(aiommap.AccessModeError, match="fixed size"):
            await f.refresh()
