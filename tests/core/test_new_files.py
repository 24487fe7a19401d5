"""New and overwritten files: undoing removes only what opening made; a refusal changes no byte."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
import threading

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.internals import opening
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


# Undoing.


@pytest.fixture
def dangling(tmp_path):
    """A link to another link, which leads to a name that does not exist."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to("file")
    (tmp_path / "link").symlink_to("data/link")
    return tmp_path / "link"


def untouched(dangling):
    folder = dangling.parent
    links = dangling.is_symlink(), (folder / "data" / "link").is_symlink()
    return all(links) and os.listdir(folder / "data") == ["link"]


async def test_create_through_a_dangling_link(dangling):
    async with aiommap.open(dangling, "w+", size=PAGE) as f:
        await f.write(0, b"bytes")
    assert (dangling.parent / "data" / "file").read_bytes()[:5] == b"bytes"
    assert dangling.is_symlink()


async def test_create_anew_at_a_dangling_link(dangling):
    with pytest.raises(FileExistsError):
        await aiommap.open(dangling, "x+", size=PAGE)
    assert untouched(dangling)


async def test_create_in_a_loop_of_links(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as caught:
        await aiommap.open(tmp_path / "a", "w+", size=1)
    assert caught.value.errno == errno.ELOOP
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.fixture
def short_files():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("short_files")
async def test_create_too_large_through_a_link(dangling):
    with pytest.raises(OSError, match="RLIMIT_FSIZE allows 1048576") as caught:
        await aiommap.open(dangling, "w+", size=8 << 20)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(dangling))
    assert untouched(dangling)


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize("sparse", [False, True])
async def test_overwrite_beyond_the_limit(tmp_path, sparse):
    """Without the check, opening would overwrite the bytes below the limit before it fails."""
    old = tmp_path / "old"
    old.touch()
    os.truncate(old, 1 << 20)
    old.write_bytes(b"x" * (1 << 20))
    with pytest.raises(OSError, match="RLIMIT_FSIZE"):
        await aiommap.open(old, "w+", size=8 << 20, sparse=sparse)
    assert old.read_bytes() == b"x" * (1 << 20)


@pytest.fixture
def opened_then_cancelled(monkeypatch):
    """Return a function that cancels an opening when the file has been made."""
    made, go_on = threading.Event(), threading.Event()
    make = opening._make_content

    def gated(mapping, found, options):
        make(mapping, found, options)
        made.set()
        go_on.wait(100)

    monkeypatch.setattr(opening, "_make_content", gated)

    async def run(path, meanwhile=lambda: None, mode="w+"):
        async with anyio.create_task_group() as group:
            group.start_soon(aiommap.open(path, mode, size=PAGE).__aenter__)
            await anyio.to_thread.run_sync(made.wait, 20)
            meanwhile()
            group.cancel_scope.cancel()
            go_on.set()

    return run


async def test_create_cancelled_through_a_link(dangling, opened_then_cancelled):
    await opened_then_cancelled(dangling)
    assert untouched(dangling)


@pytest.mark.parametrize("mode", ["w+", "x+"])
async def test_create_cancelled(tmp_path, opened_then_cancelled, mode):
    await opened_then_cancelled(tmp_path / "new", mode=mode)
    assert os.listdir(tmp_path) == []


async def test_create_cancelled_in_renamed_folder(tmp_path, opened_then_cancelled):
    """Undoing removes the file in the folder where it was made, whatever has its name by now."""
    (tmp_path / "a").mkdir()

    def rename():
        os.rename(tmp_path / "a", tmp_path / "b")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "new").write_bytes(b"another")

    await opened_then_cancelled(tmp_path / "a" / "new", rename)
    assert os.listdir(tmp_path / "b") == []
    assert (tmp_path / "a" / "new").read_bytes() == b"another"


async def test_create_cancelled_after_replacement(tmp_path, opened_then_cancelled):
    def replace():
        (tmp_path / "other").write_bytes(b"another")
        os.replace(tmp_path / "other", tmp_path / "new")

    await opened_then_cancelled(tmp_path / "new", replace)
    assert (tmp_path / "new").read_bytes() == b"another"


async def test_create_cancelled_after_linking(tmp_path, opened_then_cancelled):
    """Undoing leaves the other name, which somebody else made."""
    await opened_then_cancelled(tmp_path / "new", lambda: os.link(tmp_path / "new", tmp_path / "x"))
    assert os.listdir(tmp_path) == ["x"]


async def test_create_cancelled_with_link_in_place(tmp_path, opened_then_cancelled):
    """Undoing does not remove a link that leads to the file."""

    def move():
        os.rename(tmp_path / "new", tmp_path / "moved")
        (tmp_path / "new").symlink_to("moved")

    await opened_then_cancelled(tmp_path / "new", move)
    assert (tmp_path / "new").is_symlink()
    assert (tmp_path / "moved").exists()


