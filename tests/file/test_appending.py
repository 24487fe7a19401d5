"""Appending: each append gets its own range at the end, and the file is never longer than that."""

from __future__ import annotations

import errno
import os
import threading

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import AccessModeError, ChangeKind, FlushError, FlushPolicy
from aiommap.testing import failing_flush, full_disk
from tests.support.disks import disk_with
from tests.support.internals import workers_of
from tests.support.limiters import held, until_queued
from tests.support.scripts import expect_alive

pytestmark = pytest.mark.anyio

MODES = {"r+": {}, "w+": {"size": 3}, "x+": {"size": 3}, "a+": {}}
every_mode = pytest.mark.parametrize("mode", MODES)


def prepare(path, mode):
    """Open the path in a mode, with three bytes in the file."""
    path.unlink()
    if mode in ("r+", "a+"):
        path.write_bytes(bytes(3))
    return aiommap.open(path, mode, **MODES[mode])


async def append_all(f, pieces):
    """Append each piece in a task of its own; return receipts in the order of the requests."""
    receipts = {}

    async def append(piece):
        number = len(receipts)
        receipts[number] = None
        receipts[number] = await f.append(piece)

    async with anyio.create_task_group() as group:
        for piece in pieces:
            group.start_soon(append, piece)
    return list(receipts.values())


@every_mode
async def test_append_makes_longer_by_exactly_it(path, mode):
    async with prepare(path, mode) as f:
        for length in (1, 0, 5, PAGE, 3 * PAGE + 1, 9 << 20):
            before = f.size
            receipt = await f.append(b"x" * length)
            assert (receipt.offset, receipt.length) == (before, length)
            assert f.size == path.stat().st_size == before + length
        assert await f.read(0, f.size) == path.read_bytes()
        assert path.read_bytes() == bytes(3) + b"x" * (f.size - 3)
        size = f.size
        await receipt.wait_durable()
        assert receipt.durable
    assert path.stat().st_size == size


@every_mode
async def test_append_by_many_tasks_keeps_ranges_apart(path, mode):
    pieces = [b"%05d\n" % i * (1 + i % 7) for i in range(500)]
    async with prepare(path, mode) as f:
        receipts = await append_all(f, pieces)
        content = path.read_bytes()
        end = 3
        for receipt in receipts:  # in the order of the requests (I9)
            assert receipt.offset == end
            end += receipt.length
        found = [content[r.offset : r.offset + r.length] for r in receipts]
        assert sorted(found) == sorted(pieces)
        assert f.size == end == len(content)
        assert len({r.sequence for r in receipts}) == len(pieces)


