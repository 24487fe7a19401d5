"""The folder of a cache: its marker, its objects, its room. For worker threads.

Invariants.
  1  Files are made and deleted only in a folder that has our marker (R12), under names of our own.
     Only where a power cut took the marker, and left nothing but files of ours, the folder gets
     another one.
  2  The folder's lock is held while an object is opened, made or deleted; a shared lock on byte 0
     of its map says that somebody has it open. So no object is deleted that is in use.
  3  A map is believed if its header is whole, and of this boot and of this data file; otherwise
     whoever opens it first, alone, makes its blocks SUSPECT (R3).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from .._core.machine import boot_id, remote_kind
from .._core.opening import reserve
from .._errors import UnsupportedError
from .._native import Blocks, crc32c
from .budget import Budget
from .layout import (
    HEADER_BYTES,
    MAP_SUFFIX,
    MARKER,
    Header,
    LayoutError,
    blocks_of_map,
    file_names,
    identifier,
    list_bytes,
    map_bytes,
    name_in,
    overhead_bytes,
)
from .leases import Leases, LockFile
from .source import ObjectIdentity


def default_folder() -> str:
    """Say where the cache is unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "aiommap")


@dataclass(slots=True)
class Files:
    """The two files of an object, open.

    Attributes:
        header: of its map.
        data: descriptor of the data.
        map: the map, which carries the lock that says that it is in use.
        blocks: words and sums.
        path: of the data.
    """

    header: Header
    data: int
    map: LockFile
    blocks: Blocks
    path: str

    def close(self) -> None:
        """Close both, once."""
        self.map.close()
        data, self.data = self.data, -1
        if data >= 0:
            os.close(data)


