"""Real devices that fail and real disks that fill up; see ``devices``.

A device fails before the bytes are written that it has to lose: a sync(2) by any program of the
machine could store them in between.
"""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice, FlushPolicy
from tests.support.devices import COLD, PAGES, fill, opened
from tests.support.fork_server import run_code
from tests.support.pages import resident_pages

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PIN = """
import sys, anyio, aiommap
path, offset = sys.argv[1], int(sys.argv[2])

async def main():
    async with aiommap.open(path) as f:
        try:
            async with f.locked(offset):
                print("locked what cannot be read")
        except aiommap.MappingFaultError as error:
            print(error.offset)

anyio.run(main)
"""

VERIFY = """
import os, signal, sys
from tests.support.internals import Blocks

# One block; only its last page is in memory.
path, words, page, pages = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])
fd = os.open(path, os.O_RDWR)
blocks = Blocks(os.open(words, os.O_RDWR), fd, pages * page, 20, 1, 0)
if blocks.missing(0, 1):
    claims, _ = blocks.claim(0, 1)
    assert blocks.store(claims, b"sums" * (pages * page >> 2), 0) == (1, 0)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, page, (pages - 1) * page)
else:
    if sys.argv[5:]:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
    print(blocks.verify(0, 1), blocks.missing(0, 1))
"""


@pytest.fixture
def anyio_backend():
    """One loop is enough, because a device does not know which loop uses it."""
    return "asyncio"


