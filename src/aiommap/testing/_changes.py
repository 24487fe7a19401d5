"""Real changes by another program: a file truncated, replaced or removed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aiommap import MappedFile, Snapshot
from aiommap._arguments import integer
from aiommap._core.paths import absolute_path
from aiommap._native import export_bytes
from aiommap._typing import Buffer

Target = MappedFile | Snapshot | str | os.PathLike[str]


def _path_of(target: Target) -> str:
    if isinstance(target, MappedFile | Snapshot):
        if target.path is None:
            raise TypeError(f"no path leads to {target!r}: change it by its descriptor")
        return target.path
    return absolute_path(target)


@contextmanager
def truncated_file(target: Target, size: int) -> Iterator[None]:
    """Truncate a file for a block, while it is open elsewhere.

    It uses its own descriptor, which for the kernel is the same as another process. The end of the
    block restores the size and the bytes, unless the file has got another size meanwhile.

    Args:
        target: an open file, or a path.
        size: how many bytes stay; less than the file has.
    Raises:
        ValueError: if the file does not have more than that.
        OSError: as ``open`` and ``os.ftruncate``.
    Source: ftruncate(2).
    Example: ``with truncated_file(f, 100): ...``
    """
    path, left = _path_of(target), integer(size, "size")
    with open(path, "r+b", buffering=0) as file:
        found = os.fstat(file.fileno()).st_size
        if not 0 <= left < found:
            raise ValueError(f"size is {left}, but {path} has {found} bytes: cut some of them off")
        tail = _read(file.fileno(), left, found)
        os.ftruncate(file.fileno(), left)
        try:
            yield
        finally:
            if os.fstat(file.fileno()).st_size == left:
                _write(file.fileno(), left, tail)


def _read(fd: int, offset: int, end: int) -> bytes:
    parts: list[bytes] = []
    while offset < end and (part := os.pread(fd, end - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _write(fd: int, offset: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        offset, rest = offset + done, rest[done:]


@contextmanager
def replaced_file(target: Target, content: Buffer) -> Iterator[None]:
    """Put another file at a path, in one step, for a block.

    Programs that have the first file open see no change of it. The end of the block puts the first
    file back at its path, also in one step.

    Args:
        target: an open file, or a path.
        content: the bytes of the other file, which gets the permissions of the first.
    Raises:
        OSError: as ``open``, ``os.link`` and ``os.rename``; the path then has its first file.
    Source: link(2), rename(2).
    Example: ``with replaced_file(f, b"new"): ...``
    """
    path = _path_of(target)
    with _kept_aside(path) as other:
        fd = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.fchmod(fd, os.stat(path).st_mode & 0o7777)
            _write(fd, 0, bytes(export_bytes(content)))
        finally:
            os.close(fd)
        os.rename(other, path)
        yield


@contextmanager
def removed_file(target: Target) -> Iterator[None]:
    """Unlink a path for a block.

    Programs that have the file open see no change of it but the missing name. The end of the block
    puts the file back at its path.

    Args:
        target: an open file, or a path.
    Raises:
        OSError: as ``os.link`` and ``os.unlink``.
    Source: link(2), unlink(2).
    Example: ``with removed_file(f): ...``
    """
    path = _path_of(target)
    with _kept_aside(path):
        os.unlink(path)
        yield


@contextmanager
def _kept_aside(path: str) -> Iterator[str]:
    """Link the file of a path under a second name beside it, and yield a third, free name."""
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f".{name}.{secrets.token_hex(4)}")
    os.link(path, aside, follow_symlinks=False)
    try:
        yield f"{aside}.new"
    finally:
        os.rename(aside, path)
        # rename(2) does nothing if both names are of one file: then the path was never replaced.
        for left_over in (aside, f"{aside}.new"):
            with suppress(FileNotFoundError):
                os.unlink(left_over)
