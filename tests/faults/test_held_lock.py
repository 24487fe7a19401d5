"""Stores of workers while another process holds the inode's lock for long, time and again.

A worker's pwrite(2) spins for that lock then, which leaves the loop thread no processor. So workers
store through the mapping where a page is dirty already, as that asks no more of the device.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

import aiommap
from tests.support.gates import expect_gated
from tests.support.pages import dirty_pages

BEGIN = """
SIZE = 8 << 20
CLEAN = SIZE // PAGE - 1  # of another folio than the first pages
m = native(SIZE)
m.populate(0, SIZE, False)
other = os.open(os.path.join(path, "file"), os.O_RDWR)

def clean_all():
    os.fsync(other)

def make_dirty():
    for page in range(24):
        os.pwrite(other, b"dirty", page * PAGE)

clean_all()
make_dirty()
assert m.cachestat(0, PAGE)[1] == 1 and m.cachestat(CLEAN * PAGE, PAGE)[1] == 0

def stores(count):
    return [m.write_now(i % 8 * PAGE, b"x") is not None for i in range(count)]

def keep_loop_away():
    slow("pwrite", 2)
    assert stores(3) == [True, True, False]

def spin(times=20, way="running"):  # a busy machine may take the processor from some
    for _ in range(times):
        clean_all()
        slow("pwritev", 1, way)
        m.write_many([(0, b"waits")])
        slow("pwritev", 0)
    make_dirty()

def is_mapped(page, size=1):  # whether a worker needs no pwritev(2) for a store
    fail("pwritev", error=errno.EIO, on=True)
    [outcome] = m.write_many([(page * PAGE, b"w" * size)])
    fail("pwritev", 0)
    assert isinstance(outcome, _native.Receipt) or outcome == (0, errno.EIO), outcome
    return isinstance(outcome, _native.Receipt)
"""


@pytest.fixture(autouse=True)
def dirty_pages_are_told(tmp_path):
    (tmp_path / "probe").write_bytes(b"dirty")
    if not dirty_pages(tmp_path / "probe"):
        pytest.skip("this file system does not tell which pages are dirty")


def expect(code, folder):
    expect_gated(BEGIN + code, folder)


def test_dirty_page_is_stored_to_through_the_mapping(tmp_path):
    expect("keep_loop_away()\nspin()\nassert is_mapped(1)\nassert is_mapped(2)", tmp_path)


def test_loop_thread_does_not_follow_through_the_mapping(tmp_path):
    """Its store would take a fault if the page was written out meanwhile."""
    expect(
        """
keep_loop_away()
spin()
assert is_mapped(1)
assert m.write_now(PAGE, b"x") is None
""",
        tmp_path,
    )


def test_clean_page_is_not(tmp_path):
    """It would make its whole folio dirty."""
    expect("keep_loop_away()\nspin()\nassert not is_mapped(CLEAN)", tmp_path)


def test_one_worker_that_spins_tells_nothing(tmp_path):
    """It may have lost the processor, and a mapped store makes a whole folio dirty."""
    expect("keep_loop_away()\nspin(1)\nassert not is_mapped(1)", tmp_path)


def test_long_store_is_not(tmp_path):
    """It spins once for many bytes."""
    expect("keep_loop_away()\nspin()\nassert not is_mapped(1, (64 << 10) + 1)", tmp_path)


def test_worker_that_sleeps_may_wait_for_the_device(tmp_path):
    expect("keep_loop_away()\nspin(3, 'asleep')\nassert not is_mapped(1)", tmp_path)


def test_workers_are_not_looked_at_while_the_loop_thread_stores(tmp_path):
    expect("spin()\nassert not is_mapped(1)\nassert stores(8) == 8 * [True]", tmp_path)


def test_rest_of_a_call_avoids_the_lock_at_once(tmp_path):
    expect(
        """