class Folder:
    """An open folder.

    Args:
        path: an absolute path; made if it is missing.
        max_bytes, min_free: as for ``RemoteCache``.
    Raises:
        UnsupportedError: if it holds other files, others may write to it, or it is on a network
            file system.
        OSError: if it cannot be made or written to.
    """

    def __init__(self, path: str, max_bytes: int, min_free: float) -> None:
        self.path = path
        self.max_bytes = max_bytes
        #: Where that cannot be told, nothing of an earlier opening is believed.
        boot = boot_id()
        self.boot: bytes = boot if any(boot) else os.urandom(16)
        marker = os.path.join(path, MARKER)
        _check_folder(path, marker)
        self.leases: Leases = Leases(marker)
        try:
            self.budget: Budget = Budget(marker, self.leases, self.taken_bytes, max_bytes, min_free)
        except BaseException:
            self.leases.close()
            raise

    def close(self) -> None:
        """Give up the locks."""
        self.budget.close()
        self.leases.close()

    # Objects.

    def names(self) -> list[str]:
        """Name every object there is a file of, in order."""
        return sorted({name for name, _ in self._walk()})

    def taken_bytes(self) -> int:
        """Count what the files of objects take of the disk, or may take without being asked.

        A list of extents grows when the kernel writes blocks back to scattered places, long after
        they were stored.
        """
        total = 0
        for _, path in self._walk():
            with suppress(OSError):
                found = os.stat(path)
                total += found.st_blocks * 512
                if path.endswith(MAP_SUFFIX):
                    total += list_bytes(blocks_of_map(found.st_size))
        return total

    def _walk(self) -> Iterator[tuple[str, str]]:
        """Yield (object, path) of each file of an object."""
        with suppress(OSError), os.scandir(self.path) as files:
            for file in files:
                name = name_in(file.name)
                if name is not None:
                    yield name, file.path

    def _paths(self, name: str) -> tuple[str, str]:
        data, words = file_names(name)
        return os.path.join(self.path, data), os.path.join(self.path, words)

    def open(
        self, identity: ObjectIdentity, block_size: int, make_room: Callable[[int], bool]
    ) -> Files | None:
        """Open an object, and make it if there is none; None if there is no room for it."""
        room = overhead_bytes(identity.state.size, block_size)
        files = self._open_or_make(identity, block_size, room, reserved=False)
        if files is None and make_room(room):
            files = self._open_or_make(identity, block_size, room, reserved=True)
        return files

    def _open_or_make(
        self, identity: ObjectIdentity, block_size: int, room: int, *, reserved: bool
    ) -> Files | None:
        """Open an object, or make it in room that is reserved, or is free; None if it is not."""
        name, used = identifier(identity), 0
        try:
            with self.budget.locked() as state:
                state.count_opening()
                files = self._open_known(name, identity, state.ticks)
                if files is None:
                    reserved = reserved or self.budget.reserve_with(state, room)
                    if reserved:
                        header = Header(identity, block_size, state.ticks, self.boot, 0, 0)
                        files = self._make(name, header)
                        used = room
                return files
        finally:
            if reserved:
                self.budget.settle(room, used)

    def _open_known(self, name: str, identity: ObjectIdentity, ticks: int) -> Files | None:
        """Open an object that is there, and say in its header that it was opened."""
        files = self.look(name)
        if files is not None and files.header.identity.key == identity.key:
            files.header.note_opened(identity, ticks)
            self._write_header(files)
            return files
        if files is not None:
            files.close()
        self.remove(name)  # nothing of it, or damaged, or of a later format
        return None

    def look(self, name: str) -> Files | None:
        """Open an object, with the folder's lock; None if there is none, or it is damaged."""
        try:
            files = self._open_files(name)
        except (OSError, LayoutError):
            return None
        alone = files.map.try_lock(0)
        files.map.try_lock(0, shared=True)
        if not self._is_trusted(files):
            if not alone:  # its user is in another boot, which cannot be
                files.close()
                return None
            files.blocks.distrust()
            self._write_header(files)
        return files

    def remove(self, name: str) -> None:
        """Take the names of an object away; with the folder's lock."""
        for path in self._paths(name):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _is_trusted(self, files: Files) -> bool:
        found = os.fstat(files.data)
        header = files.header
        return (header.boot, header.device, header.inode) == (
            self.boot,
            found.st_dev,
            found.st_ino,
        )

    def _open_files(self, name: str) -> Files:
        data_path, map_path = self._paths(name)
        words = LockFile(map_path)
        data = -1
        try:
            header = Header.unpack(os.pread(words.fd, HEADER_BYTES, 0), crc32c)
            size = header.identity.state.size
            data = os.open(data_path, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(data).st_size != size:
                raise LayoutError("the data was cut off")
            if os.fstat(words.fd).st_size != map_bytes(size, header.block_size):
                raise LayoutError("the map was cut off")
            blocks = _map(words, data, header, self.leases.owner)
            return Files(header, data, words, blocks, data_path)
        except BaseException:
            words.close()
            if data >= 0:
                os.close(data)
            raise

    def _make(self, name: str, header: Header) -> Files:
        """Make both files, of which there is none; the header comes last: half of one is none."""
        data_path, map_path = self._paths(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        data = os.open(data_path, flags | os.O_CLOEXEC, 0o600)
        words: LockFile | None = None
        try:
            size = header.identity.state.size
            os.ftruncate(data, size)
            words = LockFile(map_path, flags)
            words.try_lock(0, shared=True)
            reserve(words.fd, 0, map_bytes(size, header.block_size), 0)
            blocks = _map(words, data, header, self.leases.owner)
            files = Files(header, data, words, blocks, data_path)
            self._write_header(files)
        except BaseException:
            if words is not None:
                words.close()
            os.close(data)
            self.remove(name)
            raise
        return files

    def _write_header(self, files: Files) -> None:
        found = os.fstat(files.data)
        files.header.note_file(self.boot, found.st_dev, found.st_ino)
        os.pwrite(files.map.fd, files.header.pack(crc32c), 0)

    def each(self, visit: Callable[[str, Files], None]) -> int:
        """Open every object in turn; returns how many were damaged, and are gone.

        The folder's lock is held for one object at a time.
        """
        removed = 0
        for name in self.names():
            with self.budget.locked():
                files = self.look(name)
                if files is None:
                    removed += any(map(os.path.exists, self._paths(name)))
                    self.remove(name)
                    continue
            try:
                visit(name, files)
            finally:
                files.close()
        return removed


def anonymous_files(identity: ObjectIdentity, block_size: int) -> Files:
    """Make files that have no folder, for an object that cannot be cached: nothing is stored.

    Its map says so: every block stays EMPTY.
    """
    size = identity.state.size
    data = os.memfd_create("aiommap remote", os.MFD_CLOEXEC)
    words: LockFile | None = None
    try:
        os.ftruncate(data, size)
        source = os.memfd_create("aiommap remote map", os.MFD_CLOEXEC)
        try:
            os.ftruncate(source, map_bytes(size, block_size))
            words = LockFile(f"/proc/self/fd/{source}")
        finally:
            os.close(source)
        header = Header(identity, block_size, 0, b"", 0, 0)
        return Files(header, data, words, _map(words, data, header, 0), f"/proc/self/fd/{data}")
    except BaseException:
        if words is not None:
            words.close()
        os.close(data)
        raise


def _map(words: LockFile, data: int, header: Header, owner: int) -> Blocks:
    """Map the words, by a descriptor of its own.

    A mapping keeps its open file alive, and with it a lock, also in a forked child.
    """
    fd = os.open(f"/proc/self/fd/{words.fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        shift, size = header.block_size.bit_length() - 1, header.identity.state.size
        return Blocks(fd, data, size, shift, owner, header.salt)
    finally:
        os.close(fd)


def _has_only_ours(path: str) -> bool:
    """Tell whether all that is in a folder without a marker is what caches make."""
    with os.scandir(path) as files:
        return all(
            name_in(file.name) is not None and file.is_file(follow_symlinks=False) for file in files
        )


def _check_folder(path: str, marker: str) -> None:
    """Have a folder that is ours, or that our marker may be put into (cache_folder.1)."""
    what = f"use {path} as a cache"
    with suppress(FileExistsError):
        os.makedirs(path, mode=0o700)
    if not os.path.isdir(path):
        raise UnsupportedError(what, "it is no folder: name another one")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = remote_kind(fd)
        mode = os.fstat(fd).st_mode
    finally:
        os.close(fd)
    if kind is not None:
        raise UnsupportedError(
            what, f"it is on a network file system ({kind}): name a folder on a local disk"
        )
    if not (os.path.lexists(marker) or _has_only_ours(path)):
        raise UnsupportedError(
            what, "it holds other files, and a cache deletes files: name an empty folder"
        )
    if mode & 0o002:
        raise UnsupportedError(
            what,
            "everybody may write to it, and so choose what is read: chmod o-w",
            errno.EPERM,
        )
