"""Locks of open files, and the owners of claims: who is alive, as the kernel says.

A lock goes when the last copy of its descriptor is closed, so also when its process is killed. No
process number and no time is asked. A forked child has copies: it gives them up at once, or a dead
parent would seem alive (R13).
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
    """A descriptor whose locks count; -1 once it is closed. Worker threads only."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, path: str, flags: int = os.O_RDWR) -> None:
        self.fd: int = os.open(path, flags | os.O_CLOEXEC, 0o600)
        _held.add(self)

    def try_lock(self, start: int, length: int = 1, *, shared: bool = False) -> bool:
        """Lock a range, for reading if shared; False if somebody else's lock is in the way."""
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        try:
            self._set(_SET, kind, start, length)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def lock(self, start: int, patience: float) -> None:
        """Lock a byte; waits for others. Threads that share this exclude each other themselves.

        Raises:
            TimeoutError: if somebody else has it for so many seconds.
        """
        give_up, pause = time.monotonic() + patience, FIRST_PAUSE_SECONDS
        while not self.try_lock(start):
            if time.monotonic() >= give_up:
                raise TimeoutError(errno.ETIMEDOUT, "another process keeps it locked")
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    def unlock(self, start: int, length: int = 1) -> None:
        """Give a range free."""
        self._set(_SET, fcntl.F_UNLCK, start, length)

    def is_locked_elsewhere(self, start: int) -> bool:
        """Tell whether a byte is locked by another descriptor."""
        if _GET is None:
            raise _unsupported()
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
        kind: int = _FLOCK.unpack(fcntl.fcntl(self.fd, _GET, asked))[0]
        return kind != fcntl.F_UNLCK

    def close(self) -> None:
        """Close the descriptor, once; its locks go."""
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


def _unsupported() -> UnsupportedError:
    return UnsupportedError("share a cache", "the system has no locks of open files")


class Leases:
    """The owners of claims: each live cache has a number that nobody else has."""

    __slots__ = ("_file", "owner")

    def __init__(self, path: str) -> None:
        self._file = LockFile(path, os.O_RDWR | os.O_CREAT)
        #: Our own number; 0 while there is none.
        self.owner: int = 0

    def take(self, begin: int) -> int:
        """Take a number, the first free one from ``begin`` on: none is used again soon.

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
        """Tell whether a number is somebody's."""
        return owner == self.owner or (
            owner > 0 and self._file.is_locked_elsewhere(lease_offset(owner))
        )

    def close(self) -> None:
        """Give the number back."""
        self._file.close()