@pytest.fixture(params=[errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def failure(request):
    return request.param


async def expect_latched(f, receipt, number):
    """Check that later verbs raise the errno of the first failure, and that reads go on."""
    for verb in (
        lambda: f.write(0, b"x"),
        lambda: f.write(0, b"x" * (PAGES // 2) * PAGE),
        lambda: f.write_many([(0, b"x")]),
        f.flush,
        lambda: f.flush_range(0, PAGE),
        lambda: f.flush_range(receipt),
        receipt.wait_durable,
        lambda: f.resize(2 * PAGES * PAGE),
    ):
        with pytest.raises(aiommap.FlushError, match="flush failed") as caught:
            await verb()
        assert caught.value.errno == number
    assert not receipt.durable
    assert await f.read(0, 4) == b"safe"
    with pytest.raises(aiommap.FlushError, match="flush failed") as caught:
        await f.aclose()
    assert (caught.value.errno, f.closed) == (number, True)


async def test_write_back_failure_latches(disk, failure):
    async with opened(disk) as f:
        disk.fail(failure)
        receipt = await f.write(100 * PAGE, b"lost" * 5 * PAGE)
        with pytest.raises(aiommap.FlushError, match=os.strerror(failure)) as caught:
            await f.flush()
        assert caught.value.errno == failure
        assert caught.value.path == str(disk.folder / "file")
        assert caught.value.ranges == ((100 * PAGE, 120 * PAGE),)
        disk.work_again()
        await expect_latched(f, receipt, failure)


async def test_flush_range_failure_latches(disk, failure):
    async with opened(disk) as f:
        disk.fail(failure)
        receipt = await f.write(100 * PAGE, b"lost")
        with pytest.raises(aiommap.FlushError, match=os.strerror(failure)):
            await f.flush_range(receipt)
        disk.work_again()
        await expect_latched(f, receipt, failure)


async def test_flush_tells_write_back_failed_before(disk, failure):
    """By then the kernel calls the pages clean, and the device works; yet no flush may succeed."""
    async with opened(disk) as f:
        disk.fail(failure)
        receipt = await f.write(100 * PAGE, b"lost")
        await f.start_writeback()
        # fsync(2) of another descriptor waits for the write-back, and reports the failure as well.
        fd = os.open(f.path, os.O_RDONLY)
        with pytest.raises(OSError, match=os.strerror(failure)):
            os.fsync(fd)
        os.close(fd)
        disk.work_again()
        with pytest.raises(aiommap.FlushError, match=os.strerror(failure)):
            await f.flush()
        await expect_latched(f, receipt, failure)


async def test_durable_write_to_failing_device(disk, failure):
    async with opened(disk, flush=FlushPolicy.always()) as f:
        receipt = await f.write(PAGE, b"fine")
        assert receipt.durable
        disk.fail(failure)
        with pytest.raises(aiommap.FlushError, match=os.strerror(failure)):
            await f.write(100 * PAGE, b"lost")
        with pytest.raises(aiommap.FlushError, match="flush failed"):
            await f.write(PAGE, b"x")
        assert receipt.durable
        assert await f.read(PAGE, 4) == b"fine"
        with pytest.raises(aiommap.FlushError, match="flush failed"):
            await f.aclose()


async def test_close_that_cannot_flush_closes(disk, failure):
    async with opened(disk) as f:
        disk.fail(failure)
        await f.write(100 * PAGE, b"lost")
        with pytest.raises(aiommap.FlushError, match=os.strerror(failure)):
            await f.aclose()
        assert f.closed
        links = [os.readlink(f"/proc/self/fd/{fd.name}") for fd in os.scandir("/proc/self/fd")]
        assert f.path not in links


UNREADABLE = {
    "read": lambda f: f.read(COLD, 2 * PAGE),
    "read_into": lambda f: f.read_into(COLD, bytearray(2 * PAGE)),
    "read_many": lambda f: f.read_many([(0, 4), (COLD, PAGE)]),
    # Parts of pages, because the rest of each has to be read. Storing a whole page reads nothing.
    "write": lambda f: f.write(COLD, b"x" * 100),
    "write_many": lambda f: f.write_many([(0, b"safe"), (COLD, b"x")]),
    "prewarm": lambda f: f.prewarm(COLD),
}


@asynccontextmanager
async def opened_cold(disk):
    """Open a file whose bytes from COLD on are only on the device, in written blocks."""
    async with opened(disk) as f:
        await f.write(COLD, b"cold" * (PAGES * PAGE - COLD >> 2))
        await f.flush()
        await f.advise(Advice.DONT_NEED, COLD)
        assert (await f.residency(COLD)).resident == 0
        yield f


@pytest.mark.parametrize("verb", UNREADABLE.values(), ids=UNREADABLE)
async def test_unreadable_page_is_a_typed_error(disk, verb):
    async with opened_cold(disk) as f:
        disk.fail(errno.EIO)
        with pytest.raises(aiommap.MappingFaultError, match="device or file system") as caught:
            await verb(f)
        error = caught.value
        assert (error.offset, error.copied) == (COLD, 0)
        assert (error.size, error.path) == (PAGES * PAGE, f.path)
        assert await f.read(0, 4) == b"safe"
        disk.work_again()
        assert await f.read(COLD, 4) == b"cold"
        await f.write(COLD, b"warm")
        await f.flush()


async def test_residency_and_advice_need_no_device(disk):
    async with opened_cold(disk) as f:
        disk.fail(errno.EIO)
        assert (await f.residency(COLD)).resident == 0
        await f.advise(Advice.RANDOM)
        disk.work_again()


async def test_lock_of_unreadable_page(disk):
    """In a process of its own, because mlock2(2) of such a page may never return."""
    async with opened_cold(disk) as f:
        disk.fail(errno.EIO)
        done = run_code(PIN, f.path, COLD)
        assert done.stdout == f"{COLD}\n", done.stderr
        disk.work_again()


@pytest.mark.parametrize("blocked", [(), ("blocked",)], ids=["SIGBUS", "SIGBUS blocked"])
def test_block_of_a_cache_that_cannot_be_read(disk, tmp_path, blocked):
    """Checking its sum through the mapping meets a fault, so the block counts as missing."""
    path, words = disk.folder / "file", tmp_path / "words"
    for file, size in ((path, PAGES * PAGE), (words, 4096 + 16)):
        file.touch()
        os.truncate(file, size)
    arguments = (path, words, PAGE, PAGES)
    assert run_code(VERIFY, *arguments).stdout == ""
    assert resident_pages(path) == {PAGES - 1}
    disk.watch(path)
    disk.fail(errno.EIO)
    done = run_code(VERIFY, *arguments, *blocked)
    assert done.stdout == f"(0, 1, {PAGES * PAGE}) [(0, 1)]\n", done.stderr
    disk.work_again()


async def test_full_disk_refuses_files_and_growth(small_disk):
    path = small_disk.folder / "file"
    for mode in ("x+", "w+"):
        with pytest.raises(OSError, match="No space") as caught:
            await aiommap.open(path, mode, size=8 << 20)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert not path.exists()
    async with aiommap.open(path, "x+", size=PAGE) as f:
        await f.write(0, b"safe")
        with pytest.raises(OSError, match="No space") as caught:
            await f.resize(8 << 20)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert (f.size, path.stat().st_size) == (PAGE, PAGE)
        await f.resize(2 * PAGE)
        assert await f.read(0, 4) == b"safe"


async def test_sparse_write_to_full_disk(small_disk):
    path = small_disk.folder / "file"
    async with aiommap.open(path, "x+", size=8 << 20, sparse=True) as f:
        await f.write(0, b"safe")
        fill(small_disk.folder / "filler")
        for verb in (
            lambda: f.write(4 << 20, b"x"),
            lambda: f.write(4 << 20, b"x" * PAGE * 20),
            lambda: f.write_many([(4 << 20, b"x" * PAGE)]),
        ):
            with pytest.raises(OSError, match="No space") as caught:
                await verb()
            assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert await f.read(4 << 20, PAGE * 20) == bytes(PAGE * 20)
        (small_disk.folder / "filler").unlink()
        await f.write(4 << 20, b"room again")
        await f.flush()
    assert path.read_bytes()[:4] == b"safe"
