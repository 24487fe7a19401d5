"""Full disks of real file systems: stores into holes, growth by stores, words, prewarming."""

from __future__ import annotations

import errno
import os
import resource
import subprocess

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.disks import loop_disk, must, sync

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SIZES = {"ext4": "64m", "xfs": "320m", "btrfs": "128m", "tmpfs": "16m"}
#: The room that the ballast leaves for the tests.
ROOM = 6 << 20
KIB = 1 << 10
NEVER = FlushPolicy.never()


@pytest.fixture(scope="module", params=SIZES)
def mount(request, tmp_path_factory):
    kind, top = request.param, tmp_path_factory.mktemp("full")
    if kind != "tmpfs":
        with loop_disk(top, SIZES[kind], f"mkfs.{kind}", "-q") as folder:
            yield folder
        return
    must("mount", "-t", "tmpfs", "-o", f"size={SIZES[kind]}", "tmpfs", top)
    yield top
    subprocess.run(["umount", "--lazy", top], check=True)


def remove(path):
    """Remove a file and give its blocks back now: XFS frees those of removed files later."""
    os.truncate(path, 0)
    path.unlink()


@pytest.fixture
def full(mount):
    """Yield a folder with little room, and a way to make some."""
    ballast = mount / "ballast"
    sync(mount)
    found = os.statvfs(mount)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - ROOM)
    yield mount, ballast
    for path in mount.glob("*"):
        if path.is_file():
            remove(path)
    sync(mount)


def expect_full(error, path):
    """Check that an error says that the disk is full, and names the file."""
    assert (error.errno, type(error)) == (errno.ENOSPC, OSError), error
    assert error.filename == str(path)
    assert "make room" in str(error)


async def fill(f, piece, at=0, *, write=None):
    """Write pieces of a pattern until there is no room; return the offset where it ended."""
    write = write or f.write
    for offset in range(at, f.size - piece + 1, piece):
        try:
            await write(offset, b"p" * piece)
        except OSError as error:
            expect_full(error, f.path)
            return offset
    raise AssertionError("the disk was never full")


def open_sparse(folder, flush=NEVER):
    return aiommap.open(folder / "sparse", "w+", size=8 * ROOM, sparse=True, flush=flush)


@pytest.mark.parametrize("piece", [64 * KIB, 300 * KIB, 1024 * KIB])
async def test_write_into_a_hole(full, piece):
    folder, ballast = full
    async with open_sparse(folder) as f:
        end = await fill(f, piece)
        for _ in range(2):
            with pytest.raises(OSError, match=r"No space") as caught:
                await f.write(end, b"s" * piece)
            expect_full(caught.value, f.path)
        assert await f.read(end, piece) == bytes(piece)
        if end:
            assert await f.read(end - piece, piece) == b"p" * piece
        remove(ballast)
        sync(folder)
        await f.write(end, b"s" * piece)
        assert await f.read(end, piece) == b"s" * piece


@pytest.mark.parametrize("verb", ["write_many", "always", "write_range", "view"])
async def test_other_writes_into_a_hole(full, verb):
    folder, _ = full
    policy = FlushPolicy.always() if verb == "always" else NEVER
    async with open_sparse(folder, policy) as f:
        allocator = f.allocator()

        async def write(offset, data):
            if verb == "write_many":
                half = len(data) // 2
                await f.write_many([(offset, data[:half]), (offset + half, data[half:])])
            elif verb == "write_range":
                await f.write_range(allocator.allocate(len(data)), data)
            elif verb == "view":
                await f.view().write(offset, data)
            else:
                assert (await f.write(offset, data)).durable

        end = await fill(f, 256 * KIB, write=write)
        if verb != "write_many":  # its first item may have had room
            assert await f.read(end, 256 * KIB) == bytes(256 * KIB)


async def test_write_whose_end_is_a_hole(full):
    folder, _ = full
    async with open_sparse(folder) as f:
        end = await fill(f, 64 * KIB)
        await fill(f, PAGE, end)
        with pytest.raises(OSError, match=r"No space") as caught:
            await f.write(end - 64 * KIB, b"n" * 1024 * KIB)
        expect_full(caught.value, f.path)
        assert await f.read(end - 64 * KIB, 64 * KIB) == b"p" * 64 * KIB


