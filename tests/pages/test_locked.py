"""Locked pages beside changes of size: every published page is locked, as the kernel reports."""

from __future__ import annotations

import contextlib
import re
import threading

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.internals import PIECE_BYTES, Pager, core_of

pytestmark = pytest.mark.anyio
SIZE = 3 * PIECE_BYTES


def locked_bytes(path):
    """Return the bytes of a file that are locked in this process."""
    total, ours = 0, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if re.match(r"[0-9a-f]+-", line):
                ours = str(path) in line
            elif ours and line.startswith("Locked:"):
                total += int(line.split()[1]) << 10
    return total


@pytest.fixture
def stopped_after_one_piece(monkeypatch):
    """Stop the locking of a range after its first piece, until the test goes on."""
    stopped, go_on = threading.Event(), threading.Event()
    pin = Pager._lock_piece

    def pin_and_stop(self, offset, length):
        whole = pin(self, offset, length)
        stopped.set()
        go_on.wait()
        return whole

    monkeypatch.setattr(Pager, "_lock_piece", pin_and_stop)
    yield stopped, go_on
    go_on.set()


async def wait(event):
    await anyio.to_thread.run_sync(event.wait)


async def resize_beyond_the_capacity(f):
    await f.resize(f.capacity + PIECE_BYTES)


async def cut_off_and_grow_again(f):
    await f.resize(SIZE // 2)
    await f.resize(SIZE)


@pytest.mark.parametrize("change", [resize_beyond_the_capacity, cut_off_and_grow_again])
async def test_lock_survives_remap_in_progress(tmp_path, stopped_after_one_piece, change):
    stopped, go_on = stopped_after_one_piece
    path = tmp_path / "file"
    async with aiommap.open(path, "w+", size=SIZE) as f:
        before = locked_bytes(path)

        async def pin():
            async with f.locked(0, SIZE):
                assert locked_bytes(path) - before >= SIZE

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pin)
            await wait(stopped)
            await change(f)
            go_on.set()


async def test_lock_cut_off_half_way(tmp_path, stopped_after_one_piece):
    stopped, go_on = stopped_after_one_piece
    async with aiommap.open(tmp_path / "file", "w+", size=SIZE) as f:
        errors = []

        async def pin():
            try:
                async with f.locked(0, SIZE):
                    pass
            except aiommap.OutOfBoundsError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pin)
            await wait(stopped)
            await f.resize(PIECE_BYTES)
            go_on.set()
        assert [error.limit for error in errors] == [PIECE_BYTES]


async def test_lock_again_in_the_new_mapping(tmp_path):
    path = tmp_path / "file"
    async with aiommap.open(path, "w+", size=SIZE) as f, f.locked(0, SIZE):
        await f.resize(f.capacity + PIECE_BYTES)
        assert f._mapping.size > SIZE
        assert locked_bytes(path) >= SIZE


class Published:
    """Passes every call on to a mapping, and records the pages that are published as locked."""

    def __init__(self, mapping):
        self.mapping = mapping
        self.pages = set()
        self.changed = []

    def __getattr__(self, name):
        return getattr(self.mapping, name)

    def set_locked(self, offset, length, locked):
        pages = range(offset // PAGE, (offset + length) // PAGE)
        self.changed.append(len(pages))
        self.pages = self.pages | set(pages) if locked else self.pages - set(pages)
        self.mapping.set_locked(offset, length, locked)


@pytest.fixture
def published(monkeypatch):
    """Return a function that records what the mapping of a file publishes."""

    def watch(f):
        spy = Published(core_of(f).mapping)
        monkeypatch.setattr(core_of(f), "mapping", spy)
        return spy

    return watch


async def test_a_locked_range_costs_the_same_however_many_there_are(tmp_path, published):
    count = 100
    async with aiommap.open(tmp_path / "file", "w+", size=count * 2 * PAGE) as f:
        await f.prewarm(write=True)
        spy = published(f)
        async with contextlib.AsyncExitStack() as stack:
            for at in range(count):
                await stack.enter_async_context(f.locked(at * 2 * PAGE, PAGE))
            assert spy.pages == set(range(0, 2 * count, 2))
        assert spy.pages == set()
        assert spy.changed == [1] * 2 * count


async def test_locked_ranges_that_overlap(path, published):
    async with aiommap.open(path, "r+") as f, contextlib.AsyncExitStack() as stack:
        before = locked_bytes(path)
        spy = published(f)
        await stack.enter_async_context(f.locked(0, 4 * PAGE))
        async with f.locked(2 * PAGE, 4 * PAGE), f.locked(8 * PAGE, PAGE):
            assert spy.pages == {0, 1, 2, 3, 4, 5, 8}
            assert locked_bytes(path) - before == 7 * PAGE
        assert spy.pages == {0, 1, 2, 3}
        async with f.locked(0, 4 * PAGE), f.locked(PAGE + 5, 0):
            await stack.aclose()
            assert spy.pages == {0, 1, 2, 3}
            assert locked_bytes(path) - before == 4 * PAGE
        async with f.locked(PAGE + 5, 0):
            assert spy.pages == set()
