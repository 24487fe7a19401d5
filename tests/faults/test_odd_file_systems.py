"""File systems that lack what a mapped file needs: opening or a later verb refuses them."""

from __future__ import annotations

import errno
import os

import anyio
import pytest

import aiommap
from tests.powercut.mount import missing, mounted
from tests.support.disks import must

pytestmark = pytest.mark.anyio

HUGE = 2 << 20

MAPPED = {
    "open": aiommap.open,
    "r+": lambda path: aiommap.open(path, "r+"),
    "c": lambda path: aiommap.open(path, "c"),
    "w+": lambda path: aiommap.open(path, "w+", size=HUGE),
    "sparse": lambda path: aiommap.open(path, "w+", size=HUGE, sparse=True),
    "Snapshot": aiommap.Snapshot.open,
    "MappedBackend": aiommap.MappedBackend.open,
    "follow": aiommap.follow,
}
each_opener = pytest.mark.parametrize("opener", MAPPED.values(), ids=MAPPED.keys())


@pytest.fixture
def huge_disk(tmp_path):
    """Yield a folder on hugetlbfs; it needs no huge page until one is touched."""
    folder = tmp_path / "huge"
    folder.mkdir()
    must("mount", "-t", "hugetlbfs", "none", folder)
    yield folder
    must("umount", "--lazy", folder)


@each_opener
async def test_open_on_hugetlbfs(huge_disk, opener):
    path = huge_disk / "file"
    path.touch()
    os.truncate(path, 2 * HUGE)
    with pytest.raises(aiommap.UnsupportedError, match=r"hugetlbfs.*huge_pages=True.*FileBackend"):
        await opener(path)
    assert path.stat().st_size == 2 * HUGE


@pytest.mark.parametrize("mode", ["w+", "x+"])
async def test_create_on_hugetlbfs(huge_disk, mode):
    with pytest.raises(aiommap.UnsupportedError, match="hugetlbfs"):
        await aiommap.open(huge_disk / "new", mode, size=HUGE)
    assert os.listdir(huge_disk) == []


async def test_file_backend_reads_hugetlbfs(huge_disk):
    path = huge_disk / "file"
    path.touch()
    os.truncate(path, HUGE)
    async with aiommap.FileBackend.open(path) as backend:
        assert backend.size == HUGE
        assert await backend.read_exact(HUGE - 5000, 5000) == bytes(5000)


@each_opener
async def test_open_of_huge_anonymous_memory(opener):
    try:
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no huge pages: {error}")
    try:
        os.truncate(fd, HUGE)
        with pytest.raises(aiommap.UnsupportedError, match="hugetlbfs"):
            await opener(f"/proc/{os.getpid()}/fd/{fd}")
    finally:
        os.close(fd)


@pytest.fixture
def odd_disk(tmp_path):
    if missing():
        pytest.skip(missing())
    with mounted(tmp_path, "tests.support.odd_fs") as mount:
        yield mount.path


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("mode", ["w+", "x+"])
async def test_create_where_files_stay_empty(odd_disk, mode, sparse):
    path = odd_disk / "new"
    with pytest.raises(aiommap.UnsupportedError, match="has another length") as caught:
        await aiommap.open(path, mode, size=4096, sparse=sparse)
    assert f"make {path} 4096 bytes long" in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 2, 4096])
async def test_overwrite_where_files_keep_their_size(odd_disk, size):
    path = odd_disk / "kept"
    with pytest.raises(aiommap.UnsupportedError, match="has another length"):
        await aiommap.open(path, "w+", size=size, sparse=True)
    assert path.read_bytes() == b"kept"


async def test_waiting_for_nothing(odd_disk):
    """No verb hangs, and a size that is as asked is accepted."""
    with anyio.fail_after(100):
        async with aiommap.open(odd_disk / "growing", "w+", size=8192, sparse=True) as f:
            assert f.size == os.stat(f.path).st_size == 8192
        async with aiommap.open(odd_disk / "kept") as f:
            assert await f.read(0, 4) == b"kept"


async def test_resize_where_files_do_not_grow(odd_disk):
    path, room = odd_disk / "growing", 1 << 20
    async with aiommap.open(path, "w+", size=4096, sparse=True, capacity=room) as f:
        for size in (16384, 2 << 20):
            with pytest.raises(aiommap.UnsupportedError, match="has another length") as caught:
                await f.resize(size)
            assert caught.value.errno == errno.EOPNOTSUPP
            assert f.size == os.stat(f.path).st_size == 4096
        with pytest.raises(aiommap.UnsupportedError, match="has another length"):
            await f.ensure(16384)
        assert f.size == os.stat(f.path).st_size == 4096
        await f.resize(8192)
        assert f.size == os.stat(f.path).st_size == 8192


async def test_flush_where_directories_cannot_be_synced(odd_disk):
    async with aiommap.open(odd_disk / "growing-new", "x+", size=4096, sparse=True) as f:
        await f.flush()
        assert not f.statistics().flush_failed
