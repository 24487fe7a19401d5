"""The locks of a log's one writer, and who it is. For worker threads.

Invariants.
  1  The kernel keeps the writer's locks. We never break a lock because of a process number or a
     time (L13). A forked child closes its copies of the descriptors: they would keep the locks of
     a parent that died.
  2  The writer holds two locks: one on the control file, one on the segment that it writes. The
     control file alone is not enough: somebody may remove it, and a second writer would lock the
     new one. A segment is locked before it has its name, and the segment before it stays locked
     until then. So the last segment is always locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from functools import partial
from weakref import WeakSet

import anyio

from .._errors import CorruptLogError, UnsupportedError
from .._native import crc32c
from .._runtime.threads import run_apart
from .format import CONTROL_BYTES, CONTROL_NAME, ControlIdentity, Holder
from .log_folder import Folder

_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None)
#: struct flock with the padding behind its last field: lock byte 0 exclusively; unlock it.
_LOCK_BYTE_0 = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_UNLOCK_BYTE_0 = struct.pack("hhqqi0q", fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)


class LockedFile:
    """An open file that is locked, now or soon; when it is dropped, its lock is released.

    From its opening on, a forked child closes its copy: it has one, too, if it is forked before the
    lock is taken.
    """

    __slots__ = ("__weakref__", "_folder", "fd")

    def __init__(self, folder: Folder, name: str, flags: int) -> None:
        self.fd: int = -1
        self._folder = folder
        self.fd = folder.open_file(name, flags | os.O_RDWR)
        _held.add(self)

    def lock(self) -> None:
        """Lock the file; raise ``HeldError`` if another writer has it."""
        if _SET_LOCK is None:
            reason = "the system has no locks of open files"
            raise UnsupportedError(f"write {self._folder.path}", reason)
        try:
            fcntl.fcntl(self.fd, _SET_LOCK, _LOCK_BYTE_0)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise HeldError(self._folder) from None
            raise

    def _unlock(self) -> int:
        """Release the lock if there is one; return the descriptor to close, or -1.

        Closing alone would leave the lock with a child that another thread forks at this moment.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0 and _SET_LOCK is not None:
            with suppress(OSError):
                fcntl.fcntl(fd, _SET_LOCK, _UNLOCK_BYTE_0)
        return fd

    def close(self) -> None:
        """Release the lock, and close the file; a second call does nothing."""
        fd = self._unlock()
        if fd >= 0:
            os.close(fd)

    def close_in_child(self) -> None:
        """Close a copy whose lock is the parent's."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        fd = self._unlock()
        if fd >= 0:
            run_apart(partial(os.close, fd))  # it may have to free blocks


_held: WeakSet[LockedFile] = WeakSet()


def _let_go() -> None:
    for file in list(_held):
        with suppress(OSError):
            file.close_in_child()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)  # locks.1


class HeldError(anyio.BusyResourceError):
    """Another writer has the log open."""

    def __init__(self, folder: Folder) -> None:
        self.path = folder.path
        self.holder: Holder | None = _holder(folder)
        Exception.__init__(self, self.path, self.holder)

    def __str__(self) -> str:
        who = "another process"
        if self.holder is not None:
            who = f"process {self.holder.pid} on {self.holder.host} (life {self.holder.life})"
        return (
            f'{self.path} is written by {who}, and a log has one writer: open it with mode "r", '
            "or close it there first"
        )


def _holder(folder: Folder) -> Holder | None:
    """Say who wrote last, if the control file is valid and tells."""
    try:
        fd = folder.open_file(CONTROL_NAME, os.O_RDONLY | os.O_NOFOLLOW)
    except (OSError, CorruptLogError):
        return None
    try:
        block = os.pread(fd, CONTROL_BYTES, 0)
        path = folder.path_of(CONTROL_NAME)
        known = ControlIdentity.unpack(block, path, crc32c) is not None
    except (OSError, UnsupportedError):
        return None
    finally:
        os.close(fd)
    holder = Holder.unpack(block) if known else None
    return holder if holder is not None and holder.is_told else None
