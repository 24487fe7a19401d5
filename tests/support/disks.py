"""Small file systems of their own, on which a fault can be had; each is gone afterwards."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack, contextmanager

import pytest

from tests.powercut.mount import missing, mounted


def must(*command):
    """Run a command, or skip the test with the reason why it cannot be had here."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


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
        folder.mkdir()
        if fault == "full_tmpfs":
            must("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
            stack.callback(must, "umount", "--lazy", folder)
        if fault == "full_ext4":
            if shutil.which("mkfs.ext4") is None:
                pytest.skip("mkfs.ext4 is not installed")
            must("truncate", "-s", "4m", tmp_path / "image")
            must("mkfs.ext4", "-qFm", "0", "-O", "^has_journal", tmp_path / "image")
            must("mount", "-o", "loop", tmp_path / "image", folder)
            stack.callback(must, "umount", "--lazy", folder)
        yield folder
