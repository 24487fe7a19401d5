"""Byte-range locks and AsyncLock: exclusion, turns, timeouts, cancellation, death of the holder."""

from __future__ import annotations

import fcntl
import os
import struct
import threading

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.internals import core_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def f(path):
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as opened:
        await opened.write(0, bytes(256))
        yield opened


class Stranger:
    """A program that locks the same file with fcntl(2) by itself."""

    def __init__(self, fd):
        self.fd = fd

    def lock(self, offset, length, kind=fcntl.F_WRLCK):
        request = struct.pack("hhqqi0q", kind, os.SEEK_SET, offset, length, 0)
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, request)
        except BlockingIOError:
            return False
        return True

    def unlock(self, offset, length):
        assert self.lock(offset, length, fcntl.F_UNLCK)

    def free(self, offset, length):
        """Return the offsets of the bytes that it could lock for itself."""
        found = []
        for at in range(offset, offset + length):
            if self.lock(at, 1):
                self.unlock(at, 1)
                found.append(at)
        return found


@pytest.fixture
def stranger(path):
    fd = os.open(path, os.O_RDWR)
    yield Stranger(fd)
    os.close(fd)


async def test_lock_excludes_others_from_its_range(f, stranger):
    async with f.file_lock(3, 4):
        assert stranger.free(0, 10) == [0, 1, 2, 7, 8, 9]
        async with f.file_lock(8, 1):
            assert stranger.free(0, 10) == [0, 1, 2, 7, 9]
    assert stranger.free(0, 10) == [*range(10)]


async def test_lock_shared_overlaps(f, stranger):
    """file_locks.3: a release leaves the bytes locked that the other request covers."""
    async with f.file_lock(4, 4, shared=True):
        async with f.file_lock(0, 6, shared=True):
            assert stranger.lock(0, 10, fcntl.F_RDLCK)
            stranger.unlock(0, 10)
            assert stranger.free(0, 10) == [8, 9]
        assert stranger.free(0, 10) == [0, 1, 2, 3, 8, 9]
    assert stranger.free(0, 10) == [*range(10)]


async def test_lock_waits_for_another_process(f, stranger):
    assert stranger.lock(0, 10)
    entered = anyio.Event()

    async def enter():
        async with f.file_lock(5, 10):
            entered.set()

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
        with pytest.raises(TimeoutError, match=r"bytes \[2, 3\) are still locked after 0.02"):
            async with f.file_lock(2, 1, timeout=0.02):
                raise AssertionError
        assert not entered.is_set()
        stranger.unlock(0, 10)
        with anyio.fail_after(100):
            await entered.wait()
    assert stranger.free(0, 20) == [*range(20)]


async def test_lock_is_served_in_order(f):
    order = []

    async def enter(number, offset, length, shared):
        async with f.file_lock(offset, length, shared=shared):
            order.append(number)
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as group, f.file_lock(0, 10):
        for number, wanted in enumerate(
            [(0, 4, False), (2, 4, True), (3, 1, True), (3, 4, False), (5, 1, True)]
        ):
            group.start_soon(enter, number, *wanted)
            await anyio.wait_all_tasks_blocked()
        assert order == []
    assert order[0] == 0
    assert sorted(order[1:3]) == [1, 2]
    assert order[3:] == [3, 4]


async def test_lock_of_disjoint_range_does_not_wait(f):
    async with f.file_lock(0, 4), f.file_lock(4, 4), f.file_lock(2 * PAGE, PAGE), f.file_lock(2, 0):
        pass


async def test_lock_cancelled_holds_nothing(f, stranger):
    async with anyio.create_task_group() as group:

        async def enter():
            async with f.file_lock(0, 4):
                raise AssertionError

        async with f.file_lock(0, 4):
            group.start_soon(enter)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert stranger.free(0, 4) == [*range(4)]
    assert len(f._open.locks._turns) == 0


async def test_lock_cancelled_in_the_kernel(f, stranger):
    for _ in range(20):
        with anyio.move_on_after(0) as scope:
            async with f.file_lock(0, 4):
                raise AssertionError
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:

            async def enter():
                async with f.file_lock(0, 4):
                    await anyio.sleep_forever()

            group.start_soon(enter)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert stranger.free(0, 4) == [*range(4)]
    assert len(f._open.locks._turns) == 0


