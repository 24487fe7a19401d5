"""The folder of a cache: its marker, its objects, its room. For worker threads.

Invariants.
  1  We make and delete files only in a folder that has our marker (R12), and only under names of
     our own. A power cut may take the marker: a folder that holds nothing but files of ours gets
     it again.
  2  The folder's lock is held while an object is opened, made or deleted. Whoever has an object
     open keeps a shared lock on byte 0 of its map. So no object is deleted while it is in use.
  3  A map is believed if its header is whole, was written in this boot, and is about this data
     file, which has as many bytes on the disk as the map says. Otherwise the first process that
     opens it, while no other has it open, marks its blocks SUSPECT (R3).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from .._core.file_kinds import remote_kind
from .._core.machine import boot_id
from .._core.opening import reserve
from .._errors import UnsupportedError
from .._native import Blocks, crc32c
from .budget import Budget
from .layout import (
    EARLIER_FILES,
    EARLIER_SUBFOLDER,
    HEADER_BYTES,
    MAP_SUFFIX,
    MARKER,
    PRESENT,
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

#: Of objects with more blocks nobody counts those that are kept: an opening takes no millisecond.
MAX_COUNTED_BLOCKS = 1 << 17


def default_folder() -> str:
    """Return the folder of a cache that is made without one."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "aiommap")


@dataclass(slots=True)
class Files:
    """The two files of an object, open.

    Attributes:
        header: the header of its map.
        data: descriptor of the data file.
        map: the map; its lock says that the object is in use.
        blocks: the words and checksums of the map.
        path: path of the data file.
    """

    header: Header
    data: int
    map: LockFile
    blocks: Blocks
    path: str

    def close(self) -> None:
        """Close both; a second call does nothing."""
        self.map.close()
        data, self.data = self.data, -1
        if data >= 0:
            os.close(data)


