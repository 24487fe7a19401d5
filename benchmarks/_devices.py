"""Loop devices that count the bytes written to them; they need root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
#: The size of a device in bytes, and options with which its file system writes nothing by itself.
KINDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "ext4": (512 * MIB, ("-qF", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard")),
    "xfs": (512 * MIB, ("-q", "-K")),
    "btrfs": (512 * MIB, ("-q", "-K")),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A mounted file system on a device of its own."""

    folder: str
    name: str

    def written(self) -> int:
        """Return how many bytes were written to the device so far."""
        return int(Path("/sys/block", self.name, "stat").read_text().split()[6]) * 512

    def sync(self) -> None:
        """Sync, so that the file system has nothing left to write by itself."""
        subprocess.run(["sync", "-f", self.folder], check=True)


@contextmanager
def mounted(kind: str, *options: str) -> Iterator[Device]:
    """Make and mount a file system, and remove it afterwards.

    Raises:
        OSError: if this machine does not allow that.
    """
    size, quiet = KINDS[kind]
    with tempfile.TemporaryDirectory() as top:
        image, folder, loop = os.path.join(top, "image"), os.path.join(top, "disk"), ""
        os.mkdir(folder)
        with open(image, "wb") as file:
            file.truncate(size)
        try:
            _run(f"mkfs.{kind}", *quiet, *options, image)
            loop = _run("losetup", "--find", "--show", image)
            _run("mount", loop, folder)
            yield Device(folder, os.path.basename(loop))
        finally:
            with suppress(OSError):
                _run("umount", folder)
            if loop:
                with suppress(OSError):
                    _run("losetup", "--detach", loop)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()
