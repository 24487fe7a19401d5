"""A FUSE file system that claims to make files longer and does not, and syncs no directory.

Run as ``python -m tests.support.odd_fs MOUNTPOINT LOG``, by ``tests.powercut.mount.mounted``.
``kept`` has four bytes, which no truncation or write changes. Files called ``growing…`` become as
long as asked, up to 8192 bytes. Reads of ``hung`` never return. Any other file stays empty.
"""

from __future__ import annotations

import errno
import stat
import sys
import threading

from mfusepy import FUSE, FuseOSError, Operations

from tests.powercut.recording_fs import unmount_at_end_of_input

MOST = 8192


class OddFS(Operations):
    """The only folder; it keeps names and sizes, but no data."""

    use_ns = True

    def __init__(self) -> None:
        self._sizes = {"/kept": 4, "/growing": 0, "/hung": MOST}

    def init(self, path):
        print("ready", flush=True)

    def getattr(self, path, handle=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path not in self._sizes:
            raise FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": self._sizes[path]}

    def readdir(self, path, handle):
        return [name[1:] for name in self._sizes]

    def create(self, path, mode, flags):
        self._sizes[path] = 0
        return 0

    def rename(self, old, new):
        """Serve libfuse, which renames what is unlinked while it is open."""
        self._sizes[new] = self._sizes.pop(old)
        return 0

    def unlink(self, path):
        del self._sizes[path]
        return 0

    def open(self, path, flags):
        return 0

    def read(self, path, size, offset, handle):
        if path == "/hung":
            threading.Event().wait()
        return (b"kept" * (MOST // 4))[: self._sizes[path]][offset : offset + size]

    def write(self, path, data, offset, handle):
        return len(data)

    def fsyncdir(self, path, datasync, handle):
        raise FuseOSError(errno.EINVAL)

    def truncate(self, path, length, handle=None):
        if path.startswith("/growing"):
            self._sizes[path] = min(length, MOST)
        return 0


def main(mountpoint: str, log: str) -> None:
    """Serve until the standard input ends."""
    threading.Thread(target=unmount_at_end_of_input, args=(mountpoint,), daemon=True).start()
    FUSE(OddFS(), mountpoint, foreground=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
