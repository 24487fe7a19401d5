"""Mounting the recording file system for the length of a block."""

from __future__ import annotations

import ctypes.util
import errno
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.powercut.records import Record, load

ROOT = Path(__file__).parents[2]


def missing() -> str | None:
    """Name what this machine lacks to mount the file system, if anything."""
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if os.geteuid() != 0:
        return "mounting needs root"
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed"
    if ctypes.util.find_library("fuse3") is None:
        return "libfuse3 is not installed (Debian: fuse3)"
    return None


class RecordingMount:
    """A mounted recording file system.

    Attributes:
        path: where it is mounted.
        log_path: where its log grows.
        server: ID of the process that serves it, once it is mounted.
    """

    def __init__(self, path: Path, log_path: Path) -> None:
        self.path = path
        self.log_path = log_path
        self.server = 0

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the server for a block; but not for ever, if the block waits for an answer."""
        end = threading.Timer(15, os.kill, (self.server, signal.SIGCONT))
        os.kill(self.server, signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self.server, os.WSTOPPED)  # until each of its threads has
            end.start()
            yield
        finally:
            end.cancel()
            os.kill(self.server, signal.SIGCONT)

    def log(self) -> list[Record]:
        """Read what was recorded so far."""
        return load(self.log_path)

    def fail(
        self, kind: str, name: str, nth: int = 1, number: int = errno.EIO, times: int = 1
    ) -> None:
        """Let the nth "fsync", "write" or "read" request for a file fail, and some that follow.

        All later reads fail, too, as the kernel repeats a failed read page by page.
        """
        (self.path / ".control").write_text(f"{kind} {name} {nth} {number} {times}")


@contextmanager
def mounted(folder: Path, server: str = "tests.powercut.recording_fs") -> Iterator[RecordingMount]:
    """Mount a recording file system, or another one, below a folder; unmount it in any case."""
    mount = RecordingMount(folder / "disk", folder / "log")
    mount.path.mkdir()
    # libfuse 2 may be installed as well, and mfusepy would take that first.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FUSE_LIBRARY_NAME": "fuse3"}
    command = [sys.executable, "-m", server, mount.path, mount.log_path]
    with (
        (folder / "server.err").open("w+") as errors,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            if process.stdout.readline() != "ready\n":
                errors.seek(0)
                raise RuntimeError(f"the file system did not mount:\n{errors.read()}")
            mount.server = process.pid
            yield mount
        finally:
            _stop(process, mount.path)


def _stop(server: subprocess.Popen, path: Path) -> None:
    """End the server; it unmounts when its standard input ends, and we do if it does not."""
    server.stdin.close()
    try:
        server.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        subprocess.run(["umount", "--lazy", path], check=False)
