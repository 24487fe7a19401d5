"""A file system on a loop device, whose written bytes can be counted; needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.devices import must
from tests.support.disks import sync

#: With these options only writes of the test reach the device.
OPTIONS = {
    "ext4": ("-qF", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"),
    "xfs": ("-q", "-K"),
    "btrfs": ("-q", "-K"),
}
SIZES = {"ext4": "256m", "xfs": "320m", "btrfs": "384m"}


class CountedDisk:
    """A mounted file system, whose device counts the bytes written to it."""

    def __init__(self, folder, loop):
        self.folder = folder
        self._stat = Path("/sys/block", os.path.basename(loop), "stat")

    def _written(self):
        return int(self._stat.read_text().split()[6]) * 512

    @contextmanager
    def counting(self):
        """Count the bytes that reach the device in a block: ``bytes``, once the block has ended.

        There is no sync at its end, so bytes that nobody flushed do not count. But a sync(2) by any
        program of the machine counts: btrfs then writes its trees, a quarter of a megabyte.
        """
        count = Count()
        sync(self.folder)
        before = self._written()
        yield count
        count.bytes = self._written() - before


class Count:
    bytes = 0


@contextmanager
def counted_disk(kind, top):
    """Mount such a file system, or skip the test and say why that is impossible."""
    for tool in (f"mkfs.{kind}", "losetup", "mount", "umount"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if os.geteuid():
        pytest.skip("making a device needs root")
    folder, image, loop = top / kind, top / f"{kind}.image", None
    folder.mkdir()
    try:
        try:
            must("truncate", "-s", SIZES[kind], str(image))
            must(f"mkfs.{kind}", *OPTIONS[kind], str(image))
            loop = must("losetup", "--find", "--show", str(image)).strip()
            must("mount", loop, str(folder))
        except OSError as error:
            pytest.skip(f"this machine gives no loop device: {error}")
        yield CountedDisk(folder, loop)
    finally:
        # Lazy, so that files which a failed test holds open do not prevent the unmount.
        subprocess.run(["umount", "--lazy", folder], capture_output=True)
        if loop is not None:
            subprocess.run(["losetup", "--detach", loop], capture_output=True)
        image.unlink(missing_ok=True)
