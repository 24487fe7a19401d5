"""Stores by a slow pwrite(2) on the loop thread: after calls that waited, workers store.

A call that waits sleeps, or spins for the lock of the inode while another process has it. A call
that only loses the processor does neither.
"""

from __future__ import annotations

import os

import pytest

from tests.support.gates import expect_gated

BEGIN = """
m = native()
m.populate(0, SIZE, False)

def stores(count):
    return [m.write_now(i % 16 * PAGE, b"x") is not None for i in range(count)]

def slow_store(**options):
    slow("pwrite", 1, **options)
    return stores(1) == [True]
"""


def expect(code, folder):
    expect_gated(BEGIN + code, folder)


def test_second_one_that_sleeps_sends_others_to_workers(tmp_path):
    expect(
        """
slow("pwrite", 2)
assert stores(10) == [True, True] + 8 * [False]
assert m.inline_pwrites == 2
""",
        tmp_path,
    )


def test_one_that_spins_for_a_lock_waits(tmp_path):
    """Two such calls are enough, unless a busy machine takes the processor meanwhile."""
    expect(
        """
slow("pwrite", 50, "running")
found = stores(50)
assert found[:2] == [True, True]
assert not found[-1], found
""",
        tmp_path,
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="takes a processor away")
def test_one_that_loses_the_processor_sends_nobody(tmp_path):
    expect(
        """
import subprocess
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
    slow("pwrite", 20, "without the processor", 1.5)
    found = stores(30)
    other.kill()
assert found == 30 * [True], found
""",
        tmp_path,
    )


def test_one_now_and_then_sends_nobody(tmp_path):
    expect(
        """
for _ in range(5):
    assert slow_store(way="running")
    assert stores(8) == 8 * [True]
""",
        tmp_path,
    )


@pytest.mark.parametrize("way", ["asleep", "running"])
def test_a_long_sleep_is_remembered_for_longer(tmp_path, way):
    """A long run is not remembered: the host may have had the processor."""
    expect(
        f"""
assert slow_store(way="{way}", milliseconds=2)
assert stores(20) == 20 * [True]
assert slow_store(way="{way}", milliseconds=2)
assert stores(1) == [{way == "running"}]
""",
        tmp_path,
    )


def test_workers_store_for_a_second_and_one_more_is_enough_then(tmp_path):
    expect(
        """
slow("pwrite", 3)
assert stores(3) == [True, True, False]
while stores(1) == [False]:
    time.sleep(0.01)
assert stores(1) == [False]
assert m.inline_pwrites == 3
while stores(1) == [False]:
    time.sleep(0.01)
assert stores(20) == 20 * [True]
""",
        tmp_path,
    )


def test_gathered_stores_stop_at_the_second_one(tmp_path):
    expect(
        """
for at in range(8):
    assert m.write_now(at * 10, b"adjoining.")
m.expect_stores(8)
receipts = [m.gather((1 + i) * PAGE, b"gathered") for i in range(7)]
slow("pwritev", 7)
left = m.store_gathered()
stored = 7 - len(left)
assert stored in (1, 2)  # one, if an earlier store was slow as well, on a busy machine
assert [item[0] for item in left] == receipts[stored:]
assert [receipt.sequence for receipt in receipts] == [9, 10][:stored] + len(left) * [0]
assert stores(1) == [False]
""",
        tmp_path,
    )


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_a_turn_of_many_tasks_waits_twice(tmp_path, backend):
    expect_gated(
        """
        async def main():
            name = make(size=64 * PAGE)
            async with aiommap.open(name, "r+", flush=NEVER) as f:
                await f.prewarm()
                slow("pwrite", 64)
                async with anyio.create_task_group() as group:
                    for i in range(32):
                        group.start_soon(f.write, i * PAGE, bytes([65 + i]) * 100)
                found = f.statistics()
                assert (found.inline_writes, found.offloaded_writes) == (2, 30), found
                for i in range(32):
                    assert await f.read(i * PAGE, 101) == bytes([65 + i]) * 100 + b"o"

        run(main)
        """,
        tmp_path,
        backend,
    )


APPENDS = """
async def main():
    async with aiommap.Log.open(path + "/log", segment_size=1 << 16, flush=NEVER) as log:
        for _ in range(20):  # in a burst: whether the thread waited is asked at its beginning
            await log.append(b"quick")
        slow("pwrite", 20, {slow})
        for _ in range(20):
            await log.append(b"slow")
        inline = log.statistics().inline_appends
        assert {inline}, inline
        assert [record.sequence async for record in log.read()] == list(range(1, 41))

run(main)
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_append_that_sleeps_sends_others_to_workers(tmp_path, backend):
    slow = APPENDS.format(slow="milliseconds=2", inline="inline < 40")
    expect_gated(slow, tmp_path, backend)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="takes a processor away")
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_append_that_loses_the_processor_sends_nobody(tmp_path, backend):
    starved = APPENDS.format(slow='"without the processor", 1.5', inline="inline == 40")
    expect_gated(
        f"""
import subprocess
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
    try:
        exec({starved!r})
    finally:
        other.kill()
""",
        tmp_path,
        backend,
    )
