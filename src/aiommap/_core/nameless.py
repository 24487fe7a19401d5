"""Files that are opened without a path: by a descriptor that the caller gave; anonymous memory."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass

import anyio

from .._errors import AccessModeError, UnsupportedError
from .._runtime.threads import run_apart

_ACCESS = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}
#: Flags of an open file description with which our reads and stores cannot work. With O_APPEND the
#: kernel appends bytes that are to be stored elsewhere; with O_DIRECT it wants whole blocks.
_UNUSABLE = {"O_APPEND": os.O_APPEND, "O_DIRECT": getattr(os, "O_DIRECT", 0)}
#: Of fcntl(2) and memfd_create(2); Python 3.11 does not name them all.
_F_GET_SEALS = 1034
_F_ADD_SEALS = 1033
_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_WRITE, _SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16
_NOEXEC_SEAL = 8
FIXED_SIZE = _SEAL_SHRINK | _SEAL_GROW
READ_ONLY = _SEAL_WRITE | _SEAL_FUTURE_WRITE


class GivenDescriptor:
    """A duplicate of a descriptor, kept until a file is opened by it; on the loop by default."""

    __slots__ = ("_held", "whole")

    def __init__(self, number: int) -> None:
        #: The name of the file in messages, instead of a path.
        self.whole: str = f"descriptor {number}"
        self._held: int | None = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 0)

    @classmethod
    def check(cls, number: int, mode: str, wanted: int) -> GivenDescriptor:
        """Duplicate a descriptor, or raise if the mode cannot use it; without touching the file.

        Args:
            number: the descriptor.
            mode: the mode letters.
            wanted: the flags of open(2) for which the letters stand.
        Raises:
            OSError: EBADF, if the descriptor is not open.
            AccessModeError: if it was opened without the access that the mode needs.
            ValueError: for the mode "x+", which always creates a file.
        """
        if wanted & os.O_EXCL:
            raise ValueError(
                f'mode "{mode}" creates a file, and descriptor {number} is one already: use '
                '"w+" to overwrite it'
            )
        try:
            flags = fcntl.fcntl(number, fcntl.F_GETFL)
        except (OSError, OverflowError):
            reason = f"{os.strerror(errno.EBADF)}: descriptor {number} is not open"
            raise OSError(errno.EBADF, reason) from None
        given = "O_PATH" if flags & os.O_PATH else _ACCESS[flags & os.O_ACCMODE]
        needed = _ACCESS[wanted & os.O_ACCMODE]
        if given in (needed, "O_RDWR"):
            return cls(number)
        remedy = f'descriptor {number} has to be opened with {needed} for mode "{mode}"'
        raise AccessModeError("map", given, remedy)

    def open(self, flags: int) -> tuple[int, bool]:
        """Open the same file. Worker threads only.

        Returns:
            A descriptor, and whether it shares its position and flags with the one of the caller.
            It does if the system does not let us open the file again.
        """
        held = self._duplicate()
        try:
            return os.open(f"/proc/self/fd/{held}", flags & ~(os.O_CREAT | os.O_EXCL)), False
        except BlockingIOError:
            raise  # a lease
        except OSError:
            pass  # no permission, because another process passed it to us; or there is no /proc
        shared = fcntl.fcntl(held, fcntl.F_GETFL)
        for name, flag in _UNUSABLE.items():
            if shared & flag:
                reason = f"it was opened with {name}, and cannot be opened without: open it again"
                raise UnsupportedError(f"map {self.whole}", reason, errno.EINVAL)
        return os.dup(held), True

    def stat(self) -> os.stat_result:
        """Return the answer of fstat(2) for the file. Worker threads only."""
        return os.fstat(self._duplicate())

    def find_path(self) -> str | None:
        """Ask the system for a path that leads to the file. Worker threads only."""
        held = self._duplicate()
        try:
            path = os.readlink(f"/proc/self/fd/{held}")
            if path.startswith("/") and os.path.samestat(os.stat(path), os.fstat(held)):
                return path
        except OSError:
            pass
        return None

    def close(self) -> None:
        """Close the duplicate. Worker threads only."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def _duplicate(self) -> int:
        if self._held is None:
            raise anyio.ClosedResourceError(f"{self.whole} was opened already: pass it once more")
        return self._held

    def __del__(self) -> None:
        # In another thread: close(2) of a last descriptor may wait, and this may be the loop (I1).
        if getattr(self, "_held", None) is not None:
            run_apart(self.close)


@dataclass(frozen=True, slots=True)
class AnonymousMemory:
    """Memory without a name, made by memfd_create(2).

    Attributes:
        seal: whether its size is fixed once it is made.
        whole: the name in messages, instead of a path.
    """

    seal: bool
    whole: str = "anonymous memory"

    def open(self) -> int:
        """Make the memory, with no bytes, and return its descriptor. Worker threads only."""
        create = getattr(os, "memfd_create", None)
        if create is None:
            reason = "the system has no memfd_create(2): use a file on a file system in memory"
            raise UnsupportedError("make anonymous memory", reason, errno.ENOSYS)
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            return int(create("aiommap", flags | _NOEXEC_SEAL))
        except OSError as error:
            if error.errno != errno.EINVAL:  # before Linux 6.3
                raise
        return int(create("aiommap", flags))

    def seal_size(self, fd: int) -> None:
        """Fix the size if ``seal`` is set, and forbid further seals."""
        if self.seal:
            fcntl.fcntl(fd, _F_ADD_SEALS, FIXED_SIZE | _SEAL)


def open_again(fd: int) -> int:
    """Open a file once more for reading, with a position of its own if the system allows it.

    Worker threads only.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return os.dup(fd)


def seals_of(fd: int) -> int:
    """Return the seals of a file; 0 for one that cannot have any. Worker threads only."""
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return 0
