"""Open files in other processes: pickled as a path and options, and opened again there."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice, FileBackend, FlushPolicy, MappedBackend, Snapshot
from tests.support.internals import core_of

pytestmark = pytest.mark.anyio

#: Run as a file, because a spawned child imports its parent's main module.
PROCESSES = """
import concurrent.futures, multiprocessing, sys, threading, anyio, aiommap

PAGE = aiommap.PAGE_SIZE

def in_child(opening, slot):
    async def main():
        async with opening as f:
            async with anyio.create_task_group() as group:
                for n in range(8):
                    group.start_soon(f.write, slot * PAGE + n * 8, bytes([65 + slot]) * 8)
            await f.flush()
            return f.path, f.mode, f.capacity, f.flush_policy
    return anyio.run(main)

def read_in_child(opening):
    async def main():
        async with opening as source:
            return type(source).__name__, await source.read_exact(0, 8)
    return anyio.run(main)

def forked(f, found):
    try:
        f.read_nowait(0, 1)
    except aiommap.ForkedError:
        found.put("ForkedError")
    # In another thread, because in this one the parent's loop seems to be running.
    anew = threading.Thread(target=lambda: found.put(in_child(aiommap.open(f.path, "r+"), 5)[0]))
    anew.start()
    anew.join()

async def main(path, method):
    context = multiprocessing.get_context(method)
    policy = aiommap.FlushPolicy.every_bytes(100)
    async with (
        aiommap.open(path, "w+", size=8 * PAGE, capacity=64 * PAGE, flush=policy) as f,
    ):
        if method == "fork":
            found = context.SimpleQueue()
            child = context.Process(target=forked, args=(f, found))
            child.start()
            child.join()
            assert child.exitcode == 0
            assert (found.get(), found.get()) == ("ForkedError", path)
            assert await f.read(5 * PAGE, 64) == b"F" * 64
            return
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            jobs = [pool.submit(in_child, f, slot) for slot in range(4)]
            found = {job.result() for job in jobs}
            assert found == {(path, "r+", 64 * PAGE, policy)}, found
            for slot in range(4):
                assert await f.read(slot * PAGE, 64) == bytes([65 + slot]) * 64
            async with aiommap.Snapshot.open(path) as s, aiommap.FileBackend.open(path) as b:
                jobs = [pool.submit(read_in_child, x) for x in (s, aiommap.MappedBackend(s), b)]
                found = [job.result() for job in jobs]
        names = ("Snapshot", "MappedBackend", "FileBackend")
        assert found == [(name, b"A" * 8) for name in names], found

if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[3])
    print("alive")
"""


def reopened(target):
    """Pickle and unpickle an object, as if to send it to another process."""
    return pickle.loads(pickle.dumps(target))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_processes_share_one_file(tmp_path, method, backend):
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    command = [sys.executable, str(script), str(tmp_path / "file"), method, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("mode", ["r", "r+", "w+", "x+"])
async def test_pickle_keeps_path_and_options(tmp_path, path, mode):
    options = {
        "capacity": 64 * PAGE,
        "flush": FlushPolicy.every_bytes(10) | FlushPolicy.max_dirty(1 << 20),
        "advice": Advice.RANDOM,
        "prewarm": True,
    }
    if mode in ("w+", "x+"):
        path, options["size"] = tmp_path / "new", 16 * PAGE
    async with aiommap.open(path, mode, **options) as f:
        if mode != "r":
            await f.write(0, b"kept")
        async with reopened(f) as again:
            assert again.mode == ("r" if mode == "r" else "r+")
            assert (again.path, again.size) == (f.path, 16 * PAGE)
            assert (again.capacity, again.flush_policy) == (64 * PAGE, f.flush_policy)
            assert core_of(again).options.advice is Advice.RANDOM
            assert core_of(again).options.prewarm
            assert await again.read(0, 4) == await f.read(0, 4)
        assert os.stat(path).st_size == 16 * PAGE


async def test_pickle_keeps_changed_settings(path):
    async with aiommap.open(path, "r+", capacity=16 * PAGE) as f:
        await f.resize(20 * PAGE)
        f.flush_policy = FlushPolicy.always()
        async with await reopened(f) as again:
            assert (again.size, again.flush_policy) == (20 * PAGE, FlushPolicy.always())


async def test_pickle_refuses_private_stores(path):
    async with aiommap.open(path, "c") as f:
        with pytest.raises(aiommap.AccessModeError, match="private stores would be lost"):
            pickle.dumps(f)


async def test_pickle_refuses_closed_objects(path):
    async with aiommap.open(path) as f, Snapshot.open(path) as s:
        pass
    for closed in (f, s):
        with pytest.raises(anyio.ClosedResourceError, match="pickle it while it is open"):
            pickle.dumps(closed)


async def test_pickle_refuses_parts_of_a_file(path):
    async with aiommap.open(path, "r+") as f:
        allocator, lock = f.allocator(0), aiommap.AsyncLock(f, 0)
        async with f.file_lock(0, 1):  # the lock that stays in the core must not change the error
            pass
        for part in (f.view(), allocator, allocator.allocate(1), lock):
            for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="cannot be copied or pickled: "):
                    duplicate(part)
        with pytest.raises(TypeError, match="cannot pickle 'WriteReceipt' object"):
            pickle.dumps(await f.write(0, b"x"))


async def test_pickle_is_no_copy(path):
    async with aiommap.open(path) as f, Snapshot.open(path) as s:
        for target in (f, s):
            for duplicate in (copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="cannot be copied: share it"):
                    duplicate(target)


@pytest.mark.parametrize("how", ["replaced", "changed", "gone"])
async def test_pickle_reopens_the_same_snapshot(path, tmp_path, how):
    os.utime(path, ns=(0, 0))
    async with Snapshot.open(path, prewarm=True) as s:
        opening = reopened(s)
        async with opening as again:
            assert isinstance(again, Snapshot)
            assert await again.read_exact(0, 1) == b"A"
        if how == "changed":
            with path.open("r+b") as file:
                file.write(b"changed")
        elif how == "gone":
            path.unlink()
        else:
            (tmp_path / "other").write_bytes(path.read_bytes())
            (tmp_path / "other").rename(path)
        error = FileNotFoundError if how == "gone" else aiommap.StaleSnapshotError
        with pytest.raises(error, match=str(path)):
            await opening


async def test_pickle_reopens_backends(path):
    async with (
        MappedBackend.open(path) as mapped,
        await aiommap.open(path) as f,
        FileBackend.open(path, size=10) as file,
    ):
        for backend in (mapped, MappedBackend(f), file):
            async with reopened(backend) as again:
                assert (type(again), again.size) == (type(backend), backend.size)
                assert await again.read_exact(9, 1) == b"A"


async def test_pickle_of_gone_snapshot_leaks_nothing(path):
    async with Snapshot.open(path) as s:
        opening = reopened(s)
        os.utime(path)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(aiommap.StaleSnapshotError, match="was changed"):
                await opening
        assert len(os.listdir("/proc/self/fd")) <= before  # one of an earlier test may close late
