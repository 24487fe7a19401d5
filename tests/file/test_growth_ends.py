"""A file with growable views ends at a page boundary, whoever moves the end."""

from __future__ import annotations

import os
import threading

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.internals import opening as _opening

pytestmark = pytest.mark.anyio

CAPACITY = 256 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.fixture
def slow_growth(monkeypatch):
    """Return a function that holds the reservation of blocks, and returns two events for that."""

    def begin():
        begun, ended = threading.Event(), threading.Event()

        def wait(*_):
            begun.set()
            assert ended.wait(100)

        monkeypatch.setattr(_opening, "allocation_checks", [wait])
        return begun, ended

    return begin


async def test_rotated_file_is_trimmed_at_the_end(path):
    """A reopen trims the old file as closing does, because it lives on under another name."""
    rotated = path.with_name("rotated")
    async with aiommap.open(path, "w+", size=0, capacity=CAPACITY) as f:
        with f.view(growable=True) as view:
            memory = view.memory
            memory[:5] = b"hello"
            memory.release()
        await f.flush()
        path.rename(rotated)
        path.write_bytes(b"another")
        await f.reopen()
        assert await f.read(0, 7) == b"another"
    assert rotated.stat().st_size == PAGE
    assert rotated.read_bytes().rstrip(b"\0") == b"hello"


@pytest.mark.parametrize("to", [PAGE + 100, 3 * PAGE - 100])
async def test_growable_view_refused_during_odd_resize(path, to, slow_growth):
    """The resize has looked for growable views already, and will end the file inside a page."""
    async with aiommap.open(path, "w+", size=PAGE, capacity=CAPACITY) as f:
        begun, ended = slow_growth()
        async with anyio.create_task_group() as group:
            group.start_soon(f.resize, to)
            assert await anyio.to_thread.run_sync(begun.wait, 20)
            try:
                with pytest.raises(aiommap.AlignmentError, match=rf"ensure\({to}\) first"):
                    f.view(growable=True)
            finally:
                ended.set()
        assert f.size == path.stat().st_size == to
        with pytest.raises(aiommap.AlignmentError):
            f.view(growable=True)
        await f.ensure(to)
        with f.view(growable=True) as view:
            memory = view.memory
            memory[to] = 1
            memory.release()
    assert path.read_bytes()[to] == 1


@pytest.mark.parametrize("to", [PAGE, 3 * PAGE])
async def test_growable_view_during_page_resize(path, to, slow_growth):
    async with aiommap.open(path, "w+", size=0, capacity=CAPACITY) as f:
        begun, ended = slow_growth()
        async with anyio.create_task_group() as group:
            group.start_soon(f.resize, to)
            assert await anyio.to_thread.run_sync(begun.wait, 20)
            view = f.view(growable=True)
            ended.set()
        memory = view.memory
        memory[to + 5] = 1
        memory.release()
        view.release()
    assert path.read_bytes()[to + 5] == 1


@pytest.mark.parametrize("early", [False, True], ids=["view-after", "view-before"])
async def test_store_behind_odd_end_of_others(path, early):
    """``refresh`` takes over an odd end; a growable view needs it at a page boundary."""
    async with aiommap.open(path, "w+", size=PAGE, capacity=CAPACITY) as f:
        view = f.view(growable=True) if early else None
        with path.open("ab") as other:
            other.write(b"x" * 100)
        await f.refresh()
        assert f.size == PAGE + 100
        if view is None:
            with pytest.raises(aiommap.AlignmentError, match="call ensure"):
                f.view(growable=True)
            await f.ensure(f.size)
            view = f.view(growable=True)
        memory = view.memory
        memory[PAGE + 500] = 1
        memory[5 * PAGE] = 2
        memory.release()
        view.release()
        await f.flush()
    content = path.read_bytes()
    assert content[PAGE : PAGE + 100] == b"x" * 100
    assert (content[PAGE + 500], content[5 * PAGE]) == (1, 2)


async def test_store_behind_odd_cut_of_others(path):
    """The view begins behind the lost part, so it loses no byte, and growth goes on."""
    async with aiommap.open(path, "w+", size=4 * PAGE, capacity=CAPACITY) as f:
        await f.flush()
        with f.view(4 * PAGE, growable=True) as view:
            memory = view.memory
            os.truncate(path, 2 * PAGE + 100)
            await f.refresh()
            assert f.size == 2 * PAGE + 100
            end = f._mapping.file_end
            for at in range(0, 64 * PAGE, PAGE):
                memory[at] = memory[at + 5] = 1
            assert f._mapping.file_end % PAGE == end % PAGE == 0
            memory.release()
        await f.flush()
    content = path.read_bytes()
    assert all(content[at] for at in range(4 * PAGE, 68 * PAGE, PAGE))


async def test_append_of_others_ends_at_a_page(path):
    """Growth continues behind it up to a page boundary, and the file has the whole last page."""
    async with aiommap.open(path, "w+", size=PAGE, capacity=CAPACITY) as f:
        with f.view(growable=True) as view, view.memory as memory:
            with open(path, "ab") as others:
                others.write(b"x" * 100)
            memory[2 * PAGE + 808] = 1
            end = path.stat().st_size
            assert end % PAGE == 0
            memory[end - 1] = 7
            await f.flush()
            found = path.read_bytes()
            assert (found[PAGE : PAGE + 100], found[2 * PAGE + 808]) == (b"x" * 100, 1)
            assert (found[end - 1], len(found)) == (7, end)