async def test_append_of_waiting_tasks_is_one_hop(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        workers = workers_of(f)
        async with anyio.create_task_group() as group:
            with held(workers, workers.flushes):
                group.start_soon(f.append, b"first")
                await until_queued(workers.flushes)
                for _ in range(50):
                    group.start_soon(f.append, b"together")
                await anyio.wait_all_tasks_blocked()
        assert f.statistics().flushes == 2
        assert f.statistics().dirty_bytes == 0
        assert path.read_bytes()[16 * PAGE :] == b"first" + 50 * b"together"


@pytest.mark.parametrize("mode", ["r+", "a+"])
async def test_append_never_shows_what_is_not_written(path, mode):
    """At every moment a reader of another program sees a prefix of the appended bytes."""
    stop, bad = threading.Event(), []

    def read_all_the_time():
        while not stop.is_set():
            data = path.read_bytes()[3:]
            if data.strip(b"x"):
                bad.append(data)

    async with prepare(path, mode) as f:
        reader = threading.Thread(target=read_all_the_time)
        reader.start()
        try:
            for _ in range(10):
                await append_all(f, [b"x" * n for n in range(1, 60)])
        finally:
            stop.set()
            reader.join()
    assert not bad


async def test_append_refused_where_the_file_cannot_grow(path):
    for mode in ("r", "c"):
        async with aiommap.open(path, mode) as f:
            with pytest.raises(AccessModeError, match="append to"):
                await f.append(b"x")
    async with aiommap.open(path, "a+", capacity=64 * PAGE) as f:
        with pytest.raises(AccessModeError, match="growable view"):
            f.view(growable=True)
        with pytest.raises(TypeError):
            await f.append("text")
    with pytest.raises(anyio.ClosedResourceError):
        await f.append(b"x")


async def test_append_keeps_views_without_capacity(path):
    """The file is mapped again, and the views go on showing what is written."""
    async with aiommap.open(path, "r+") as f:
        with f.view(0, PAGE) as view:
            memory = view.memory
            for _ in range(5):
                await f.append(b"y" * (8 << 20))
            await f.write(0, b"seen")
            assert bytes(memory[:4]) == b"seen"
            assert f.view(f.size - 2, 2).memory.tobytes() == b"yy"


async def test_append_within_capacity_moves_nothing(path):
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        capacity = f.capacity
        await f.append(b"y" * 40 * PAGE)
        assert f.capacity == capacity


async def test_append_behind_a_fence(path):
    """The view of a tail that was cut off shows the bytes that are appended in its place."""
    async with aiommap.open(path, "r+") as f, f.locked():
        with f.view(8 * PAGE, 4) as view:
            assert view.memory.tobytes() == b"IIII"
            await f.resize(8 * PAGE)
            assert view.memory.tobytes() == bytes(4)
            receipt = await f.append(b"next" * PAGE)
            assert receipt.offset == 8 * PAGE
            assert view.memory.tobytes() == b"next"
    assert path.read_bytes()[8 * PAGE :] == b"next" * PAGE


async def test_append_beside_growable_view(path):
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        view = f.view(growable=True)
        one = await f.append(b"one")
        assert path.stat().st_size == 17 * PAGE  # whole pages, while there is such a view
        two = await f.append(b"two")
        assert (one.offset, two.offset) == (16 * PAGE, 16 * PAGE + 3)
        view.memory[20 * PAGE] = 7
        three = await f.append(b"three")
        assert three.offset > 20 * PAGE
        assert not three.offset % PAGE
        end = three.offset + 5
        del view
    assert path.stat().st_size == end
    assert path.read_bytes()[16 * PAGE :][:6] == b"onetwo"
    assert path.read_bytes()[-5:] == b"three"


async def test_append_after_ensure_follows_the_size(path):
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        await f.ensure(16 * PAGE + 10)
        receipt = await f.append(b"end")
        assert receipt.offset == 16 * PAGE + 10
    assert path.read_bytes()[16 * PAGE :] == bytes(10) + b"end"


@pytest.mark.parametrize("mode", ["r+", "a+"])
async def test_append_goes_behind_what_others_appended(path, mode):
    async with aiommap.open(path, mode) as f:
        await f.append(b"ours")
        with open(path, "ab") as other:
            other.write(b"theirs")
        receipt = await f.append(b"ours again")
        assert receipt.offset == 16 * PAGE + 10
        assert f.size == receipt.offset + receipt.length
        assert await f.read(16 * PAGE, 20) == b"ourstheirsours again"


@pytest.mark.parametrize("mode", ["r+", "a+"])
async def test_append_goes_to_the_end_where_others_cut(path, mode, outside):
    async with aiommap.open(path, mode) as f:
        await f.append(b"ours")
        await f.flush()
        outside(path, 5)
        receipt = await f.append(b"next")
        assert (receipt.offset, f.size) == (5, 9)
        await f.flush()
    assert path.read_bytes() == b"AAAAAnext"


@pytest.mark.parametrize("mode", ["r+", "a+"])
async def test_append_fails_once_unflushed_bytes_were_cut(path, mode, outside):
    """Bytes that were not durable are lost: neither zeros nor later bytes hide that (I4, I5)."""
    async with aiommap.open(path, mode, flush=FlushPolicy.never()) as f:
        await f.append(b"ours")
        outside(path, 0)
        for _ in range(2):
            with pytest.raises(FlushError, match="truncated"):
                await f.append(b"next")
        with pytest.raises(FlushError):
            await f.aclose()
    assert path.read_bytes() == b""


@every_mode
async def test_append_on_full_disk_leaves_nothing(path, mode):
    async with prepare(path, mode) as f:
        with full_disk(f) as fault:
            with pytest.raises(OSError, match="No space") as caught:
                await f.append(b"x" * 8 * PAGE)
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.filename == str(path)
            assert fault.hits
        assert path.stat().st_size == f.size == 3
        assert (await f.append(b"later")).offset == 3


@pytest.mark.parametrize("fault", ["full_tmpfs", "full_ext4"])
@pytest.mark.parametrize("mode", ["r+", "a+"])
async def test_append_that_stops_half_way(tmp_path, mode, fault):
    """In "r+" the file is cut back; in "a+" the error says how many bytes are left, and where."""
    with disk_with(fault, tmp_path) as folder:
        path = folder / "file"
        path.write_bytes(b"begin")
        async with aiommap.open(path, mode) as f:
            receipts, errors = [], []
            for number in range(12):
                try:
                    receipts.append(await f.append(b"%x" % number * 500_000))
                except OSError as error:
                    errors.append(error)
            assert {error.errno for error in errors} == {errno.ENOSPC}
            size = path.stat().st_size
            assert f.size == size
            for number, receipt in enumerate(receipts):
                data = await f.read(receipt.offset, receipt.length)
                assert data == b"%x" % number * 500_000
            kept = 5 + sum(r.length for r in receipts)
            torn = [str(error) for error in errors if "the first" in str(error)]
            if mode == "r+":
                assert (size, torn) == (kept, [])
            elif size > kept:
                count = int(torn[0].split("the first ")[1].split()[0])
                assert f"the file, at {kept}" in torn[0]
                assert count <= size - kept
            assert path.read_bytes().startswith(b"begin")
            os.truncate(path, size)  # on such a full disk the flush may lack blocks for it
            await f.flush()


def test_append_beyond_limit_on_file_size(tmp_path):
    code = """
        import resource
        async def main():
            for mode in ("r+", "a+"):
                made = make(mode, 10)
                resource.setrlimit(resource.RLIMIT_FSIZE, (15, resource.RLIM_INFINITY))
                async with aiommap.open(made, mode) as f:
                    for _ in range(2):
                        try:
                            await f.append(b"x" * 8)
                        except OSError as error:
                            assert error.errno == errno.EFBIG, error
                            assert mode == "r+" or _ or "the first 5" in str(error), error
                        else:
                            raise AssertionError("it was appended")
                        assert f.size == os.stat(made).st_size == (10 if mode == "r+" else 15)
                    if mode == "r+":
                        assert (await f.append(b"fits!")).offset == 10
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            print("alive")

        run(main)
    """
    expect_alive(code, tmp_path)


async def test_append_raises_after_failed_flush(path):
    async with aiommap.open(path, "a+") as f:
        receipt = await f.append(b"x")
        with failing_flush(f), pytest.raises(FlushError):
            await receipt.wait_durable()
        for _ in range(2):
            with pytest.raises(FlushError):
                await f.append(b"y")
        with pytest.raises(FlushError):
            await f.aclose()
    assert path.stat().st_size == 16 * PAGE + 1


async def test_append_under_always_fails_with_its_flush(path):
    async with aiommap.open(path, "a+", flush=FlushPolicy.always()) as f:
        with failing_flush(f), pytest.raises(FlushError):
            await f.append(b"x")
        with pytest.raises(FlushError):
            await f.aclose()


async def test_append_counts_for_policies(path):
    policy = FlushPolicy.every_writes(10) | FlushPolicy.max_dirty(4 * PAGE)
    async with aiommap.open(path, "a+", flush=policy) as f:
        receipts = [await f.append(b"x" * PAGE) for _ in range(25)]
        assert f.statistics().dirty_bytes <= 4 * PAGE
        assert f.statistics().offloaded_writes == 25
        assert receipts[0].durable
        await f.flush()
        assert all(r.durable for r in receipts)


async def test_append_with_inline_writes_off(path):
    async with aiommap.open(path, "a+", inline_writes=False) as f:
        receipt = await f.append(b"xyz")
        await f.write(receipt.offset + 1, b"Y")
        assert await f.read(receipt.offset, 3) == b"xYz"


async def test_append_wakes_order_with_resize(path):
    """Changes of size and appends happen in the order of the requests."""
    async with aiommap.open(path, "r+") as f:
        workers = workers_of(f)
        async with anyio.create_task_group() as group:
            with held(workers, workers.control, workers.stores):
                group.start_soon(f.resize, 0)
                await anyio.wait_all_tasks_blocked()
                group.start_soon(f.append, b"one")
                await anyio.wait_all_tasks_blocked()
                group.start_soon(f.resize, 2)
                await anyio.wait_all_tasks_blocked()
                group.start_soon(f.append, b"two")
                await anyio.wait_all_tasks_blocked()
        assert path.read_bytes() == b"ontwo"


async def test_watch_tells_appends_of_others_from_ours(path):
    async with aiommap.open(path, "a+") as f, f.watch(poll_interval=0.02) as changes:
        await f.append(b"ours")
        with open(path, "ab") as other:
            other.write(b"theirs")
        await f.append(b"ours")
        with anyio.fail_after(100):
            async for change in changes:
                assert change.kind is ChangeKind.GROWN
                break
        assert change.new.size >= 16 * PAGE + 10


def test_append_raises_in_forked_child(tmp_path):
    code = """
        async def main():
            async with aiommap.open(make(), "a+") as f:
                child = os.fork()
                if not child:
                    try:
                        await f.append(b"x")
                    except aiommap.ForkedError:
                        os._exit(0)
                    os._exit(1)
                assert os.waitpid(child, 0)[1] == 0
                await f.append(b"x")
            print("alive")

        run(main)
    """
    expect_alive(code, tmp_path)
