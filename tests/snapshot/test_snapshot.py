"""Snapshots: what was at a path when it was opened, whatever happens there afterwards."""

from __future__ import annotations

import errno
import os

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Snapshot
from tests.support.fork_server import run_code
from tests.support.internals import core_of

pytestmark = pytest.mark.anyio

SIZE = 16 * PAGE

#: Offsets and lengths at which errors are likely.
EDGES = (0, 1, PAGE - 1, PAGE, PAGE + 1, SIZE - 1, SIZE, SIZE + 1, 2**63 - 1, 2**64, -1)


async def test_read_within_and_refuse_beyond(path):
    content = path.read_bytes()
    async with Snapshot.open(path) as s:
        assert (s.size, len(s), s.path, s.closed) == (SIZE, SIZE, str(path), False)
        for offset in EDGES:
            for length in EDGES:
                if min(offset, length) >= 0 and offset + length <= SIZE:
                    assert await s.read_exact(offset, length) == content[offset : offset + length]
                    continue
                with pytest.raises(aiommap.OutOfBoundsError, match=r"only \d+:|negative") as caught:
                    await s.read_exact(offset, length)
                error = caught.value
                assert (error.offset, error.length, error.limit) == (offset, length, SIZE)
    assert s.closed
    with pytest.raises(anyio.ClosedResourceError, match="is closed"):
        await s.read_exact(0, 1)
    assert (s.size, repr(s)) == (SIZE, f"<Snapshot {path} closed>")


async def test_open_awaited_is_closed_by_caller(path):
    s = await Snapshot.open(path, prewarm=True, advice=aiommap.Advice.RANDOM)
    assert await s.read_exact(0, 1) == b"A"
    async with s as same:
        assert same is s
    assert s.closed
    await s.aclose()


async def test_open_empty_file_is_nothing(tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    async with Snapshot.open(empty) as s:
        assert (s.size, await s.read_exact(0, 0), bytes(s.view().memory)) == (0, b"", b"")
        await s.verify()


async def test_open_directory_is_refused(tmp_path):
    with pytest.raises(aiommap.UnsupportedError, match="it is a directory"):
        await Snapshot.open(tmp_path)


async def test_hub_closes_shared_snapshots(path):
    async with aiommap.Hub() as hub:
        first = await Snapshot.open(path, hub=hub)
        second = await Snapshot.open(path, hub=hub)
        assert len(hub.files) == 2
        with first.hold():
            await hub.aclose()
            assert first.closed
        assert second.closed


async def test_read_with_a_thousand_readers(path):
    content = path.read_bytes()
    async with Snapshot.open(path) as s:

        async def read(start):
            for length in range(1, 200, 7):
                assert await s.read_exact(start, length) == content[start : start + length]

        async with anyio.create_task_group() as group:
            for i in range(1000):
                group.start_soon(read, i * 61)


@pytest.mark.parametrize("how", ["rename", "unlink"])
async def test_replaced_path_changes_nothing(path, tmp_path, how):
    content = path.read_bytes()
    async with Snapshot.open(path) as s:
        if how == "unlink":
            path.unlink()
        else:
            other = tmp_path / "other"
            other.write_bytes(b"other")
            other.rename(path)
        assert await s.read_exact(0, SIZE) == content
        await s.verify()


@pytest.mark.parametrize("kept", [0, 5 * PAGE, 5 * PAGE + 100], ids=["0", "page", "mid-page"])
async def test_read_bytes_cut_off_is_an_error(path, outside, kept):
    content = path.read_bytes()
    async with Snapshot.open(path, prewarm=True) as s:
        outside(path, kept)
        assert await s.read_exact(0, kept) == content[:kept]
        for offset, length in ((kept, 1), (0, SIZE), (SIZE - PAGE, PAGE), (kept, SIZE - kept)):
            with pytest.raises(
                aiommap.MappingFaultError, match=f"shrank to {kept} bytes"
            ) as caught:
                await s.read_exact(offset, length)
            assert (caught.value.offset, caught.value.size) == (max(kept, offset), kept)
            assert caught.value.copied == max(kept, offset) - offset
        with pytest.raises(aiommap.StaleSnapshotError, match=f"it has {kept}") as caught:
            await s.verify()
        assert (caught.value.opened_size, caught.value.size) == (SIZE, kept)
        assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("change", ["overwrite", "overwrite-p", "append", "truncate-and-extend"])
async def test_verify_finds_a_change_in_place(path, change):
    os.utime(path, ns=(0, 0))  # so that the change cannot have the same time
    async with Snapshot.open(path) as s:
        await s.verify()
        if change == "truncate-and-extend":
            os.truncate(path, PAGE)
            os.truncate(path, SIZE)
        else:
            with path.open("ab" if change == "append" else "r+b") as file:
                file.write(b"changed")
        if change == "overwrite-p":
            os.utime(path, ns=(0, 0))
        with pytest.raises(aiommap.StaleSnapshotError, match="was changed"):
            await s.verify()
        assert s.size == SIZE


async def test_hold_outlives_close(path):
    s = await Snapshot.open(path)
    view = s.view(0, PAGE)
    done = anyio.Event()

    async def close():
        await s.aclose()
        done.set()

    async with anyio.create_task_group() as group:
        with s.hold() as held, s.hold():
            assert held is s
            group.start_soon(close)
            group.start_soon(s.aclose)
            await anyio.wait_all_tasks_blocked()
            assert not s.closed
            assert not done.is_set()
            assert await s.read_exact(PAGE, 3) == b"BBB"
            with pytest.raises(anyio.ClosedResourceError, match="is closed"), s.hold():
                pass
        assert s.closed
    assert done.is_set()
    assert view.memory == b"A" * PAGE


async def test_close_cancelled_ends_with_last_hold(path):
    s = await Snapshot.open(path)
    with s.hold():
        with anyio.move_on_after(0):
            await s.aclose()
        assert await s.read_exact(0, 1) == b"A"
    assert s.closed
    await s.aclose()
    assert core_of(s).mapping.closed


async def test_verb_cancelled_leaves_it_usable(path):
    with path.open("r+b") as file:
        file.truncate(4 << 20)  # more than is ever read on the loop thread
    async with Snapshot.open(path) as s:
        for verb in (s.verify, lambda: s.read_exact(0, s.size)):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await verb()
            assert scope.cancelled_caught
            await verb()


async def test_views_are_read_only(path):
    async with Snapshot.open(path) as s:
        with s.view(PAGE, 4) as view:
            assert view.memory.readonly
            assert await view.read(0, 4) == b"BBBB"
            with pytest.raises(aiommap.AccessModeError, match="opened with mode"):
                await view.write(0, b"x")


LEFT_OPEN = """
import sys, anyio, aiommap

async def main():
    s = await aiommap.Snapshot.open(sys.argv[1])
    s.hold().__enter__()
    assert await s.read_exact(0, 1)

anyio.run(main)
print("alive")
"""


def test_left_open_and_held_is_harmless(path):
    done = run_code(LEFT_OPEN, path)
    assert (done.stdout, done.returncode) == ("alive\n", 0), done.stderr
