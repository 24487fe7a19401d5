"""The control file of a log: what its writer publishes, and whose it is. For worker threads."""

from __future__ import annotations

import os

from .._core.file_kinds import remote_kind
from .._core.machine import boot_id
from .._core.opening import reserve
from .._native import LogWriter, crc32c
from .calls import naming, write_all
from .format import CONTROL_BYTES, CONTROL_NAME, HOLDER_AT, ControlIdentity, Holder
from .locks import LockedFile
from .log_folder import Folder


class Control:
    """The control file of a writer: it is locked, and never replaced.

    Attributes:
        block: its bytes when it was opened.
        own: its device and inode.
        boot: id of the boot of this machine.
        identity: what it says of the log; None if its words cannot be believed.
    """

    __slots__ = ("_file", "_folder", "_path", "block", "boot", "identity", "own")

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        path = self._path = folder.path_of(CONTROL_NAME)
        self._file = file = LockedFile(folder, CONTROL_NAME, os.O_CREAT | os.O_NOFOLLOW)
        self.boot: bytes = boot_id()
        try:
            with naming(path):
                file.lock()
                length = os.fstat(file.fd).st_size
                if length < CONTROL_BYTES:
                    reserve(file.fd, 0, CONTROL_BYTES, length)
                self.block: bytes = os.pread(file.fd, CONTROL_BYTES, 0)
            self.identity: ControlIdentity | None = ControlIdentity.unpack(self.block, path, crc32c)
            found = os.fstat(file.fd)
            self.own: tuple[int, int] = (found.st_dev, found.st_ino)
            if self.identity is not None and not self.identity.is_of(*self.own, self.boot):
                self.identity = None
        except BaseException:
            self.close()
            raise

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the file was written in this boot, so that its positions can be believed, too."""
        return self.identity is not None and self.identity.boot == self.boot

    def map(self) -> LogWriter:
        """Map the words by a second descriptor, which has no lock.

        A mapping keeps its open file alive. With the first descriptor it would keep the lock in a
        forked child (locks.1).
        """
        fd = self._folder.open_file(CONTROL_NAME, os.O_RDWR | os.O_NOFOLLOW)
        try:
            return LogWriter(fd)
        finally:
            os.close(fd)

    def say_who_writes(self, life: int) -> None:
        """Note who writes, for the messages of writers that are refused."""
        holder = Holder(os.getpid(), life, os.uname().nodename)
        with naming(self._path):
            write_all(self._file.fd, holder.pack(), HOLDER_AT)

    def adopt(self, log_id: bytes) -> None:
        """Write the identity, so that readers believe the words. Call it once they are true."""
        identity = ControlIdentity(log_id, *self.own, self.boot)
        with naming(self._path):
            write_all(self._file.fd, identity.pack(crc32c), 0)

    def sync(self) -> None:
        """Make the words durable."""
        with naming(self._path):
            os.fdatasync(self._file.fd)

    def close(self) -> None:
        """Close the descriptor and release its lock."""
        self._file.close()


def open_control(folder: Folder) -> int | None:
    """Open a control file as a reader does; return None if it is missing."""
    try:
        return folder.open_file(CONTROL_NAME, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None


def believed_control(fd: int, folder: Folder) -> tuple[bytes, ControlIdentity, bool] | None:
    """Read an open control file.

    Returns:
        The bytes of the file, its identity, and whether it was written in this boot; None if it
        cannot be believed.
    """
    if remote_kind(fd) is not None:
        return None
    path = folder.path_of(CONTROL_NAME)
    with naming(path):
        block, found = os.pread(fd, CONTROL_BYTES, 0), os.fstat(fd)
    identity, boot = ControlIdentity.unpack(block, path, crc32c), boot_id()
    if identity is None or not identity.is_of(found.st_dev, found.st_ino, boot):
        return None
    return block, identity, identity.boot == boot
