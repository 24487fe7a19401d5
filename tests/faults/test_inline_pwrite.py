"""Stores by pwrite(2) on the loop thread, with a full disk, cuts by others, or a resize of ours."""

from __future__ import annotations

import os

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.devices import fill
from tests.support.disks import loop_disk, sync
from tests.support.gates import expect_gated
from tests.support.internals import core_of

pytestmark = pytest.mark.anyio
NEVER = FlushPolicy.never()


@pytest.mark.parametrize("end", [PAGE, PAGE + 50, 0], ids=["page", "within", "all"])
def test_own_shrink_waits_for_a_store(tmp_path, end):
    """Otherwise the store would make the file long again."""
    expect_gated(
        f"""
        m = native()
        with held("pwrite", m.write_now, 8 * PAGE, b"x" * 100) as store:
            assert m.pwriting
            before = m.generation
            shrink = pool.submit(m.truncate, {end})
            while m.generation == before:
                time.sleep(0)
            assert os.fstat(m.fd).st_size == SIZE
            assert m.write_now(9 * PAGE, b"x") is None
        assert outcome(store) is None
        assert outcome(shrink) is None
        assert not m.pwriting
        assert os.fstat(m.fd).st_size == m.size == {end}
        assert all(stop <= {end} for _, stop in m.dirty_runs()), m.dirty_runs()
        m.close()
        """,
        tmp_path,
    )


@pytest.mark.parametrize("cut", ["0", "at - 8 * PAGE"], ids=["all", "dirty"])
@pytest.mark.parametrize("last", [False, True], ids=["inside", "last"])
def test_cut_between_look_and_store(tmp_path, cut, last):
    """The store makes the file long again, with a hole where others cut it off."""
    expect_gated(
        f"""
        async def main():
            name = make(size=64 * PAGE)
            at = 63 * PAGE if {last} else 44 * PAGE
            async with aiommap.open(name, "r+", flush=FlushPolicy.manual()) as f:
                first = await f.write(at - 8 * PAGE, b"A" * PAGE)
                await f.prewarm()
                cut = ctypes.CFUNCTYPE(None)(lambda: os.truncate(name, {cut}))
                gate.gate_before(b"pwrite", cut)
                second = await f.write(at + 100, b"B" * (PAGE - 100))
                assert f.statistics().inline_writes == 2
                try:
                    await f.flush()
                except aiommap.FlushError as error:
                    assert name in str(error), error
                else:
                    raise AssertionError("zeros were called durable")
                assert not first.durable and not second.durable
                with contextlib.suppress(aiommap.FlushError):
                    await f.aclose()

        run(main)
        """,
        tmp_path,
    )


async def test_store_behind_a_cut_makes_nothing_longer(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"o" * 16 * PAGE)
    async with aiommap.open(path, "r+", flush=NEVER) as f:
        await f.prewarm()
        os.truncate(path, 4 * PAGE + 10)
        await f.write(4 * PAGE, b"kept bytes")
        with pytest.raises(aiommap.MappingFaultError):
            await f.write(8 * PAGE, b"lost bytes")
        for at in (4 * PAGE + 10, 4 * PAGE + 5):  # the rest of the last page takes stores
            await f.write(at, b"lost bytes")
        assert path.stat().st_size == 4 * PAGE + 10
        with pytest.raises(aiommap.FlushError):
            await f.flush()
        assert path.stat().st_size == 4 * PAGE + 10
        with pytest.raises(aiommap.FlushError):
            await f.aclose()


@pytest.mark.parametrize("error", ["EFBIG", "EPERM", "ENOSYS"])
def test_refused_pwrite_goes_through_the_mapping(tmp_path, error):
    """A limit on file sizes, a seal or a sandbox refuses it like this."""
    expect_gated(
        f"""
        m = native()
        m.populate(0, SIZE, False)
        fail("pwrite", error=errno.{error}, on=True)
        for at in range(4):
            assert m.write_now(at * PAGE, b"n" * 10) is not None
        fail("", 0)
        assert open(os.path.join(path, "file"), "rb").read()[3 * PAGE:][:11] == b"n" * 10 + b"o"
        assert m.dirty_bytes() == 4 * PAGE
        m.close()
        """,
        tmp_path,
    )


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_failed_pwrite_takes_the_slow_way(tmp_path, error):
    expect_gated(
        f"""
        m = native()
        m.populate(0, SIZE, False)
        fail("pwrite", error=errno.{error})
        assert m.write_now(0, b"n" * 10) is None
        fail("pwritev", error=errno.{error})
        assert m.write_many([(0, memoryview(b"n" * 10))]) == [(0, errno.{error})]
        assert m.sequence == 0 and not m.dirty_bytes()
        m.close()
        """,
        tmp_path,
    )


@pytest.fixture
def disk(tmp_path):
    """Yield the folder of an ext4 file system of its own."""
    with loop_disk(tmp_path, "64m", "mkfs.ext4", "-qF", "-m", "0", "-b", PAGE) as folder:
        yield folder


async def test_holes_are_stored_to_inline(disk):
    """Each store takes one page on disk and in memory, even when no flush is expected."""
    async with aiommap.open(disk / "file", "w+", size=1 << 30, sparse=True, flush=NEVER) as f:
        for i in range(64):
            await f.write(i * (16 << 20) + 12345, b"s" * 100)
        await write_until_nobody_flushes(f)
        for i in range(64):
            await f.write(i * (16 << 20) + (1 << 20) + 12345, b"s" * 100)
        found = f.statistics()
        assert (found.fell_back_writes, found.offloaded_writes) == (0, 0)
        assert (await f.residency()).resident <= 2 * 128 + 1
        await f.flush()
        assert os.stat(f.path).st_blocks * 512 <= 2 * 129 * PAGE
        assert await f.read(12344, 102) == b"\0" + b"s" * 100 + b"\0"


async def write_until_nobody_flushes(f):
    """Write until stores go through the mapping."""
    mapping = core_of(f).mapping
    before = -1
    while before < mapping.inline_pwrites:
        before = mapping.inline_pwrites
        for _ in range(100):
            await f.write(PAGE, b"x")


@pytest.mark.parametrize("length", [100, 2 * PAGE], ids=["page", "pages"])
async def test_full_disk_before_anything_is_stored(disk, length):
    async with aiommap.open(disk / "file", "w+", size=1 << 30, sparse=True, flush=NEVER) as f:
        await f.write(0, b"here" * PAGE)
        fill(disk / "ballast")
        sync(disk)
        os.truncate(disk / "ballast", os.stat(disk / "ballast").st_size - 16 * PAGE)
        written = []

        async def write_on():
            for at in range(16 << 20, 1 << 30, 16 << 20):
                await f.write(at, b"s" * length)
                written.append(at)

        with pytest.raises(OSError, match="No space") as caught:
            await write_on()
        assert caught.value.filename == f.path
        at = written[-1] + (16 << 20) if written else 16 << 20
        assert await f.read(at, length) == bytes(length)
        for at in written:
            assert await f.read(at, length) == b"s" * length
        await f.flush()