async def test_lock_excludes_other_files_here(f, path):
    async with aiommap.open(path, "r+") as other:
        async with f.file_lock(0, 4):
            with pytest.raises(TimeoutError, match="still locked"):
                async with other.file_lock(0, 1, timeout=0.01):
                    pass
        async with other.file_lock(0, 4):
            pass


async def test_lock_of_a_reader_is_shared_only(path):
    for mode in ("r", "c"):
        async with aiommap.open(path, mode) as f:
            async with f.file_lock(0, 4, shared=True):
                pass
            with pytest.raises(aiommap.AccessModeError, match="shared=True"):
                async with f.file_lock(0, 4):
                    pass


async def test_close_unlocks_and_ends_waits(path, stranger):
    f = await aiommap.open(path, "r+")
    async with anyio.create_task_group() as group:

        async def enter(offset):
            with pytest.raises(anyio.ClosedResourceError, match="closed"):
                async with f.file_lock(offset, 4):
                    pass

        assert stranger.lock(100, 1)
        async with f.file_lock(0, 4):
            group.start_soon(enter, 0)
            group.start_soon(enter, 98)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(100):
                await f.aclose()
            assert stranger.free(0, 4) == [*range(4)]
    with pytest.raises(anyio.ClosedResourceError, match="closed"):
        async with f.file_lock(0, 1):
            pass


async def test_async_lock_lets_one_task_in(f):
    lock, same = aiommap.AsyncLock(f, 64), aiommap.AsyncLock(f, 64)
    inside = 0

    async def work(own):
        nonlocal inside
        async with own as held:
            assert held is own
            assert not own.owner_died
            inside += 1
            assert inside == 1
            assert f.atomic_u32(68).load() == os.getpid()
            await anyio.sleep(0)
            inside -= 1

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(work, (lock, same)[number % 2])
    assert not lock.locked
    assert f.atomic_u32(68).load() == 0


async def test_async_lock_times_out(f):
    lock = aiommap.AsyncLock(f, 64)
    assert await lock.acquire() is True
    assert not lock.owner_died
    with pytest.raises(TimeoutError, match="still locked"):
        await aiommap.AsyncLock(f, 64).acquire(timeout=0.01)
    await lock.release()
    assert await lock.acquire(timeout=0.5) is True
    await lock.release()
    with pytest.raises(RuntimeError, match="not held"):
        await lock.release()


async def test_async_lock_left_by_exception(f):
    lock = aiommap.AsyncLock(f, 64)
    with pytest.raises(ZeroDivisionError):
        async with lock:
            raise ZeroDivisionError
    async with lock:
        assert not lock.owner_died


async def test_lock_where_none_can_be(f, path):
    with pytest.raises(aiommap.AlignmentError, match="multiple of 4"):
        aiommap.AsyncLock(f, 2)
    with pytest.raises(aiommap.OutOfBoundsError, match="only"):
        aiommap.AsyncLock(f, f.size - 4)
    for mode in ("r", "c"):
        async with aiommap.open(path, mode) as other:
            with pytest.raises(aiommap.AccessModeError, match="keep a lock in"):
                aiommap.AsyncLock(other, 0)


async def test_lock_leaves_nothing_behind(path):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    async def turn():
        async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
            await f.write(0, bytes(256))
            word = f.atomic_u32(0)
            async with f.file_lock(128, 8), aiommap.AsyncLock(f, 64):
                with pytest.raises(TimeoutError):
                    await word.wait(0, timeout=0.0001)

    await turn()
    before = descriptors(), threading.active_count()
    for _ in range(30):
        await turn()
    # There may be idle workers, and garbage of other tests; but not one for each turn.
    assert descriptors() < before[0] + 15
    assert threading.active_count() < before[1] + 15


async def test_lock_shared_left_in_the_same_turn(f, stranger):
    """file_locks.3: neither release may count the other request, which ends as well."""

    async def hold(offset, go, *, task_status):
        async with f.file_lock(offset, 10, shared=True):
            task_status.started()
            await go.wait()

    for _ in range(5):
        async with anyio.create_task_group() as group:
            go = anyio.Event()
            await group.start(hold, 0, go)
            await group.start(hold, 5, go)
            go.set()
        assert stranger.free(0, 20) == [*range(20)]


