"""What the power-cut tests rely on: the log tells what was asked of the disk, in order."""

from __future__ import annotations

import errno
import mmap
import os
import select
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.powercut.mount import ROOT, missing
from tests.powercut.records import DIRECTORY, Create, Rename, Resize, SyncBegin, SyncEnd, Write

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no FUSE here: {missing()}")

PAGE = mmap.PAGESIZE


@contextmanager
def opened(path, flags=os.O_RDWR | os.O_CREAT):
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("way", ["msync", "fdatasync", "fsync"])
def test_mapped_store_is_written_by_its_sync(mount, way):
    with opened(mount.path / "file") as file:
        os.ftruncate(file, 4 * PAGE)
        with mmap.mmap(file, 4 * PAGE) as memory:
            memory[2 * PAGE + 5 : 2 * PAGE + 8] = b"new"
            before = mount.log()
            if way == "msync":
                memory.flush(2 * PAGE, PAGE)
            else:
                getattr(os, way)(file)
    inode = before[0].inode
    assert before == [Create("file", inode), Resize(inode, 4 * PAGE)]
    page = (bytes(5) + b"new").ljust(PAGE, b"\0")
    assert mount.log()[2:] == [
        Write(inode, 2 * PAGE, page),
        SyncBegin(0, inode),
        SyncEnd(0, ok=True),
    ]


def test_write_is_recorded_before_it_returns(mount):
    with opened(mount.path / "file") as file:
        os.pwrite(file, b"said", 3)
        assert mount.log()[-1] == Write(file_inode(file), 3, b"said")


def file_inode(file):
    return os.fstat(file).st_ino


def test_folder_behaves_like_one(mount):
    with opened(mount.path / "file") as file:
        os.posix_fallocate(file, 0, 3 * PAGE)
        assert os.fstat(file).st_blocks * 512 == 3 * PAGE
        os.pwrite(file, b"x" * 3 * PAGE, 0)
        inode = file_inode(file)
    with opened(mount.path, os.O_RDONLY) as folder:
        os.fsync(folder)
    (mount.path / "file").rename(mount.path / "renamed")
    assert os.listdir(mount.path) == ["renamed"]
    assert (mount.path / "renamed").read_bytes() == b"x" * 3 * PAGE
    assert mount.log()[-3:] == [
        SyncBegin(0, DIRECTORY),
        SyncEnd(0, ok=True),
        Rename("file", "renamed", inode),
    ]
    (mount.path / "renamed").unlink()
    with pytest.raises(FileNotFoundError):
        os.stat(mount.path / "renamed")


def test_nth_sync_fails_once(mount):
    mount.fail("fsync", "file", nth=2)
    with opened(mount.path / "file") as file:
        os.fsync(file)
        with pytest.raises(OSError, match="Input/output error") as caught:
            os.fsync(file)
        os.fsync(file)
    assert caught.value.errno == errno.EIO
    answers = [record.ok for record in mount.log() if isinstance(record, SyncEnd)]
    assert answers == [True, False, True]


def test_failed_write_back_fails_the_sync(mount):
    with opened(mount.path / "file") as file:
        os.ftruncate(file, PAGE)
        with mmap.mmap(file, PAGE) as memory:
            memory[:3] = b"new"
            mount.fail("write", "file")
            with pytest.raises(OSError, match="Input/output error"):
                os.fdatasync(file)
            os.fdatasync(file)  # the second success is the lie that must not be believed
        assert not any(isinstance(r, Write) and r.inode == file_inode(file) for r in mount.log())


CLIENT_THAT_DIES = """
import os, pathlib, sys
from tests.powercut.mount import mounted
with mounted(pathlib.Path(sys.argv[1])) as mount:
    file = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT)
    os.kill(os.getpid(), 9)
"""


def test_unmounted_when_the_client_is_killed(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CLIENT_THAT_DIES, tmp_path]
    assert subprocess.run(command, env=environment, timeout=30).returncode == -9
    with open("/proc/self/mounts") as mounts:
        changed = select.poll()
        changed.register(mounts, select.POLLPRI)
        while str(tmp_path) in mounts.read():
            changed.poll()
            mounts.seek(0)
    assert os.listdir(tmp_path / "disk") == []
