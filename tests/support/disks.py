"""Small file systems on which a fault can be made; each is removed afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack, contextmanager

import pytest

from tests.powercut.mount import missing, mounted
from tests.support.internals import native


def must(*command):
    """Run a command, or skip the test and say why it failed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def sync(folder):
    """Sync the file system of a folder, and no other: tests beside this one count what it does."""
    fd = os.open(folder, os.O_RDONLY)
    native.sync_filesystem(fd)
    os.close(fd)


@contextmanager
def loop_disk(top, size, make, *options):
    """Yield the folder of a file system that a command makes; its blocks are in memory.

    The tests are about the file system, and would only wait for the machine's disk.
    """
    if shutil.which(make) is None:
        pytest.skip(f"{make} is not installed")
    memory, folder = top / "memory", top / "disk"
    image = memory / "image"
    with ExitStack() as stack:
        memory.mkdir()
        must("mount", "-t", "tmpfs", "tmpfs", memory)
        stack.callback(must, "umount", "--lazy", memory)
        must("truncate", "-s", size, image)
        must(make, *options, image)
        folder.mkdir()
        must("mount", "-o", "loop", image, folder)
        stack.callback(must, "umount", "--lazy", folder)
        yield folder


@contextmanager
def disk_with(fault, tmp_path):
    """Yield a folder: 1 MiB of tmpfs, 4 MiB of ext4, FUSE whose reads can fail, or a plain one."""
    folder = tmp_path / "disk"
    with ExitStack() as stack:
        if fault == "eio":
            if missing():
                pytest.skip(missing())
            yield stack.enter_context(mounted(tmp_path)).path
            return
        if fault == "full_ext4":
            options = ("-qFm", "0", "-O", "^has_journal")
            yield stack.enter_context(loop_disk(tmp_path, "4m", "mkfs.ext4", *options))
            return
        folder.mkdir()
        if fault == "full_tmpfs":
            must("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
            stack.callback(must, "umount", "--lazy", folder)
        yield folder
