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

import anyio

from .._errors import CorruptLogError, UnsupportedError
from .._native import crc32c
from .format import CONTROL_BYTES, CONTROL_NAME, ControlIdentity, Holder
from .log_folder import Folder

_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None)
#: struct flock with the padding behind its last field: lock byte 0 exclusively; unlock it.
_LOCK_BYTE_0 = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_UNLOCK_BYTE_0 = struct.pack("hhqqi0q", fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)

#: Descriptors that hold a lock, or may get one.
_held: set[int] = set()


def _let_go() -> None:
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
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


def open_to_lock(folder: Folder, name: str, flags: int) -> int:
    """Open a file that is locked later, and have a forked child close its copy from now on.

    A child that is forked before the lock is taken has a copy of the descriptor, too.
    """
    fd = folder.open_file(name, flags | os.O_RDWR)
    _held.add(fd)
    return fd


def close_locked(fd: int) -> None:
    """Release the lock of a descriptor if it has one, and close it.

    Closing alone would leave the lock with a child that another thread forks at this moment.
    """
    if fd in _held and _SET_LOCK is not None:
        with suppress(OSError):
            fcntl.fcntl(fd, _SET_LOCK, _UNLOCK_BYTE_0)
    _held.discard(fd)
    os.close(fd)


def lock(fd: int, folder: Folder) -> None:
    """Lock a descriptor of ``open_to_lock``; raise ``HeldError`` if another writer has it."""
    if _SET_LOCK is None:
        raise UnsupportedError(f"write {folder.path}", "the system has no locks of open files")
    try:
        fcntl.fcntl(fd, _SET_LOCK, _LOCK_BYTE_0)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise HeldError(folder) from None
        raise
