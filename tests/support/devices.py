"""Devices that fail and disks that fill up: real ones, made from loop devices; needs root.

The failing device is an ext4 on a loop device over a sparse file in a small tmpfs. Cutting the
device short makes reads and writes beyond the cut fail with EIO; filling the tmpfs makes writes of
blocks that were never written fail with ENOSPC. Both can be undone, as when somebody plugs a cable
in again. That is the case in which a later flush would succeed although data is lost.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE

DEVICE_BYTES = 64 << 20
BLOCK_BYTES = 4096
PAGES = 256
#: From this offset on, the file lies beyond the cut of a device that fails.
COLD = 64 * PAGE
#: ioctl(2): the number of a file's block on its device.
FIBMAP = 1
#: loop(4): struct loop_info64, and where its lo_sizelimit lies.
LOOP_SET_STATUS64, LOOP_GET_STATUS64 = 0x4C04, 0x4C05
LOOP_INFO_BYTES, SIZE_LIMIT_AT = 232, 32


class Disk:
    """An ext4, mounted at ``folder``, that can be made to fail and to work again."""

    def __init__(self, stack, tmp_path, size):
        self._store, self.folder = tmp_path / "store", tmp_path / "disk"
        self._store.mkdir()
        self.folder.mkdir()
        self._mount(stack, self._store, "-t", "tmpfs", "-o", "size=16m", "tmpfs")
        image = self._store / "image"
        image.touch()
        os.truncate(image, size)
        self._loop = must("losetup", "--find", "--show", str(image)).strip()
        stack.callback(must, "losetup", "--detach", self._loop)
        # No journal: if it failed, every later error would be about the journal.
        must("mkfs.ext4", "-qFb", str(BLOCK_BYTES), "-O", "^has_journal", self._loop)
        self._mount(stack, self.folder, "-o", "errors=continue", self._loop)

    @staticmethod
    def _mount(stack, folder, *arguments):
        must("mount", *arguments, str(folder))
        # Lazy, so that files which a failed test holds open do not prevent the unmount.
        stack.callback(must, "umount", "--lazy", str(folder))

    def watch(self, path):
        """Choose the file that ``fail`` cuts at COLD; its blocks must lie in a row."""
        with open(path, "rb") as file:
            (first,) = struct.unpack("i", fcntl.ioctl(file, FIBMAP, struct.pack("i", 0)))
        self._cold = first * BLOCK_BYTES + COLD

    def fail(self, number):
        """Make accesses to the cold part of the watched file fail with this errno.

        With ENOSPC only writes of blocks that were never written fail.
        """
        if number == errno.EIO:
            self._cut(self._cold)
        else:
            fill(self._store / "filler")

    @contextmanager
    def failing(self, number):
        """Fail as ``fail`` does, for the length of a ``with`` block."""
        self.fail(number)
        yield
        self.work_again()

    def work_again(self):
        self._cut(0)
        (self._store / "filler").unlink(missing_ok=True)

    def _cut(self, limit):
        with open(self._loop, "rb") as device:
            info = bytearray(LOOP_INFO_BYTES)
            fcntl.ioctl(device, LOOP_GET_STATUS64, info)
            struct.pack_into("=Q", info, SIZE_LIMIT_AT, limit)
            fcntl.ioctl(device, LOOP_SET_STATUS64, info)


def must(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def fill(path):
    """Fill the disk with one file."""
    with open(path, "wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(PAGE)):
            pass


def make_disk(tmp_path, size):
    """Yield a disk, or skip the test and say why that is impossible."""
    for tool in ("losetup", "mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if os.geteuid():
        pytest.skip("making a device needs root")
    with ExitStack() as stack:
        try:
            disk = Disk(stack, tmp_path, size)
        except OSError as error:
            pytest.skip(f"this machine gives no loop device: {error}")
        yield disk
        disk.work_again()


@asynccontextmanager
async def opened(disk, **options):
    """A file with every block allocated and its first page on the device."""
    f = await aiommap.open(disk.folder / "file", "x+", size=PAGES * PAGE, **options)
    try:
        await f.write(0, b"safe")
        await f.flush()
        disk.watch(f.path)
        yield f
    finally:
        with suppress(aiommap.FlushError):  # raised before, or not the subject of the test
            await f.aclose()
