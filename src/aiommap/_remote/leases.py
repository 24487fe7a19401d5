"""Locks of open files, and leases: the kernel says which owner of claims is alive.

The kernel releases a lock when the last copy of its descriptor is closed, also when the process is
killed. No process number and no time decides. A forked child has copies of the descriptors and
closes them at once: otherwise a dead parent would seem alive (R13).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
import weakref
from contextlib import suppress

from .._errors import UnsupportedError
from .._runtime.threads import run_apart
from .layout import OWNERS, lease_offset

_SET = getattr(fcntl, "F_OFD_SETLK", None)
_GET = getattr(fcntl, "F_OFD_GETLK", None)
#: struct flock, with the padding behind its last field.
_FLOCK = struct.Struct("hhqqi0q")

#: The first pause and the longest one between two attempts.
FIRST_PAUSE_SECONDS = 0.00005
MAX_PAUSE_SECONDS = 0.002

_held: weakref.WeakSet[LockFile] = weakref.WeakSet()


def _let_go() -> None:
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_let_go)


class LockFile:
    """A descriptor that takes locks; -1 after ``close``. Worker threads only."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, path: str, flags: int = os.O_RDWR) -> None:
        self.fd: int = os.open(path, flags | os.O_CLOEXEC, 0o600)
        _held.add(self)

    def try_lock(self, start: int, length: int = 1, *, shared: bool = False) -> bool:
        """Lock a range, exclusively or shared; False if the lock of another descriptor forbids it.

        A lock that this descriptor has on the range is replaced.
        """
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        try:
            self._set(_SET, kind, start, length)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def lock(self, start: int, patience: float) -> None:
        """Lock a byte exclusively, and wait for it up to ``patience`` seconds.

        Threads that share this object have to exclude one another by other means.

        Raises:
            TimeoutError: if another descriptor has it locked for all that time.
        """
        give_up, pause = time.monotonic() + patience, FIRST_PAUSE_SECONDS
        while not self.try_lock(start):
            if time.monotonic() >= give_up:
                raise TimeoutError(errno.ETIMEDOUT, "another process keeps it locked")
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    def unlock(self, start: int, length: int = 1) -> None:
        """Unlock a range."""
        self._set(_SET, fcntl.F_UNLCK, start, length)

    def is_locked_elsewhere(self, start: int) -> bool:
        """Tell whether a byte is locked by another descriptor."""
        if _GET is None:
            raise _unsupported()
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
        kind: int = _FLOCK.unpack(fcntl.fcntl(self.fd, _GET, asked))[0]
        return kind != fcntl.F_UNLCK

    def close(self) -> None:
        """Close the descriptor and so release its locks; a second call does nothing."""
        fd, self.fd = self.fd, -1
        _held.discard(self)
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            run_apart(self.close)

    def _set(self, command: int | None, kind: int, start: int, length: int) -> None:
        if command is None:
            raise _unsupported()
        fcntl.fcntl(self.fd, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def lock_in(fd: int, start: int, length: int) -> tuple[int, int | None] | None:
    """Return the range [start, end) of a lock that other descriptors have in a range of a file.

    Returns:
        None if there is no such lock. The end is None for a lock of everything behind its start.
    """
    if _GET is None:
        raise _unsupported()
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind, _, low, count, _ = _FLOCK.unpack(fcntl.fcntl(fd, _GET, asked))
    return None if kind == fcntl.F_UNLCK else (low, low + count if count else None)


def _unsupported() -> UnsupportedError:
    return UnsupportedError("share a cache", "the system has no locks of open files")


class Leases:
    """The numbers of owners of claims: each open cache has one that no other cache has."""

    __slots__ = ("_file", "owner")

    def __init__(self, path: str) -> None:
        self._file = LockFile(path, os.O_RDWR | os.O_CREAT)
        #: The number of this cache; 0 while it has none.
        self.owner: int = 0

    def take(self, begin: int) -> int:
        """Take the first free number behind ``begin``, so that no number is used again soon.

        Raises:
            OSError: EUSERS if all are taken.
        """
        for step in range(OWNERS - 1):
            number = 1 + (begin + step) % (OWNERS - 1)
            if self._file.try_lock(lease_offset(number)):
                self.owner = number
                return number
        raise OSError(errno.EUSERS, f"{OWNERS - 1} caches have the folder open")

    def is_alive(self, owner: int) -> bool:
        """Tell whether an open cache has this number."""
        return owner == self.owner or (
            owner > 0 and self._file.is_locked_elsewhere(lease_offset(owner))
        )

    def close(self) -> None:
        """Give the number back; another cache may take it then."""
        self._file.close()
