"""Mode "a+": one step opens or creates the file, and any number of processes may append."""

from __future__ import annotations

import os
import pickle
import subprocess
import threading

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap.testing import full_disk
from tests.support.gates import expect_gated
from tests.support.scripts import expect_alive
from tests.support.strict import PYTHON
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


async def test_append_mode_opens_or_creates(tmp_path):
    path = tmp_path / "new"
    for number in range(3):
        async with aiommap.open(path, "a+") as f:
            assert (f.mode, f.size) == ("a+", number)
            await f.append(b"x")
    assert path.read_bytes() == b"xxx"


async def test_append_mode_size_is_the_least(tmp_path):
    path = tmp_path / "new"
    async with aiommap.open(path, "a+", size=2 * PAGE) as f:
        assert f.size == 2 * PAGE
        await f.write(0, b"counter")
        assert path.stat().st_blocks * 512 >= 2 * PAGE
    async with aiommap.open(path, "a+", size=PAGE, sparse=True) as f:
        assert (f.size, await f.read(0, 7)) == (2 * PAGE, b"counter")
    async with aiommap.open(path, "a+", size=9 * PAGE, sparse=True) as f:
        assert f.size == path.stat().st_size == 9 * PAGE
        assert path.stat().st_blocks * 512 < 9 * PAGE


async def test_append_mode_capacity_is_the_least(path):
    """The capacity may be less than the size, because an earlier run may have appended."""
    async with aiommap.open(path, "a+", capacity=PAGE) as f:
        assert f.capacity == 16 * PAGE
    async with aiommap.open(path, "a+", capacity=1 << 30) as f:
        assert f.capacity == 1 << 30


async def test_append_mode_full_disk_leaves_the_file(tmp_path):
    path = tmp_path / "file"
    with full_disk(tmp_path), pytest.raises(OSError, match="sparse=True"):
        await aiommap.open(path, "a+", size=4 * PAGE)
    assert path.read_bytes() == b""


async def test_append_mode_is_not_undone(tmp_path):
    """Another process may have opened the file that a cancelled opening created."""
    path = tmp_path / "file"
    with anyio.CancelScope() as scope:
        scope.cancel()
        await aiommap.open(path, "a+")
    async with aiommap.open(path, "a+") as f:
        with pytest.raises(FileExistsError):
            await aiommap.open(path, "x+", size=1)
        await f.append(b"x")


async def test_append_mode_reopens_after_rotation(path):
    async with aiommap.open(path, "a+") as f:
        await f.append(b"old")
        os.rename(path, path.with_name("rotated"))
        await f.reopen()
        assert (f.mode, f.size) == ("a+", 0)
        receipt = await f.append(b"new")
        await receipt.wait_durable()
    assert path.read_bytes() == b"new"
    assert path.with_name("rotated").read_bytes().endswith(b"old")


async def test_append_mode_pickled_appends(path):
    async with aiommap.open(path, "a+") as f, pickle.loads(pickle.dumps(f)) as other:
        assert other.mode == "a+"
        one, two = await f.append(b"one"), await other.append(b"two")
        assert two.offset == one.offset + 3


