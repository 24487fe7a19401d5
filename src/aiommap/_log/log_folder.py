"""The folder of a log: its files are reached by its descriptor. For worker threads.

Invariants.
  1  A name is only ever looked up in the folder that was opened. Somebody may rename that folder or
     put another one at its path, which may hold another log: the path is for messages.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio

from .._core.file_kinds import remote_kind
from .._errors import CorruptLogError, name_file
from .._runtime.threads import ReentrantMutex


class Folder:
    """The folder of a log, from ``open`` until ``close``.

    Attributes:
        path: where it was when it was opened.
    """

    __slots__ = ("_closed", "_fd", "_mutex", "_users", "path")

    def __init__(self, path: str) -> None:
        self.path: str = path
        self._fd = -1
        #: How many threads use the descriptor, and whether the last of them closes it.
        self._users = 0
        self._closed = False
        self._mutex = ReentrantMutex()

    def open(self, *, create: bool) -> None:
        """Open the folder; with ``create``, make it durably if it is missing."""
        if create:
            _make(self.path)
        self._fd = _open_folder(self.path)

    @contextmanager
    def _at(self, name: str) -> Iterator[int]:
        """Lend the descriptor to this thread; errors of the system get the path of a file."""
        with self._mutex:
            if self._closed:
                raise anyio.ClosedResourceError(f"{self.path} is closed: open the log again")
            self._users += 1
        try:
            yield self._fd
        except OSError as error:
            name_file(error, self.path_of(name))
            raise
        finally:
            with self._mutex:
                self._users -= 1
                self._close_unused()

    def path_of(self, name: str) -> str:
        """Return the path of a file, for messages."""
        return os.path.normpath(os.path.join(self.path, name))

    def open_file(self, name: str, flags: int) -> int:
        """Open a file of the log.

        Raises:
            CorruptLogError: if something else has the file's name. An opening of a pipe would wait,
                and a link (with ``O_NOFOLLOW``) may lead out of the folder.
        """
        with self._at(name) as folder:
            try:
                fd = os.open(name, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o644, dir_fd=folder)
            except OSError as error:
                if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
                    raise self._not_a_file(name, "a symbolic link") from None
                # With O_TMPFILE the name is a folder's, and EISDIR: the system has no such files.
                if error.errno in (errno.EISDIR, errno.ENXIO) and not flags & os.O_DIRECTORY:
                    raise self._not_a_file(name, "no regular file") from None
                raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._not_a_file(name, "no regular file")
        return fd

    def _not_a_file(self, name: str, what: str) -> CorruptLogError:
        return CorruptLogError(self.path, f"{self.path_of(name)} is {what}: move it away")

    def names(self) -> list[str]:
        """List the names of all files."""
        with self._at(".") as folder:
            # Two threads that list by one descriptor would share its position, and miss names.
            own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
            try:
                return os.listdir(own)
            finally:
                os.close(own)

    def identity_of(self, name: str) -> tuple[int, int] | None:
        """Return device and inode of the file that has a name; None if there is none."""
        with self._at(name) as folder:
            try:
                found = os.stat(name, dir_fd=folder)
            except FileNotFoundError:
                return None
        return found.st_dev, found.st_ino

    def check_path(self) -> None:
        """Raise if the folder was deleted, or another one is at its path now.

        Raises:
            CorruptLogError: then. If nothing is at the path, the folder was only renamed.
        """
        with self._at(".") as folder:
            own = there = os.fstat(folder)
        with suppress(OSError):
            there = os.stat(self.path)
        if not own.st_nlink:
            raise CorruptLogError(self.path, "the folder was deleted: open the log again")
        if not os.path.samestat(own, there):
            raise CorruptLogError(
                self.path, "another folder is at this path now: open the log again"
            )

    def remote_kind(self) -> str | None:
        """Name the network file system that the folder is on; None if it is local."""
        with self._at(".") as folder:
            return remote_kind(folder)

    def give_name(self, fd: int, name: str) -> None:
        """Give a file without a name its name; an error if that is taken."""
        with self._at(name) as folder:
            # Given dst_dir_fd, Python calls linkat(2), which can follow the link in /proc.
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""
        with self._at(old) as folder:
            os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)

    def unlink(self, name: str) -> None:
        """Remove a name."""
        with self._at(name) as folder:
            os.unlink(name, dir_fd=folder)

    def sync(self) -> None:
        """Make the names durable."""
        with self._at(".") as folder:
            os.fsync(folder)

    def close(self) -> None:
        """Close the descriptor once no thread uses it; a second call does nothing."""
        with self._mutex:
            self._closed = True
            self._close_unused()

    def _close_unused(self) -> None:
        if self._closed and not self._users:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        self.close()


def _make(path: str) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    parent = _open_folder(os.path.dirname(path))
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _open_folder(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
