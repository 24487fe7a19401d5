"""Processes that share a cache: each block is fetched once, and a process that dies harms none."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
from contextlib import ExitStack

import pytest

from tests.support.scripts import expect_alive
from tests.support.strict import PYTHON

BLOCK = 4096
BLOCKS = 64


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "object"
    path.write_bytes(random.Random(1).randbytes(BLOCKS * BLOCK - 100))
    return path


class Reader:
    """A process that reads; see tests/support/cache_reader."""

    def __init__(self, tmp_path, stored, seed, reads=0, room=4 * BLOCKS, backend="asyncio"):
        arguments = map(str, (tmp_path / "cache", stored, seed, reads, room, backend))
        self._process = subprocess.Popen(
            [*PYTHON, "-m", "tests.support.cache_reader", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self):
        line = self._process.stdout.readline()
        assert line == "ready\n", self._process.stderr.read()

    def go(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def result(self):
        out, err = self._process.communicate(timeout=50)
        assert self._process.returncode == 0, f"{out}{err}"
        return json.loads(out)

    def kill(self, after):
        """Kill the process after ``after`` seconds, or when it has printed something."""
        select.select([self._process.stdout], [], [], after)
        self._process.send_signal(signal.SIGKILL)
        out, _ = self._process.communicate(timeout=50)
        assert "wrong" not in out

    def stop(self):
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stream.close()


def run_together(readers):
    for reader in readers:
        reader.wait_ready()
    for reader in readers:
        reader.go()
    return [reader.result() for reader in readers]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_each_block_is_fetched_once(tmp_path, stored, count):
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(tmp_path, stored, seed)) for seed in range(count)]
        found = run_together(readers)
    assert sum(one["gets"] for one in found) == BLOCKS
    assert sum(one["stored_blocks"] for one in found) == BLOCKS
    with Reader(tmp_path, stored, 9) as later:
        assert run_together([later])[0]["gets"] == 0


@pytest.mark.slow
def test_two_processes_evict_from_each_other(tmp_path, stored):
    with ExitStack() as stack:
        readers = [
            stack.enter_context(Reader(tmp_path, stored, seed, reads=600, room=24, backend=backend))
            for seed, backend in ((1, "asyncio"), (2, "trio"))
        ]
        found = run_together(readers)
    assert sum(one["evicted_blocks"] for one in found) > 0
    assert all(one["used_bytes"] <= 24 * BLOCK for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kill_at_any_moment_harms_nobody(tmp_path, stored, seed):
    """One of two processes is killed, five times: filling, evicting, opening; the other goes on."""
    draw = random.Random(seed)
    room = draw.choice([24, 4 * BLOCKS])
    for turn in range(5):
        with ExitStack() as stack:
            doomed, other = (
                stack.enter_context(Reader(tmp_path, stored, 10 * turn + n, 300, room))
                for n in range(2)
            )
            if draw.random() < 0.8:
                doomed.wait_ready()
                doomed.go()
            other.wait_ready()
            other.go()
            doomed.kill(draw.random() * 0.3)
            other.result()
    with Reader(tmp_path, stored, 99, room=room) as later:
        run_together([later])
    disk = sum(path.stat().st_blocks for path in (tmp_path / "cache").glob("*.*")) * 512
    assert disk <= room * BLOCK


@pytest.mark.slow
def test_stopped_process_holds_nobody_up(tmp_path, stored):
    """If a process stops with blocks claimed, the process that waits for them fetches them."""
    with Reader(tmp_path, stored, 1, 2000, 24) as stopped, Reader(tmp_path, stored, 2) as other:
        stopped.wait_ready()
        other.wait_ready()
        stopped.go()
        select.select([], [], [], 0.1)
        stopped.stop()
        other.go()
        other.result()
        stopped.go_on()
        stopped.result()


def test_forked_child_is_refused_and_frees_the_locks(tmp_path):
    code = """
        from aiommap.remote import RemoteCache
        from tests.support.objects import Objects

        async def main():
            objects = Objects(bytes(100000))
            async with RemoteCache(path + "/cache", block_size=4096) as cache:
                async with cache.open(objects) as s:
                    await s.read_exact(0, 10)
                    child = os.fork()
                    if not child:
                        for verb in (s.read_exact(0, 10), s.read_exact(50000, 10), s.verify(),
                                     cache.clear(), cache.open(objects)):
                            try:
                                await verb
                            except aiommap.ForkedError:
                                continue
                            os._exit(1)
                        await s.aclose()
                        await cache.aclose()
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0
                    assert await s.read_exact(50000, 10) == bytes(10)
            print("alive")

        run(main)
    """
    expect_alive(code, tmp_path)


def test_exit_during_a_fetch(tmp_path):
    code = """
        from aiommap.remote import RemoteCache
        from tests.support.objects import Objects

        async def main():
            objects = Objects(bytes(100000))
            objects.gate.clear()
            cache = RemoteCache(path + "/cache", block_size=4096)
            s = await cache.open(objects)
            async with anyio.create_task_group() as group:
                group.start_soon(s.read_exact, 0, 10)
                await anyio.to_thread.run_sync(objects.asked.acquire)
                group.cancel_scope.cancel()
            await s.aclose()
            await cache.aclose()
            print("alive")

        run(main)
    """
    expect_alive(code, tmp_path)


def test_reader_script_finds_wrong_bytes(tmp_path, stored):
    """The oracle of these tests can fail: here an object changes and keeps its ETag."""
    with Reader(tmp_path, stored, 1) as first:
        run_together([first])
    stored.write_bytes(os.urandom(stored.stat().st_size))
    with Reader(tmp_path, stored, 2) as second:
        second.wait_ready()
        second.go()
        with pytest.raises(AssertionError, match="wrong bytes"):
            second.result()
