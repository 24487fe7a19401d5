"""Paths as the kernel takes them at the moment of the call, and the name of a new file (I14).

The kernel gets a path as the caller gave it. We collapse nothing: ``..`` after a symbolic link
leads to the parent of the directory that the link names, and a slash at the end asks for a
directory. A relative path starts at the working directory of the moment when the caller passed it,
even if that changes before a worker thread opens the path.
"""

from __future__ import annotations

import errno
import os
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from .._logs import FLUSHES
from .._native import sync_filesystem
from .file_state import Identity

#: How many symbolic links the kernel follows before it calls a path a loop.
MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class FilePath:
    """A path as a caller gave it, and where it starts.

    Attributes:
        whole: the path from the root, for ``path``, for errors and to open it again.
        given: the path that the caller gave.
        start: the working directory where it starts; None if it starts at the root.
    """

    whole: str
    given: str
    start: str | None

    @classmethod
    def check(cls, path: str | os.PathLike[str]) -> FilePath:
        """Take a path, or raise if no file can have that name; also for the loop thread."""
        try:
            given = os.fsdecode(path)
        except TypeError:
            raise TypeError(
                f"path is {reprlib.repr(path)}: give a str, or an object with a path"
            ) from None
        if not given:
            raise ValueError("path is empty: name a file")
        if "\0" in given:
            raise ValueError(f"path is {given!r}: a name cannot hold a null character")
        try:
            os.fsencode(given)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"path is {given!r}, which cannot be written in the file system's encoding: "
                f"{error.reason}; make it with os.fsdecode"
            ) from None
        if given.startswith("/"):
            return cls(_from_root("/", given), given, None)
        try:
            start = os.getcwd()
        except OSError:
            start = ""
        if not start.startswith("/"):  # removed, or out of reach: it has no path from the root
            return cls(given, given, None)
        return cls(_from_root(start, given), given, start)

    @contextmanager
    def beginning(self) -> Iterator[tuple[str, int | None]]:
        """Yield the path to open, and a descriptor of its start. Worker threads only."""
        if self.start is None:
            yield self.given, None
            return
        directory = _open_start(self.start)
        if directory is None:
            yield self.whole, None
            return
        try:
            yield self.given, directory
        finally:
            os.close(directory)


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Return the path from the root that names the same file as this path does from here."""
    return FilePath.check(path).whole


def _from_root(start: str, path: str) -> str:
    """Join a path to a directory that is named without links, without empty and "." parts."""
    names = path.split("/")
    asks_for_directory = names[-1] in ("", ".")
    base = [name for name in start.split("/") if name]
    below = [name for name in names if name not in ("", ".")]
    while below and below[0] == "..":  # no link comes before it
        del below[0]
        del base[-1:]
    return "/" + "/".join(base + below) + ("/" if below and asks_for_directory else "")


def _open_start(start: str) -> int | None:
    """Open the working directory; None if it is another one than ``start``."""
    try:
        if os.getcwd() != start:
            return None
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        if os.getcwd() == start:  # else another thread changed it in between
            return directory
    os.close(directory)
    return None


#: Errors that say the directory was not written. As for a file, the kernel may say so only once.
_WRITE_FAILED = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
#: Errors of file systems that cannot sync a directory, FUSE drivers in particular.
_CANNOT_SYNC = frozenset(
    {
        errno.EACCES,
        errno.EINVAL,
        errno.EISDIR,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EOPNOTSUPP,
        errno.EPERM,
    }
)

#: Devices of such file systems for which a warning was logged.
_told: set[int] = set()


class NameNotSyncedError(OSError):
    """The name of a new file may not be durable; the next flush can try to sync it again."""


class NewName:
    """The name of a file that is new or may be, with an open descriptor of its directory.

    ``close``, or the end of the last reference, closes the descriptor. For worker threads, one at a
    time; ``close`` for any thread.
    """

    __slots__ = ("_held", "_shared", "name")

    def __init__(self, directory: int, name: str, *, shared: bool = False) -> None:
        self.name: str = name
        #: Whether other processes may have opened the file, so that its name is never removed,
        #: even if we created it.
        self._shared = shared
        #: The descriptor, until it is closed. Taking it out is one step, and who does it closes it.
        self._held = [directory]

    @property
    def directory(self) -> int:
        """Descriptor of the directory, ``O_PATH`` if it may not be read; -1 once it is closed."""
        for directory in self._held:
            return directory
        return -1

    def remove(self, identity: Identity) -> None:
        """Remove the name if it still names that file, which the caller has to keep open."""
        if self.directory < 0 or self._shared:
            return
        try:
            found = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
            if Identity.of(found) == identity:
                os.unlink(self.name, dir_fd=self.directory)
        except FileNotFoundError:
            return

    def share(self) -> Self:
        """Never remove the name from now on, because other processes may use the file."""
        self._shared = True
        return self

    def sync(self, file: int) -> None:
        """Make the name durable as far as the file system can. Worker threads only.

        Args:
            file: a descriptor of the file itself.
        Raises:
            NameNotSyncedError: if it failed and can be tried again.
            OSError: EIO, ENOSPC or EDQUOT, if the directory could not be written.
        """
        try:
            os.fsync(self.directory)
        except OSError as error:
            if error.errno in _CANNOT_SYNC:
                self._tell_unable(error)
            elif error.errno == errno.EBADF:  # O_PATH: we can only sync the whole file system
                _attempt(sync_filesystem, file)
            else:
                raise _explained(error) from error

    def _tell_unable(self, error: OSError) -> None:
        """Log a warning, once per file system, that it cannot sync directories."""
        device = os.fstat(self.directory).st_dev
        if device not in _told:
            _told.add(device)
            FLUSHES.warning(
                "the file system of %r cannot sync directories (%s), so a power cut may take the "
                "name of a new file away, and the file with it: see docs/durability",
                self.name,
                error.strerror,
            )

    def close(self) -> None:
        """Close the directory; the name stays."""
        while self._held:
            with suppress(IndexError):  # another thread was first
                os.close(self._held.pop())

    def __del__(self) -> None:
        self.close()


def _attempt(sync: Callable[[int], None], fd: int) -> None:
    try:
        sync(fd)
    except OSError as error:
        raise _explained(error) from error


def _explained(error: OSError) -> OSError:
    """Make the error: an OSError if the directory was not written, else one that can be retried."""
    kind = OSError if error.errno in _WRITE_FAILED else NameNotSyncedError
    reason = f"{error.strerror} as the directory of the new file was synced"
    return kind(error.errno or errno.EIO, reason)


def _open_directory(path: str, start: int | None) -> int:
    """Open a directory; for reading if we may, because only then it can be synced."""
    flags = os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDONLY | flags, dir_fd=start)
    except PermissionError:
        return os.open(path, os.O_PATH | flags, dir_fd=start)


def open_new(path: str, start: int | None, flags: int) -> tuple[int, NewName]:
    """Create a file, or raise FileExistsError if the name exists, even as a dangling link.

    Args:
        path: the file to create.
        start: descriptor of the directory where the path starts, if it is relative.
        flags: flags of open(2), with O_CREAT and O_EXCL.
    """
    parent, name = os.path.split(path)
    if not name:  # the kernel's own answer to a slash at the end
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    made = NewName(_open_directory(parent or ".", start), name)
    try:
        return os.open(name, flags, 0o666, dir_fd=made.directory), made
    except BaseException:
        made.close()
        raise


def open_or_share(path: str, start: int | None, flags: int) -> tuple[int, NewName]:
    """Open a file, or create it; several processes may do so at the same time.

    The name counts as new in either case: the process that created it may die before it syncs the
    directory. Arguments as for ``open_or_new``.
    """
    fd, made = open_or_new(path, start, flags)
    try:
        if made is not None:
            return fd, made.share()
        parent, name = os.path.split(path)
        return fd, NewName(_open_directory(parent or ".", start), name, shared=True)
    except BaseException:
        os.close(fd)
        raise


def open_or_new(path: str, start: int | None, flags: int) -> tuple[int, NewName | None]:
    """Open a file, or create it at the place to which its name and links lead.

    It never uses O_CREAT alone, which does not tell whether this call created the file. Arguments
    as for ``open_new``, but flags without O_EXCL.
    """
    links, held = 0, -1
    try:
        while True:
            try:
                return open_new(path, start, flags | os.O_EXCL)
            except FileExistsError:
                pass
            try:
                return os.open(path, flags & ~os.O_CREAT, dir_fd=start), None
            except FileNotFoundError:
                pass  # a dangling link, which O_EXCL never follows; or somebody just removed it
            parent, name = os.path.split(path)
            start = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=start)
            if held >= 0:
                os.close(held)
            path, held = name, start
            try:
                path = os.readlink(name, dir_fd=start)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT):
                    raise
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    finally:
        if held >= 0:
            os.close(held)