for n in range(20):  # until two spin without losing their processor
    m = native(SIZE, name=f"of its own {n}")
    m.populate(0, SIZE, False)
    keep_loop_away()
    slow("pwritev", 1, "running", 1)
    m.write_many([(0, b"w")])
    slow("pwritev", 1, "running", 1)
    gate.gate_fail(b"pwritev", 2, errno.EIO, 1)
    found = m.write_many([(0, b"w"), (PAGE, b"w")])
    slow("pwritev", 0)
    fail("pwritev", 0)
    if found[1] != (0, errno.EIO):
        break
assert all(isinstance(item, _native.Receipt) for item in found), found
""",
        tmp_path,
    )


def test_page_that_cannot_be_stored_to_is_written(tmp_path):
    """As where the disk has no room for the folio, but for the block."""
    expect(
        """
keep_loop_away()
spin()
fail("populate", error=errno.EFAULT)
[outcome] = m.write_many([(PAGE, b"written")])
assert isinstance(outcome, _native.Receipt), outcome
assert not gate.gate_left() and os.pread(other, 7, PAGE) == b"written"
""",
        tmp_path,
    )


def test_loop_thread_stays_away_for_as_long_as_workers_spin(tmp_path):
    expect(
        """
keep_loop_away()
begun = time.monotonic()
while time.monotonic() < begun + 1.5:
    spin(1)
assert stores(1) == [False]
while stores(1) == [False]:
    time.sleep(0.01)
assert stores(20) == 20 * [True]
assert not is_mapped(9)
""",
        tmp_path,
    )


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_all_ways_keep_what_was_stored_last(tmp_path, backend):
    expect_gated(
        """
        def change(f, own, drawn):
            at, data = drawn.randrange(len(own) - 600), drawn.randbytes(drawn.choice((1, 80, 600)))
            own[at : at + len(data)] = data
            return f.write(own.at + at, data)

        class Part(bytearray):
            at = 0

        async def main():
            name = make(size=256 * PAGE)
            parts = [Part(b"o" * 32 * PAGE) for _ in range(8)]
            for i, part in enumerate(parts):
                part.at = i * 32 * PAGE

            async def work(f, own, drawn):
                for _ in range(150):
                    await change(f, own, drawn)
                    at = drawn.randrange(len(own) - 900)
                    assert bytes(await f.read(own.at + at, 900)) == own[at : at + 900]
                    if not drawn.randrange(40):
                        await f.flush()

            async with aiommap.open(name, "r+") as f:
                await f.prewarm()
                slow("pwrite", 4)
                async with anyio.create_task_group() as group:
                    for part in parts:
                        group.start_soon(work, f, part, random.Random(part.at))
                    while not f.statistics().offloaded_writes:
                        await anyio.sleep(0.001)
                    slow("pwritev", 8, "running")
                assert f.statistics().offloaded_writes > 100
            assert open(name, "rb").read() == b"".join(parts)

        run(main)
        """,
        tmp_path,
        backend,
    )


FOREIGN = """
import os, sys
fd, data = os.open(sys.argv[1], os.O_RDWR), b"f" * (8 << 20)
print("begins", flush=True)
while True:
    os.pwrite(fd, data, 8 << 20)
"""


@pytest.mark.anyio
@pytest.mark.slow
async def test_beside_a_process_that_holds_the_lock(tmp_path):
    """For real: it writes the second half of the file, and the first half is ours."""
    path = tmp_path / "file"
    path.write_bytes(b"o" * (16 << 20))
    own = bytearray(b"o" * (8 << 20))
    with subprocess.Popen([sys.executable, "-c", FOREIGN, path], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        async with aiommap.open(path, "r+") as f:
            await f.prewarm()
            for i in range(3000):
                at = i * 7919 % (len(own) - 100)
                own[at : at + 100] = bytes([i % 251]) * 100
                await f.write(at, own[at : at + 100])
                if not i % 100:
                    await f.flush()
            assert bytes(await f.read(0, len(own))) == own
        other.kill()
    with open(path, "rb") as file:
        assert file.read(len(own)) == own