async def test_lock_refused_releases_its_range(f, stranger):
    """file_locks.3: only granted requests count, not those that the kernel may grant later."""
    assert stranger.lock(15, 1)
    async with anyio.create_task_group() as group:

        async def enter():
            async with f.file_lock(5, 15, shared=True):
                raise AssertionError

        async with f.file_lock(0, 10, shared=True):
            group.start_soon(enter)
            await anyio.sleep(0.01)  # the kernel may have refused it by then; both cases are right
        with anyio.fail_after(100):
            while not stranger.lock(5, 1):
                await anyio.sleep(0.001)
        group.cancel_scope.cancel()


async def test_lock_without_time_takes_what_is_free(f, stranger):
    async with f.file_lock(0, 4, timeout=0):
        assert stranger.free(0, 5) == [4]
        with pytest.raises(TimeoutError, match="still locked after 0 seconds"):
            async with f.file_lock(3, 1, timeout=0):
                raise AssertionError
        async with f.file_lock(8, 4, shared=True, timeout=-1):
            pass
    assert stranger.lock(0, 4)
    with pytest.raises(TimeoutError, match="still locked after 0 seconds"):
        async with f.file_lock(3, 4, timeout=0):
            raise AssertionError
    lock = aiommap.AsyncLock(f, 64)
    assert await lock.acquire(0) is True
    with pytest.raises(TimeoutError):
        await aiommap.AsyncLock(f, 64).acquire(0)
    await lock.release()


def replace(path):
    other = path.with_name("other")
    other.write_bytes(bytes(4 * PAGE))
    os.replace(other, path)


async def retired(core):
    with anyio.fail_after(100):
        while not core.mapping.closed:
            await anyio.sleep(0.001)


async def test_reopen_inside_a_lock_keeps_it(f, path, stranger):
    old = core_of(f)
    async with f.file_lock(0, 4):
        async with f.file_lock(8, 2):
            replace(path)
            await f.reopen()
            await retired(old)
            assert stranger.free(0, 12) == [4, 5, 6, 7, 10, 11]
            async with f.file_lock(0, 4, timeout=10):  # on the new file
                pass
        assert stranger.free(0, 12) == [*range(4, 12)]
    assert stranger.free(0, 12) == [*range(12)]


async def test_close_after_reopen_drops_old_locks(path, stranger):
    async with aiommap.open(path, "r+") as f:
        old = core_of(f)
        lock = aiommap.AsyncLock(f, 0)
        await lock.acquire()
        replace(path)
        await f.reopen(discard=True)
        await retired(old)
        assert stranger.free(0, 10) == [8, 9]
    assert stranger.free(0, 10) == [*range(10)]
    await lock.release()


async def test_lock_waiting_through_reopen_is_refused(f, path, stranger):
    ended = []

    async def enter(offset):
        with pytest.raises(anyio.ClosedResourceError, match="was reopened"):
            async with f.file_lock(offset, 1):
                raise AssertionError
        ended.append(offset)

    assert stranger.lock(20, 1)
    async with f.file_lock(0, 4), anyio.create_task_group() as group:
        for offset in (1, 1, 3, 20):  # three wait for a task, one for a stranger
            group.start_soon(enter, offset)
        await anyio.wait_all_tasks_blocked()
        replace(path)
        await f.reopen()
        with anyio.fail_after(100):
            while len(ended) < 4:
                await anyio.sleep(0.001)
        assert stranger.free(0, 5) == [4]


async def test_async_lock_belongs_to_its_file(f, path):
    held, waiting, free = (aiommap.AsyncLock(f, offset) for offset in (0, 0, 8))
    async with held, anyio.create_task_group() as group:

        async def enter():
            with pytest.raises(anyio.ClosedResourceError, match="was reopened"):
                await waiting.acquire()

        group.start_soon(enter)
        await anyio.wait_all_tasks_blocked()
        replace(path)
        await f.reopen(discard=True)
        with pytest.raises(anyio.ClosedResourceError, match="was reopened"):
            await free.acquire()
        async with aiommap.AsyncLock(f, 0) as anew:
            assert not anew.owner_died
    assert not held.locked
    with pytest.raises(anyio.ClosedResourceError, match="was reopened"):
        await held.acquire()
