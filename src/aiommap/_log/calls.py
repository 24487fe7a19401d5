"""System calls on the files of a log; their errors name the file. For worker threads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from .._errors import CorruptLogError, name_file


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put a path into an ``OSError`` that names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            name_file(error, path)
        raise


def open_regular(path: str, flags: int) -> int:
    """Open a file of a log.

    Raises:
        CorruptLogError: if something else has the file's name. An opening of a pipe would wait, and
            a link (with ``O_NOFOLLOW``) may lead out of the folder.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise _not_a_file(path, "a symbolic link") from None
        # With O_TMPFILE the path is a folder's, and EISDIR: the system has no such files.
        if error.errno in (errno.EISDIR, errno.ENXIO) and not flags & os.O_DIRECTORY:
            raise _not_a_file(path, "no regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _not_a_file(path, "no regular file")
    return fd


def _not_a_file(path: str, what: str) -> CorruptLogError:
    return CorruptLogError(os.path.dirname(path), f"{path} is {what}: move it away")


def sync_folder(fd: int) -> None:
    """Make the names in a folder durable."""
    os.fsync(fd)


def write_all(fd: int, data: bytes, at: int) -> None:
    """Write all bytes at an offset; a single pwrite(2) may write only some of them."""
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


def open_folder(path: str, *, create: bool) -> int:
    """Open the folder of a log; with ``create``, make it durably if it is missing."""
    if create:
        try:
            os.mkdir(path)
        except FileExistsError:
            pass
        else:
            parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sync_folder(parent)
            finally:
                os.close(parent)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
