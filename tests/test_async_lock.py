"""AsyncLock between processes: exclusion, and the death of a holder, which the next is told of."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager

import anyio
import pytest

import aiommap

pytestmark = pytest.mark.anyio


@pytest.fixture
async def f(path):
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as opened:
        await opened.write(0, bytes(256))
        yield opened


HOLDER = r"""
import os, sys, anyio, aiommap
path, what = sys.argv[1:]

async def main():
    f = await aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never())
    async with aiommap.AsyncLock(f, 64) as lock, f.file_lock(128, 8):
        if what == "with child" and not os.fork():
            while True:
                os.read(0, 1) or os._exit(0)
        os.write(1, b"held\n")
        await anyio.sleep_forever()

anyio.run(main)
"""


@contextmanager
def holder(path, what="alone"):
    """Another process that is inside of both locks."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("what", ["alone", "with child"])
async def test_the_death_of_a_holder_is_told_to_the_next(f, path, what):
    """Also where a forked child of the dead one lives on (K5)."""
    with holder(path, what) as process:
        lock = aiommap.AsyncLock(f, 64)
        with pytest.raises(TimeoutError, match="still locked"):
            await lock.acquire(timeout=0.05)
        with pytest.raises(TimeoutError, match="still locked"):
            async with f.file_lock(130, 1, timeout=0.05):
                pass
        found = []

        async def enter():
            async with lock:
                found.append(lock.owner_died)

        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            await anyio.wait_all_tasks_blocked()
            process.send_signal(signal.SIGKILL)
            with anyio.fail_after(10):
                while not found:
                    await anyio.sleep(0.001)
        assert found == [True]
        async with lock, f.file_lock(128, 8, timeout=10):
            assert not lock.owner_died


ADDER = """
import sys, anyio, aiommap
path, times = sys.argv[1], int(sys.argv[2])

async def main():
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
        lock = aiommap.AsyncLock(f, 64)

        async def work():
            for _ in range(times):
                async with lock:
                    assert not lock.owner_died
                    value = int.from_bytes(await f.read(0, 8), "little")
                    await anyio.sleep(0)
                    await f.write(0, (value + 1).to_bytes(8, "little"))

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(work)

anyio.run(main)
"""


async def test_processes_exclude_each_other(f, path):
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(anyio.run_process, [sys.executable, "-c", ADDER, str(path), "50"])
    assert int.from_bytes(await f.read(0, 8), "little") == 300