async def test_overwrite_cancelled_keeps_the_file(tmp_path, opened_then_cancelled):
    old = tmp_path / "old"
    old.write_bytes(b"old")
    inode = old.stat().st_ino
    await opened_then_cancelled(old)
    assert old.stat().st_ino == inode


async def test_create_holds_no_descriptor_for_good(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        async with aiommap.open(tmp_path / "new", "w+", size=PAGE):
            pass
        os.unlink(tmp_path / "new")
        with pytest.raises(ValueError, match="capacity"):
            await aiommap.open(tmp_path / "new", "w+", size=PAGE, capacity=1)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


# Overwriting.


def blocks(path):
    return os.stat(path).st_blocks * 512


async def test_overwrite_keeps_holes(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * PAGE)
    async with aiommap.open(path, "w+", size=64 << 20, sparse=True) as f:
        assert await f.read(32 << 20, PAGE) == bytes(PAGE)
        assert blocks(path) <= 64 << 10


async def test_overwrite_of_bytes_between_holes(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
        for at in (0, 300_000, 700_001):
            file.seek(at)
            file.write(b"x" * 100)
    async with aiommap.open(path, "w+", size=900_000) as f:
        assert await f.read(0, f.size) == bytes(900_000)
        assert blocks(path) >= 900_000


async def test_overwrite_of_file_beyond_its_disk(small_disk):
    path = small_disk / "sparse"
    path.write_bytes(b"old bytes")
    os.truncate(path, 8 << 20)
    used = os.statvfs(small_disk).f_bfree
    with pytest.raises(OSError, match="No space") as caught:
        await aiommap.open(path, "w+", size=8 << 20)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes()[:9] == b"old bytes"
    assert os.statvfs(small_disk).f_bfree == used
    async with aiommap.open(path, "w+", size=8 << 20, sparse=True) as f:
        assert await f.read(0, 9) == bytes(9)


async def test_overwrite_of_what_cannot_be_mapped(tmp_path):
    """Opening maps first, so if mapping fails, no byte is changed."""
    path = tmp_path / "old"
    path.write_bytes(b"old bytes")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    try:
        with pytest.raises(OSError, match="address space"):
            await aiommap.open(path, "w+", size=PAGE, capacity=1 << 40)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert path.read_bytes() == b"old bytes"


# A flush makes the name of a new file durable through the descriptor of its folder.


FLUSH_AS_NOBODY = """
import asyncio, os, sys, aiommap

async def main():
    when, path = sys.argv[1:]
    async with aiommap.open(sys.executable) as f:  # this imports all modules
        pass
    if when == "before":
        os.seteuid(65534)
    f = await aiommap.open(path, "x+", size=4096)
    await f.write(0, b"bytes")
    os.seteuid(65534)
    await f.flush()
    await f.aclose()
    print("flushed")

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_flush_in_an_unreadable_folder(when):
    """A folder that nobody may list; or one that root could read before it gave up privileges."""
    if os.geteuid() != 0:
        pytest.skip("giving up privileges needs some")
    with tempfile.TemporaryDirectory() as folder:  # other users cannot reach tmp_path
        os.chmod(folder, 0o733 if when == "before" else 0o700)
        script = [sys.executable, "-c", FLUSH_AS_NOBODY, when, f"{folder}/new"]
        done = subprocess.run(script, capture_output=True, text=True)
        assert done.stdout == "flushed\n", done.stderr


async def test_flush_in_a_renamed_folder(tmp_path):
    (tmp_path / "a").mkdir()
    async with aiommap.open(tmp_path / "a" / "new", "x+", size=PAGE) as f:
        os.rename(tmp_path / "a", tmp_path / "b")
        await f.flush()
        assert (tmp_path / "b" / "new").stat().st_size == PAGE


async def test_flush_without_a_descriptor(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with aiommap.open(tmp_path / "new", "x+", size=PAGE) as f:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            await f.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_flush_leaves_one_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    async with aiommap.open(tmp_path / "new", "x+", size=PAGE) as f:
        await f.flush()
        assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_create_failed_after_a_flush(tmp_path, monkeypatch):
    """A background flush may run while the file is still being opened."""
    prepare = aiommap.MappedFile._prepare

    async def fail(self):
        await prepare(self)
        await self.flush()
        raise MemoryError("no room for what else there is to do")

    monkeypatch.setattr(aiommap.MappedFile, "_prepare", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError):
        await aiommap.open(tmp_path / "new", "x+", size=PAGE)
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.usefixtures("short_files")
async def test_overwrite_of_longer_file_by_a_hole(tmp_path):
    """The limit is on bytes that are written, and a hole writes none."""
    old = tmp_path / "old"
    subprocess.run(["truncate", "-s", "8M", str(old)], check=True, preexec_fn=lift_limit)
    async with aiommap.open(old, "w+", size=4 << 20, sparse=True) as f:
        assert f.size == old.stat().st_size == 4 << 20
    with pytest.raises(OSError, match="RLIMIT_FSIZE"):
        await aiommap.open(old, "w+", size=4 << 20)


def lift_limit():
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