def add_to(words):
    for word in words:
        word.fetch_add(1)


async def test_word_in_a_hole(full):
    folder, ballast = full
    async with open_sparse(folder) as f:
        end = await fill(f, 64 * KIB)
        end = await fill(f, PAGE, end)
        assert await f.read(end, 8) == bytes(8)
        words = [f.atomic_u64(at) for at in range(end, min(end + 2048 * PAGE, f.size), PAGE)]
        with pytest.raises(OSError, match=r"No space") as caught:
            add_to(words)
        expect_full(caught.value, f.path)
        assert f.atomic_u64(0).load()
        remove(ballast)
        sync(folder)
        for word in words:
            word.store(2)
        assert words[-1].load() == 2


async def test_prewarm_write_of_holes(full):
    folder, ballast = full
    async with open_sparse(folder) as f:
        with pytest.raises(OSError, match=r"No space") as caught:
            await f.prewarm(write=True)
        expect_full(caught.value, f.path)
        remove(ballast)
        sync(folder)
        await f.prewarm(0, 64 * KIB, write=True)


@pytest.mark.parametrize("sparse", [False, True])
async def test_growth_by_stores(full, sparse):
    folder, _ = full
    path = folder / "grown"
    f = await aiommap.open(
        path, "w+", size=0, capacity=1 << 30, sparse=sparse, flush=FlushPolicy.never()
    )
    with f.view(growable=True) as view:
        memory, at, error = view.memory, 0, None
        while error is None and at < 8 * ROOM:
            memory[at : at + PAGE] = b"g" * PAGE
            at += PAGE
            if not at % (256 * KIB):
                try:
                    await f.read(0, 1)
                except aiommap.MappingFaultError as found:
                    error = found
        memory.release()
    assert error is not None
    assert (error.poisoned, error.errno) == (True, errno.ENOSPC)
    with pytest.raises(aiommap.MappingFaultError):
        await f.aclose()


async def test_store_through_a_view_of_a_hole(full):
    folder, _ = full
    f = await open_sparse(folder)
    with f.view() as view:
        memory = view.memory
        for at in range(0, 4 * ROOM, PAGE):
            memory[at] = 1
        memory.release()
    with pytest.raises(aiommap.MappingFaultError) as caught:
        await f.read(0, 1)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(aiommap.MappingFaultError):
        await f.aclose()


async def test_ensure_and_resize(full):
    folder, _ = full
    async with aiommap.open(folder / "file", "w+", size=PAGE, capacity=8 * ROOM) as f:
        for verb in (f.ensure, f.resize):
            with pytest.raises(OSError, match=r"No space") as caught:
                await verb(4 * ROOM)
            assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, f.path)
            assert f.size == PAGE == os.stat(f.path).st_size


async def test_limit_on_the_size_of_files(tmp_path):
    """Bytes within the file can be stored whatever the limit; only growth is refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with aiommap.open(tmp_path / "file", "w+", size=512 * KIB, sparse=True) as f:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (128 * KIB, before[1]))
            await f.write(100 * KIB, b"x" * 200 * KIB)
            await f.write_many([(400 * KIB, b"y"), (401 * KIB, b"z" * KIB)])
            with pytest.raises(
                OSError, match="1048576 bytes, and RLIMIT_FSIZE allows 131072"
            ) as caught:
                await f.resize(1024 * KIB)
            assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, f.path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert f.size == 512 * KIB
        assert await f.read(100 * KIB, 200 * KIB) == b"x" * 200 * KIB
        assert await f.read(401 * KIB, KIB) == b"z" * KIB


async def test_write_into_a_hole_takes_its_pages_only(tmp_path):
    """Each 100 bytes at random in a large file take one page on disk and in memory, not a folio."""
    async with aiommap.open(tmp_path / "file", "w+", size=1 << 30, sparse=True) as f:
        for i in range(64):
            await f.write((i * 37 % 64) * (16 << 20) + 12345, b"s" * 100)
        assert (await f.residency()).resident <= 2 * 64
        await f.flush()
        assert os.stat(f.path).st_blocks * 512 <= 2 * 64 * PAGE
