"""The faults of aiommap.testing: each is of one file, ends with its block and leaves no trace.

tests/faults/test_injected_and_real.py compares them with the faults of real devices.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from aiommap.testing import (
    failing_flush,
    full_disk,
    removed_file,
    replaced_file,
    slow_disk,
    truncated_file,
)
from tests.support.internals import core_of, disk
from tests.support.internals import opening as _opening

pytestmark = pytest.mark.anyio

SOURCES = Path(aiommap.__file__).parent


@pytest.fixture
async def f(path, anyio_backend):
    file = await aiommap.open(path, "r+")
    yield file
    try:
        await file.aclose()
    except aiommap.FlushError:
        assert file.statistics().flush_failed


@pytest.fixture
def other_path(tmp_path):
    made = tmp_path / "other"
    made.write_bytes(bytes(4 * PAGE))
    return made


def untouched(f):
    """Tell whether a file has no fault in place: its disk is the mapping, and verbs run inline."""
    core = core_of(f)
    return core.disk is core.mapping and core.mapping.declining == core.lifecycle.closing


# A flush that fails


async def test_failing_flush_fails_once_and_latches(f):
    told = anyio.Event()
    f.on_error(lambda error: told.set())
    receipt = await f.write(0, b"lost")
    with failing_flush(f) as fault:
        with pytest.raises(aiommap.FlushError, match=os.strerror(errno.EIO)) as caught:
            await f.flush()
        assert (caught.value.errno, caught.value.ranges) == (errno.EIO, ((0, PAGE),))
        with pytest.raises(aiommap.FlushError, match="flush failed"):
            await f.flush()
        assert fault.hits == 1
    assert untouched(f)
    with pytest.raises(aiommap.FlushError, match="flush failed"):
        await f.write(0, b"x")
    await told.wait()
    assert not receipt.durable
    with pytest.raises(aiommap.FlushError, match="flush failed"):
        await f.aclose()


async def test_failing_flush_tells_on_error(path):
    failed = anyio.Event()
    f = await aiommap.open(path, "r+", flush=FlushPolicy.every_writes(1))
    f.on_error(lambda error: failed.set())
    with failing_flush(f, errno.ENOSPC) as fault:
        await f.write(0, b"lost")
        await failed.wait()
        assert fault.hits == 1
    with pytest.raises(aiommap.FlushError, match=os.strerror(errno.ENOSPC)):
        await f.aclose()


async def test_fault_not_met_changes_nothing(f):
    with failing_flush(f) as fault:
        await f.flush()  # nothing is dirty, so nothing is asked of the disk
        await f.write(0, b"kept")
    assert fault.hits == 0
    await f.flush()


async def test_fault_is_of_one_file_only(f, path, other_path):
    async with aiommap.open(path, "r+") as same, aiommap.open(other_path, "r+") as other:
        with failing_flush(f), full_disk(f):
            for file in (same, other):
                await file.write(0, b"fine")
                await file.flush()
            await other.resize(64 * PAGE)


@pytest.mark.parametrize("mode", ["r", "c"])
@pytest.mark.parametrize("fault", [failing_flush, full_disk])
async def test_fault_needs_a_file_that_writes(path, mode, fault):
    async with aiommap.open(path, mode) as f:
        with pytest.raises(aiommap.AccessModeError, match='use "r\\+"'), fault(f):
            pytest.fail("there is no such fault")
        assert untouched(f)


# A full disk


async def test_full_disk_growth_changes_nothing(f, path):
    with full_disk(f) as fault:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
            await f.resize(64 * PAGE)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert (f.size, path.stat().st_size, fault.hits) == (16 * PAGE, 16 * PAGE, 1)
        await f.write(0, b"blocks are there")
        await f.resize(8 * PAGE)
        await f.flush()
    await f.resize(64 * PAGE)
    await f.write(63 * PAGE, b"room again")


async def test_full_disk_makes_no_files(tmp_path):
    full, inside = tmp_path / "full", tmp_path / "full" / "file"
    full.mkdir()
    for target in (full, inside):
        with full_disk(target) as fault:
            for mode in ("x+", "w+"):
                with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
                    await aiommap.open(inside, mode, size=PAGE)
                assert (caught.value.filename, inside.exists()) == (str(inside), False)
            assert fault.hits == 2
            async with aiommap.open(tmp_path / "fuller", "w+", size=PAGE):
                pass  # only its name begins like that of the folder
            async with aiommap.open(inside, "x+", size=PAGE, sparse=True):
                pass
            inside.unlink()
    async with aiommap.open(inside, "x+", size=PAGE):
        pass


async def test_full_disk_store_into_a_hole(tmp_path):
    async with aiommap.open(tmp_path / "file", "x+", size=64 * PAGE, sparse=True) as f:
        await f.write(0, b"a" * 2 * PAGE)
        with full_disk(f) as fault:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                await f.write(PAGE, b"b" * 2 * PAGE)
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                await f.write(40 * PAGE, b"b")
            await f.write(0, b"c")
            assert fault.hits == 2
        assert await f.read(0, 3 * PAGE) == b"c" + b"a" * (2 * PAGE - 1) + bytes(PAGE)
        await f.write(40 * PAGE, b"b")
        await f.flush()


async def test_full_disk_ends_with_the_last(f, tmp_path):
    before = [*_opening.allocation_checks]
    first, second = full_disk(f), full_disk(tmp_path)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _opening.allocation_checks != before
    second.__exit__(None, None, None)
    assert _opening.allocation_checks == before


# A slow disk


async def test_slow_disk_reads_wait_in_a_worker(f):
    with slow_disk(f) as disk:
        async with anyio.create_task_group() as group:
            read = []

            async def reader(offset):
                read.append(await f.read(offset, 2))

            group.start_soon(reader, 0)
            group.start_soon(reader, PAGE)
            await disk.wait_stalled(2)
            with pytest.raises(anyio.WouldBlock):
                f.read_nowait(0, 2)
            assert (disk.stalled, disk.hits, read) == (2, 2, [])
            disk.release()
        assert sorted(read) == [b"AA", b"BB"]
        assert await f.read(2 * PAGE, 2) == b"CC"  # the disk is fast from now on
        assert disk.hits == 2
    assert f.read_nowait(0, 2) == b"AA"


async def test_slow_disk_releases_in_order(f):
    order = []
    with slow_disk(f, only="read") as disk:
        async with anyio.create_task_group() as group:

            async def reader(name):
                await f.read(0, 1)
                order.append(name)

            for count, name in enumerate("abc", start=1):
                group.start_soon(reader, name)
                await disk.wait_stalled(count)
            for count in (1, 2, 3):
                disk.release(1)
                while len(order) < count:
                    await anyio.lowlevel.checkpoint()
    assert order == ["a", "b", "c"]


async def test_slow_disk_flush_keeps_nobody_else(f):
    """Flushes that are asked for while one runs share the next one: a group commit, in steps."""
    with slow_disk(f, only="flush") as disk:
        async with anyio.create_task_group() as group:
            await f.write(0, b"one")
            group.start_soon(f.flush)
            await disk.wait_stalled()
            receipt = await f.write(PAGE, b"two")
            group.start_soon(f.flush)
            group.start_soon(f.flush)
            assert await f.read(0, 3) == b"one"
            before = f.statistics().offloaded_reads
            await anyio.wait_all_tasks_blocked()
            disk.release(1)
            await disk.wait_stalled()
            assert (disk.hits, receipt.durable) == (2, False)
            disk.release()
        assert receipt.durable
    assert (before, f.statistics().flushes, f.statistics().flush_requests) == (0, 2, 3)


async def test_slow_disk_store_is_whole_or_withdrawn(f, path):
    with slow_disk(f, only="write") as disk:
        async with anyio.create_task_group() as group:
            group.start_soon(f.write, 0, b"begun")
            await disk.wait_stalled()
            group.start_soon(f.write, PAGE, b"waits")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
            disk.release()
    assert path.read_bytes()[:5] == b"begun"
    assert path.read_bytes()[PAGE : PAGE + 5] == b"BBBBB"


async def test_slow_disk_cancelled_read(f):
    with slow_disk(f) as disk:
        async with anyio.create_task_group() as group:
            group.start_soon(f.read, 0, 1)
            await disk.wait_stalled()
            group.cancel_scope.cancel()
        assert disk.stalled == 1
    assert disk.stalled == 0


async def test_slow_disk_waits_for_enough_calls(f):
    enough = anyio.Event()

    async def wait_for_two(disk):
        await disk.wait_stalled(2)
        enough.set()

    with slow_disk(f) as disk:
        async with anyio.create_task_group() as group:
            group.start_soon(wait_for_two, disk)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(f.read, 0, 1)
            await disk.wait_stalled(1)
            await anyio.wait_all_tasks_blocked()
            assert not enough.is_set()
            group.start_soon(f.read, 0, 1)
            await enough.wait()
            disk.release()


async def test_slow_disk_calls_go_on_by_themselves(f):
    with slow_disk(f, seconds=0.01) as disk:
        assert await f.read(0, 1) == b"A"
        await f.write(0, b"x")
        await f.flush()
        await f.aclose()
    assert disk.stalled == 0
    assert disk.hits == 3


async def test_slow_disk_holds_prewarm_and_snapshots(path):
    async with aiommap.Snapshot.open(path) as snapshot, aiommap.open(path) as f:
        for file, verb in ((snapshot, snapshot.read_exact), (f, f.prewarm)):
            with slow_disk(file, only="read") as disk:
                async with anyio.create_task_group() as group:
                    group.start_soon(verb, 0, PAGE)
                    await disk.wait_stalled()
                    disk.release()


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
async def test_slow_disk_takes_a_finite_time(f, seconds):
    with pytest.raises(ValueError, match="seconds is"), slow_disk(f, seconds=seconds):
        pytest.fail("there is no such disk")


# All faults that are only injected


@pytest.mark.parametrize("fault", [failing_flush, full_disk, slow_disk])
async def test_fault_ends_with_its_block(f, fault):
    with pytest.raises(AssertionError, match="fails"), fault(f):
        raise AssertionError("the test fails")
    assert untouched(f)
    await f.write(0, b"fine")
    await f.flush()
    await f.resize(32 * PAGE)


@pytest.mark.parametrize("fault", [failing_flush, full_disk, slow_disk])
async def test_fault_outlasts_the_file(path, fault):
    f = await aiommap.open(path, "r+")
    with fault(f) as placed:
        if fault is slow_disk:
            placed.release()
        await f.aclose()
        with pytest.raises(anyio.ClosedResourceError, match="closed"):
            await f.read(0, 1)
    assert untouched(f)
    with pytest.raises(anyio.ClosedResourceError, match="closed"), fault(f):
        pytest.fail("a closed file has no faults")


async def test_faults_of_one_file_end_in_any_order(f):
    failing, full, slow = failing_flush(f), full_disk(f), slow_disk(f, seconds=0.01)
    failing.__enter__()
    full.__enter__()
    disk = slow.__enter__()
    failing.__exit__(None, None, None)
    await f.write(0, b"fine")
    await f.flush()
    assert disk.hits == 2
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        await f.resize(64 * PAGE)
    slow.__exit__(None, None, None)
    full.__exit__(None, None, None)
    assert untouched(f)


# Faults that really happen to the file


async def test_truncated_faults_and_comes_back(f, path):
    await f.write(9 * PAGE, b"dirty")
    before = path.read_bytes()
    with truncated_file(f, 3 * PAGE + 5):
        assert path.stat().st_size == 3 * PAGE + 5
        with pytest.raises(aiommap.MappingFaultError, match="truncated") as caught:
            await f.read(3 * PAGE, PAGE)
        assert (caught.value.offset, caught.value.size) == (3 * PAGE + 5, 3 * PAGE + 5)
    assert path.read_bytes() == before
    assert await f.read(0, len(before)) == before
    await f.flush()


async def test_truncated_keeps_a_size_set_meanwhile(path):
    with truncated_file(path, PAGE):
        os.truncate(path, 2 * PAGE)
    assert path.read_bytes() == b"A" * PAGE + bytes(PAGE)


@pytest.mark.parametrize("size", [-1, 16 * PAGE, 17 * PAGE])
def test_truncated_cuts_something_off(path, size):
    with pytest.raises(ValueError, match=f"has {16 * PAGE} bytes"), truncated_file(path, size):
        pytest.fail("nothing can be cut off")
    assert path.stat().st_size == 16 * PAGE


async def test_replaced_is_another_and_comes_back(f, path):
    path.chmod(0o640)
    first = path.stat()
    with replaced_file(f, b"replacement"):
        assert (path.read_bytes(), path.stat().st_mode) == (b"replacement", first.st_mode)
        assert path.stat().st_ino != first.st_ino
        assert await f.read(0, 1) == b"A"
        await f.write(0, b"orphaned")
        await f.flush()  # it has a name yet, by which it comes back
    assert path.stat().st_ino == first.st_ino
    assert path.read_bytes()[:8] == b"orphaned"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


async def test_removed_lives_on_and_comes_back(f, path):
    with removed_file(f):
        assert not path.exists()
        await f.write(0, b"orphaned")
        await f.flush()
    assert path.read_bytes()[:8] == b"orphaned"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_replaced_by_impossible_keeps_the_path(path):
    first = path.stat()
    with pytest.raises(TypeError), replaced_file(path, "text"):
        pytest.fail("text is no content")
    assert path.stat().st_ino == first.st_ino
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "fault", [lambda p: truncated_file(p, PAGE), lambda p: replaced_file(p, b""), removed_file]
)
def test_real_fault_is_undone_on_failure(path, fault):
    before = path.read_bytes()
    with pytest.raises(AssertionError, match="fails"), fault(path):
        raise AssertionError("the test fails")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


# The seam


def test_workers_reach_the_disk_by_the_seam():
    """A call of the mapping itself would be out of the reach of every fault."""
    members = [name for name in vars(disk.Disk) if not name.startswith("_")]
    expected = "read read_into write_many append populate sync sync_range"
    assert sorted(members) == sorted(expected.split())
    past = re.compile(rf"\bmapping\.({'|'.join(members)})\(")
    found = [path.name for path in SOURCES.rglob("*.py") if past.search(path.read_text())]
    assert found == []
    called = [p.name for p in SOURCES.rglob("*.py") if "os.posix_fallocate(" in p.read_text()]
    assert called == ["opening.py"]