async def test_append_mode_keeps_descriptors_in_balance(path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with aiommap.open(path, "a+") as f:
            await f.append(b"x")
        with pytest.raises(ValueError, match="size"):
            aiommap.open(path, "a+", size=-1)
    # The engine closes one turn of the loop after its last hub.
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize("rounds", [15, pytest.param(60, marks=pytest.mark.slow)])
async def test_append_mode_ensure_never_cuts(path, rounds):
    """While others append all the time, ensure() neither cuts their bytes off nor adds padding."""
    stop = threading.Event()
    count = 0

    def append_all_the_time():
        nonlocal count
        with open(path, "ab", buffering=0) as other:
            while not stop.is_set():
                other.write(b"#")
                count += 1

    async with aiommap.open(path, "a+", capacity=1 << 30) as f:
        other = threading.Thread(target=append_all_the_time)
        other.start()
        try:
            for _ in range(rounds):
                await f.ensure(f.size + 100)
        finally:
            stop.set()
            other.join()
    assert path.read_bytes().count(b"#") == count


FLOOD = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
print("begun", flush=True)
while True:
    os.write(fd, b"#")
"""


async def test_append_mode_tells_true_offsets(path):
    """Another process appends without a pause, so the end has moved before we can ask for it."""
    with subprocess.Popen([*PYTHON, "-c", FLOOD, path], stdout=subprocess.PIPE) as other:
        try:
            await anyio.to_thread.run_sync(other.stdout.readline)
            async with aiommap.open(path, "a+") as f:
                told = [(await f.append(b"[%d]" % i), b"[%d]" % i) for i in range(300)]
                wrong = [d for r, d in told if await f.read(r.offset, r.length) != d]
        finally:
            other.kill()
    assert wrong == []


PROCESSES, RECORDS = 4, 150


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_append_mode_offset_is_of_our_write(tmp_path, backend):
    """Another process appends after our write, and before the library asks where that began."""
    expect_gated(
        """
        async def main():
            name, receipts = make(size=PAGE), []
            async with aiommap.open(name, "a+") as f:
                async def append():
                    receipts.append(await f.append(b"mine"))

                arm("writev", after=True)
                async with anyio.create_task_group() as group:
                    group.start_soon(append)
                    assert await anyio.to_thread.run_sync(gate.gate_reached)
                    with open(name, "ab") as other:
                        other.write(b"theirs")
                    gate.gate_open()
                receipts.append(await f.append(b"next"))
                assert [r.offset for r in receipts] == [PAGE, PAGE + 10], receipts
                assert await f.read(PAGE, 14) == b"minetheirsnext"

        run(main)
        """,
        tmp_path,
        backend,
    )


def test_append_mode_beside_other_processes(tmp_path):
    """All processes create and use the file at once: no record is torn, lost or misplaced."""
    code = f"""
        import multiprocessing

        def write(number, made, barrier, results, kind):
            async def main():
                async with aiommap.open(made, "a+", size=100, capacity=PAGE) as f:
                    async def append(index):
                        data = b"[%d %d %s]" % (number, index, b"x" * (index * 37 % 900))
                        receipt = await f.append(data)
                        assert await f.read(receipt.offset, receipt.length) == data
                        told.append((receipt.offset, data))
                    async with anyio.create_task_group() as group:
                        for index in range({RECORDS}):
                            group.start_soon(append, index)
                            if index % 10 == 0:
                                await anyio.lowlevel.checkpoint()
            told = []
            barrier.wait()
            if kind == "plain":
                fd = os.open(made, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.posix_fallocate(fd, 0, 100)
                for index in range({RECORDS}):
                    os.write(fd, b"[%d %d %s]" % (number, index, b"y" * 50))
            else:
                anyio.run(main, backend="trio" if kind == "trio" else "asyncio")
            results.put((number, told))

        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            made = os.path.join(path, "shared")
            kinds = ["asyncio", "trio", "asyncio", "plain"]
            barrier, results = context.Barrier({PROCESSES}), context.Queue()
            processes = [
                context.Process(target=write, args=(number, made, barrier, results, kinds[number]))
                for number in range({PROCESSES})
            ]
            for process in processes:
                process.start()
            told = dict(results.get(timeout=100) for _ in processes)
            for process in processes:
                process.join()
                assert process.exitcode == 0
            content = open(made, "rb").read()
            assert content[:100] == bytes(100)
            for number in range({PROCESSES}):
                for offset, data in told[number]:
                    assert content[offset : offset + len(data)] == data, (number, offset)
            records = content[100:].decode().strip("[]").split("][")
            found = sorted(tuple(map(int, record.split()[:2])) for record in records)
            assert found == [(n, i) for n in range({PROCESSES}) for i in range({RECORDS})]
            print("alive")
    """
    expect_alive(code, tmp_path)
