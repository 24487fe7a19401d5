"""A FUSE file system that keeps a folder in memory and writes down all that happens to its files.

Run as ``python -m tests.powercut.recording_fs MOUNTPOINT LOG``. It says "ready" on its standard
output when it is mounted, and unmounts when its standard input ends, so also when the client at the
other end is killed. It has to be a process of its own: a client that waits for it with the GIL
held, as in a page fault, would wait for ever if the answer needed the same GIL.

The kernel's page cache is in use, and FUSE's write-back mode is not. So a store through a mapping
arrives as a WRITE when the page is written back, and a write(2) as a WRITE before it returns: the
log is the order in which the client saw things happen.

Writing ``fsync NAME N`` or ``write NAME N`` to the file ``.control`` makes the N-th such request
for that file from then on fail with EIO; ``write NAME N ERRNO TIMES`` says with which errno, and
how many fail. The file need not exist yet; ``.`` is the folder. After ``read NAME N`` all later
reads fail as well: the kernel asks again for single pages.

Clients can make folders, and the log does not say so: a file in a folder has its path for a name,
and where that survives, so does the folder.

When a client unlinks a file that is open, libfuse renames it to ``.fuse_hidden…`` first, and the
log says so.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
import sys
import threading

from mfusepy import FUSE, FuseOSError, Operations

from tests.powercut.records import (
    DIRECTORY,
    Create,
    Record,
    Rename,
    Resize,
    SyncBegin,
    SyncEnd,
    Unlink,
    Write,
    append,
)

CONTROL = ".control"
BLOCK = 4096
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02


class RecordingFS(Operations):
    """The folder. Handles are inode numbers; requests come from several threads."""

    use_ns = True

    def __init__(self, log: int) -> None:
        self._log = log
        # Every effect and its record are one step, else the log would not be in their order.
        self._lock = threading.RLock()
        self._inodes = itertools.count(DIRECTORY + 1)
        self._tickets = itertools.count()
        self._names: dict[str, int] = {".": DIRECTORY}
        self._folders: dict[str, int] = {}
        self._contents: dict[int, bytearray] = {}
        #: Which blocks of a file were written or reserved; stat(2) tells whether it has holes.
        self._blocks: dict[int, set[int]] = {}
        #: (kind, name) -> how many requests of the kind until the one that fails.
        self._failing: dict[tuple[str, str], int] = {}
        #: With which errno they fail, and how many of them.
        self._orders: dict[tuple[str, str], tuple[int, int]] = {}

    def init(self, path):
        print("ready", flush=True)

    # Names.

    def create(self, path, mode, flags):
        with self._lock:
            name, inode = path[1:], next(self._inodes)
            self._names[name] = inode
            self._contents[inode] = bytearray()
            self._blocks[inode] = set()
            self._record(Create(name, inode))
            return inode

    def mkdir(self, path, mode):
        with self._lock:
            self._folders[path[1:]] = next(self._inodes)
        return 0

    def rename(self, old, new):
        with self._lock:
            inode = self._find(old)
            del self._names[old[1:]]
            self._names[new[1:]] = inode
            self._record(Rename(old[1:], new[1:], inode))
        return 0

    def unlink(self, path):
        with self._lock:
            self._find(path)
            del self._names[path[1:]]
            self._record(Unlink(path[1:]))
        return 0

    def readdir(self, path, handle):
        with self._lock:
            prefix = f"{path[1:]}/".lstrip("/")
            found = (self._names | self._folders).items()
            entries = [(n.removeprefix(prefix), i) for n, i in found if n.startswith(prefix)]
            return [(name, {"st_ino": inode}, 0) for name, inode in entries if "/" not in name]

    def getattr(self, path, handle=None):
        with self._lock:
            inode = handle or self._find(path)
            if inode not in self._contents:
                return {"st_ino": inode, "st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            sectors = len(self._blocks[inode]) * BLOCK // 512
            size = {"st_size": len(self._contents[inode]), "st_blocks": sectors}
            return {"st_ino": inode, "st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, **size}

    def statfs(self, path):
        return {"f_bsize": BLOCK, "f_frsize": BLOCK, "f_blocks": 1 << 30, "f_bavail": 1 << 30}

    # Content.

    def open(self, path, flags):
        with self._lock:
            inode = self._find(path)
            if flags & os.O_TRUNC:
                self._resize(inode, 0)
            return inode

    def read(self, path, size, offset, handle):
        with self._lock:
            self._fail_if_armed("read", handle)
            return bytes(self._contents[handle][offset : offset + size])

    def write(self, path, data, offset, handle):
        with self._lock:
            if handle == self._names.get(CONTROL):
                self._arm(data.decode())
                return len(data)
            self._fail_if_armed("write", handle)
            self._store(handle, offset, data)
        return len(data)

    def truncate(self, path, length, handle=None):
        with self._lock:
            self._resize(handle or self._find(path), length)
        return 0

    def fallocate(self, path, mode, offset, length, handle):
        with self._lock:
            end, size = offset + length, len(self._contents[handle])
            if mode == FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
                self._store(handle, offset, bytes(max(0, min(end, size) - offset)))
                self._blocks[handle] -= set(range(-(-offset // BLOCK), end // BLOCK))
            elif mode:
                raise FuseOSError(errno.EOPNOTSUPP)
            else:
                self._blocks[handle] |= blocks(offset, end)
                self._resize(handle, max(size, end))
        return 0

    # Durability.

    def fsync(self, path, datasync, handle):
        return self._sync(handle)

    def fsyncdir(self, path, datasync, handle):
        return self._sync(DIRECTORY)

    def _sync(self, inode: int) -> int:
        ticket = next(self._tickets)
        self._record(SyncBegin(ticket, inode))
        try:
            self._fail_if_armed("fsync", inode)
        except OSError:
            self._record(SyncEnd(ticket, ok=False))
            raise
        self._record(SyncEnd(ticket, ok=True))
        return 0

    # Steps that requests share.

    def _find(self, path: str) -> int:
        name = path[1:] or "."
        inode = self._names.get(name) or self._folders.get(name)
        if inode is None:
            raise FuseOSError(errno.ENOENT)
        return inode

    def _store(self, inode: int, offset: int, data: bytes) -> None:
        content = self._contents[inode]
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        self._blocks[inode] |= blocks(offset, offset + len(data))
        self._record(Write(inode, offset, data))

    def _resize(self, inode: int, size: int) -> None:
        content = self._contents[inode]
        del content[size:]
        content.extend(bytes(size - len(content)))
        self._blocks[inode] &= blocks(0, size)
        self._record(Resize(inode, size))

    def _record(self, record: Record) -> None:
        with self._lock:
            append(self._log, record)

    def _arm(self, order: str) -> None:
        kind, name, nth, *rest = order.split()
        number, times = map(int, rest or (errno.EIO, 1))
        self._failing[kind, name] = int(nth)
        self._orders[kind, name] = number, times

    def _fail_if_armed(self, kind: str, inode: int) -> None:
        with self._lock:
            for (armed, name), left in self._failing.items():
                if armed == kind and self._names.get(name) == inode:
                    self._failing[armed, name] = left - 1
                    number, times = self._orders[armed, name]
                    if left <= 1 and (1 - left < times or kind == "read"):
                        raise FuseOSError(number)


def blocks(start: int, end: int) -> set[int]:
    """Number the blocks that a range touches."""
    return set(range(start // BLOCK, -(-end // BLOCK)))


def unmount_at_end_of_input(mountpoint: str) -> None:
    """Wait until the client is done with us, or dead; then leave no mount behind."""
    sys.stdin.buffer.read()
    subprocess.run(["umount", "--lazy", mountpoint], check=False)
    # A process that still has a file open gets errors from now on, and waits for no answer.
    os._exit(0)


def main(mountpoint: str, log: str) -> None:
    """Serve until the standard input ends."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    threading.Thread(target=unmount_at_end_of_input, args=(mountpoint,), daemon=True).start()
    # Our own inode numbers: a name that comes to mean another file must show in stat(2).
    FUSE(RecordingFS(descriptor), mountpoint, foreground=True, use_ino=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