class Folder:
    """An open folder.

    Args:
        path: an absolute path; the folder is made if it is missing.
        max_bytes, min_free: as for ``RemoteCache``.
    Raises:
        UnsupportedError: if it is no folder, holds other files, can be written to by everybody, or
            is on a network file system.
        OSError: if it cannot be made or written to.
    """

    def __init__(self, path: str, max_bytes: int, min_free: float) -> None:
        self.path = path
        self.max_bytes = max_bytes
        #: Id of this boot. If the system does not tell it, a random one: then no map of an earlier
        #: opening is believed.
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
        """Return the names of all objects that have a file, in order."""
        return sorted({name for name, _ in self._walk()})

    def taken_bytes(self) -> int:
        """Count the bytes on the disk that the files of objects take, or may take by themselves.

        The file system's list of extents grows when the kernel writes blocks back to scattered
        places, long after they were stored.
        """
        total = 0
        for path in self._paths_on_disk():
            with suppress(OSError):
                found = os.stat(path)
                total += found.st_blocks * 512
                if path.endswith(MAP_SUFFIX):
                    total += list_bytes(blocks_of_map(found.st_size))
        return total

    def _paths_on_disk(self) -> Iterator[str]:
        """Yield the path of each file of an object, those of the earlier layout included."""
        with suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                if name_in(entry.name) is not None:
                    yield entry.path
                elif _is_earlier(entry):
                    for _, path in _objects_in(entry.path):
                        yield path

    def _walk(self) -> Iterator[tuple[str, str]]:
        """Yield (name of the object, path) for each file of an object."""
        return _objects_in(self.path)

    def _walk_earlier(self) -> Iterator[tuple[str, str]]:
        """Yield the same for what the layout before this one left."""
        with suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                if _is_earlier(entry):
                    yield from _objects_in(entry.path)

    def remove_earlier(self) -> int:
        """Delete what the layout before this one left; returns how many bytes that gave back.

        Files that cannot be deleted stay, and count. If a cache of that layout is open, it goes on
        with the files that it has open.
        """
        freed = 0
        for _, path in [*self._walk_earlier()]:
            with suppress(OSError):
                taken = os.stat(path).st_blocks * 512
                os.unlink(path)
                freed += taken
            with suppress(OSError):  # fails until it is empty
                os.rmdir(os.path.dirname(path))
        if freed and not any(self._walk_earlier()):
            for name in EARLIER_FILES:
                with suppress(OSError):
                    os.unlink(os.path.join(self.path, name))
        return freed

    def _paths(self, name: str) -> tuple[str, str]:
        data, words = file_names(name)
        return f"{self.path}/{data}", f"{self.path}/{words}"

    def open(
        self,
        identity: ObjectIdentity,
        block_size: int,
        make_room: Callable[[int], int],
        *,
        new: bool = False,
    ) -> Files | None:
        """Open an object, and make its files if it has none; None if there is no room for them.

        Args:
            new: whether it has probably none: then nobody looks for them first.
        """
        room = overhead_bytes(identity.state.size, block_size)
        files = self._open_or_make(identity, block_size, room, new=new, reserved=False)
        if files is None and make_room(room):
            files = self._open_or_make(identity, block_size, room, new=new, reserved=True)
        return files

    def _open_or_make(
        self, identity: ObjectIdentity, block_size: int, room: int, *, new: bool, reserved: bool
    ) -> Files | None:
        """Open an object, or make it; None if room is neither reserved nor free."""
        name, used = identifier(identity), 0
        try:
            with self.budget.locked() as state:
                state.count_opening()
                files = None if new else self._open_known(name, identity, state.ticks)
                if files is None:
                    reserved = reserved or self.budget.take_or_reserve(state, room)
                    if reserved:
                        header = Header(identity, block_size, state.ticks, self.boot, 0, 0)
                        files, made = self._make_unless_known(name, header)
                        used = room if made else 0
                    elif new:
                        files = self._open_known(name, identity, state.ticks)
                return files
        finally:
            if reserved:
                self.budget.settle(room, used)

    def _make_unless_known(self, name: str, header: Header) -> tuple[Files, bool]:
        """Make the files of an object, or open those that it has; tell whether they were made."""
        try:
            return self._make(name, header), True
        except FileExistsError:
            files = self._open_known(name, header.identity, header.opened)
            if files is not None:
                return files, False
        self.remove(name)  # they are damaged, incomplete or of another format
        return self._make(name, header), True

    def _open_known(self, name: str, identity: ObjectIdentity, ticks: int) -> Files | None:
        """Open an object that has files, and note the opening in its header; else None."""
        files = self.look(name)
        if files is not None and files.header.identity.key == identity.key:
            files.header.note_opened(identity, ticks)
            self._write_header(files)
            return files
        if files is not None:
            files.close()
        return None

    def look(self, name: str) -> Files | None:
        """Open an object, with the folder's lock held; None if it is missing or damaged."""
        try:
            files = self._open_files(name)
        except (OSError, LayoutError):
            return None
        alone = files.map.try_lock(0)
        files.map.try_lock(0, shared=True)
        trusted = self._is_trusted(files)
        if not trusted and not alone:
            files.close()  # the process that has it open made it valid for this boot: it is damaged
            return None
        if not trusted or (alone and _has_new_holes(files)):
            files.blocks.distrust()
            self._write_header(files)
        return files

    def remove(self, name: str) -> None:
        """Unlink the files of an object; with the folder's lock held."""
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
            blocks = _map(map_path, data, header, self.leases.owner)
            return Files(header, data, words, blocks, data_path)
        except BaseException:
            words.close()
            if data >= 0:
                os.close(data)
            raise

    def _make(self, name: str, header: Header) -> Files:
        """Make both files of an object that has none; FileExistsError if it has.

        The header is written last, so that an object that is half made has none and is not opened.
        """
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
            blocks = _map(map_path, data, header, self.leases.owner)
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
        """Visit every object in turn, open; return how many were damaged, and were removed.

        The folder's lock is held while one object is opened, and not while it is visited.
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


def _has_new_holes(files: Files) -> bool:
    """Tell whether somebody made holes in blocks, as a count tells it: not all holes are seen.

    A file system that compresses may keep fewer bytes: then blocks are verified that were right.
    """
    count, size = files.blocks.count, files.header.identity.state.size
    if count > MAX_COUNTED_BLOCKS:
        return False
    states = files.blocks.states(0, count)
    kept = states.count(PRESENT) * files.header.block_size
    if states[-1:] == bytes([PRESENT]):
        kept += size - count * files.header.block_size
    return os.fstat(files.data).st_blocks * 512 < kept


def _is_earlier(entry: os.DirEntry[str]) -> bool:
    """Tell whether a name in the folder is a subfolder that the layout before this one made."""
    ours = EARLIER_SUBFOLDER.fullmatch(entry.name)
    return ours is not None and entry.is_dir(follow_symlinks=False)


def _objects_in(path: str) -> Iterator[tuple[str, str]]:
    """Yield (object, path) of each file of an object that lies in a folder."""
    with suppress(OSError), os.scandir(path) as files:
        for file in files:
            name = name_in(file.name)
            if name is not None:
                yield name, file.path


def anonymous_files(identity: ObjectIdentity, block_size: int) -> Files:
    """Make files in memory, without a folder, for an object that cannot be cached.

    Nothing is stored in them: every block stays EMPTY.
    """
    size = identity.state.size
    data = os.memfd_create("aiommap remote", os.MFD_CLOEXEC)
    words: LockFile | None = None
    try:
        os.ftruncate(data, size)
        header = Header(identity, block_size, 0, b"", 0, 0)
        source = os.memfd_create("aiommap remote map", os.MFD_CLOEXEC)
        try:
            os.ftruncate(source, map_bytes(size, block_size))
            map_path = f"/proc/self/fd/{source}"
            words = LockFile(map_path)
            blocks = _map(map_path, data, header, 0)
        finally:
            os.close(source)
        return Files(header, data, words, blocks, f"/proc/self/fd/{data}")
    except BaseException:
        if words is not None:
            words.close()
        os.close(data)
        raise


def _map(path: str, data: int, header: Header, owner: int) -> Blocks:
    """Map the words by a descriptor of its own, which has no lock.

    A mapping keeps its open file alive. With the descriptor that has the lock it would keep the
    lock in a forked child.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        shift, size = header.block_size.bit_length() - 1, header.identity.state.size
        return Blocks(fd, data, size, shift, owner, header.salt)
    finally:
        os.close(fd)


def _has_only_ours(path: str) -> bool:
    """Tell whether a folder holds nothing but files with names of cached objects.

    The marker may have come since we looked for it, from a process that opens the folder as we do.
    """
    with os.scandir(path) as files:
        return all(
            (file.name == MARKER or name_in(file.name)) and file.is_file(follow_symlinks=False)
            for file in files
        )


def _make_folder(path: str) -> bool:
    """Make a folder for this user alone; False if there was something of that name."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    except FileNotFoundError:
        os.makedirs(path, mode=0o700, exist_ok=True)
        return False
    return True


def _check_folder(path: str, marker: str) -> None:
    """Make the folder if it is missing; raise if it cannot be a cache (cache_folder.1)."""
    what = f"use {path} as a cache"
    made = _make_folder(path)
    if not (made or os.path.isdir(path)):
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
    if not (made or os.path.lexists(marker) or _has_only_ours(path)):
        raise UnsupportedError(
            what, "it holds other files, and a cache deletes files: name an empty folder"
        )
    if mode & 0o002:
        raise UnsupportedError(
            what,
            "everybody may write to it, and so choose what is read: chmod o-w",
            errno.EPERM,
        )
