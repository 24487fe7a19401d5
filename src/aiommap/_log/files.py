"""The files of a log: segments, their names, control file, the writer's locks. For worker threads.

Invariants.
  1  A segment gets its name only when its header is durable, and the folder is synced before
     anything in the segment is reported (L6, L7).
  2  The locks of the one writer are the kernel's. No process number and no time breaks them (L13);
     a forked child closes its copies, which would keep a dead parent's locks.
  3  There are two: of the control file, and of the segment that is written, as a control file can
     be removed, and who makes another has another file to lock. A segment is locked before it has
     its name, and the one before it until then: so the last one always is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import struct
from contextlib import suppress
from dataclasses import dataclass

import anyio

from .._core.machine import boot_id, remote_kind
from .._core.opening import reserve
from .._errors import CorruptLogError, UnsupportedError
from .._native import LogWriter, crc32c, filesystem_type
from .format import (
    CONTROL_BYTES,
    CONTROL_NAME,
    HEADER_BYTES,
    HOLDER_AT,
    ControlIdentity,
    FormatError,
    Holder,
    SegmentHeader,
    base_of,
    segment_name,
)
from .recovery import FoundSegment

_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None)
#: struct flock, with the padding behind its last field: an exclusive lock of byte 0, or none.
_LOCK_BYTE_0 = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_UNLOCK_BYTE_0 = struct.pack("hhqqi0q", fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)

_IN_MEMORY = {0x01021994, 0x858458F6}

#: Where a segment is made that has no name yet, on file systems without O_TMPFILE.
_STANDBY = re.compile(r"standby-[0-9a-f]{8}\.tmp")
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS}

#: Descriptors that hold a lock, or may be given one.
_held: set[int] = set()


def _let_go() -> None:
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)  # files.2


class HeldError(anyio.BusyResourceError):
    """Another writer has the log open."""

    def __init__(self, path: str, holder: Holder | None) -> None:
        Exception.__init__(self, path, holder)
        self.path = path
        self.holder = holder

    def __str__(self) -> str:
        who = "another process"
        if self.holder is not None and self.holder.pid:
            who = f"process {self.holder.pid} on {self.holder.host} (life {self.holder.life})"
        return (
            f'{self.path} is written by {who}, and a log has one writer: open it with mode "r", '
            "or close it there first"
        )


def _open_to_lock(path: str, flags: int) -> int:
    """Open a file that is locked later: a child that is forked before that has a copy, too."""
    fd = os.open(path, flags | os.O_RDWR | os.O_CLOEXEC, 0o644)
    _held.add(fd)
    return fd


def _close_locked(fd: int) -> None:
    """Release the lock of a descriptor if it has one, and close it.

    Closing alone would leave the lock to a child that another thread forks in this moment.
    """
    if fd in _held and _SET_LOCK is not None:
        with suppress(OSError):
            fcntl.fcntl(fd, _SET_LOCK, _UNLOCK_BYTE_0)
    _held.discard(fd)
    os.close(fd)


def _lock(fd: int, path: str) -> None:
    """Lock what ``_open_to_lock`` has opened."""
    if _SET_LOCK is None:
        raise UnsupportedError(f"write {path}", "the system has no locks of open files")
    try:
        fcntl.fcntl(fd, _SET_LOCK, _LOCK_BYTE_0)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            folder = os.path.dirname(path)
            raise HeldError(folder, _holder(os.path.join(folder, CONTROL_NAME))) from None
        raise


def _holder(control: str) -> Holder | None:
    """Say who wrote last, if a control file tells."""
    try:
        with open(control, "rb") as file:
            block = file.read(CONTROL_BYTES)
    except OSError:
        return None
    return Holder.unpack(block) if len(block) == CONTROL_BYTES else None


def sync_folder(fd: int) -> None:
    """Make the names of a folder durable."""
    os.fsync(fd)


def write_all(fd: int, data: bytes, at: int) -> None:
    """Write bytes at an offset, though one call may write only some of them."""
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


def open_folder(path: str, *, create: bool) -> int:
    """Open the folder of a log, and make it if wanted."""
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


def is_in_memory(fd: int) -> bool:
    """Tell whether reads of a file never wait for a device."""
    return filesystem_type(fd) in _IN_MEMORY


def segment_bases(folder: int) -> list[int]:
    """List the segments of a log, oldest first; unknown names are ignored."""
    found = (base_of(name) for name in os.listdir(folder))
    return sorted(base for base in found if base is not None)


def read_header(fd: int, path: str, folder: str) -> SegmentHeader:
    """Read and check the header of an open segment.

    Raises:
        CorruptLogError: if it is none, or of another name.
        UnsupportedError: if a later version wrote it.
    """
    try:
        header = SegmentHeader.unpack(os.pread(fd, HEADER_BYTES, 0), path, crc32c)
    except FormatError as error:
        raise CorruptLogError(folder, f"{path} is damaged: {error}; restore it") from None
    if segment_name(header.base) != os.path.basename(path):
        raise CorruptLogError(
            folder,
            f"{path} was named {segment_name(header.base)} when it was made: give it that name",
        )
    return header


@dataclass(slots=True)
class Segment:
    """An open segment."""

    fd: int
    path: str
    header: SegmentHeader

    def offset_of(self, position: int) -> int:
        """Say where in the file a position is."""
        return HEADER_BYTES + position - self.header.position

    def close(self) -> None:
        """Close the descriptor, once, and so release the lock."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _close_locked(fd)


def open_segment(folder: str, base: int) -> Segment:
    """Open a segment to read it, and read its header."""
    path = os.path.join(folder, segment_name(base))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Segment(fd, path, read_header(fd, path, folder))
    except BaseException:
        os.close(fd)
        raise


def lock_segment(folder: str, base: int) -> Segment:
    """Open a segment to write it, and keep other writers out (files.3)."""
    path = os.path.join(folder, segment_name(base))
    fd = _open_to_lock(path, 0)
    try:
        segment = Segment(fd, path, read_header(fd, path, folder))
        _lock(fd, path)
    except BaseException:
        _close_locked(fd)
        raise
    return segment


def lock_last_segment(folder: str, folder_fd: int) -> Segment | None:
    """Lock the last segment, which another writer may be about to follow up; None without any."""
    bases = segment_bases(folder_fd)
    if not bases:
        return None
    held = HeldError(folder, _holder(os.path.join(folder, CONTROL_NAME)))
    try:
        last = lock_segment(folder, bases[-1])
    except FileNotFoundError:  # another writer that is being opened has set it aside
        raise held from None
    try:
        if segment_bases(folder_fd)[-1:] != bases[-1:]:
            raise held
    except BaseException:
        last.close()
        raise
    return last


def find_segment(folder: str, base: int) -> FoundSegment:
    """Look at a segment without keeping it open."""
    segment = open_segment(folder, base)
    try:
        return FoundSegment(segment.path, os.fstat(segment.fd).st_size, segment.header)
    finally:
        segment.close()


def explained(error: OSError) -> OSError:
    """Say what a sync found that the system calls success."""
    if error.errno == errno.ESTALE:
        return OSError(error.errno, "the segment was unlinked by somebody else")
    return error


@dataclass(frozen=True, slots=True)
class LogSegment:
    """One file of a log.

    Attributes:
        path: the file.
        base: sequence of its first record.
        size: bytes of the file, which is made in its full size.
        life: the opening of the log in which it was made.
        durable_below: records before this one were durable then.
    """

    path: str
    base: int
    size: int
    life: int
    durable_below: int


def list_segments(folder: str, first: int) -> tuple[LogSegment, ...]:
    """Look at all segments from the one on that begins with a record."""
    folder_fd = open_folder(folder, create=False)
    try:
        bases = segment_bases(folder_fd)
        while True:
            try:
                return tuple(_describe(folder, base) for base in bases if base >= first)
            except FileNotFoundError:
                before, bases = bases, segment_bases(folder_fd)
                if bases == before:
                    raise  # nor was it discarded meanwhile
    finally:
        os.close(folder_fd)


def _describe(folder: str, base: int) -> LogSegment:
    found = find_segment(folder, base)
    header = found.header
    return LogSegment(found.path, base, found.size, header.life, header.durable_below)


def remove_standbys(folder: str, folder_fd: int) -> None:
    """Remove what a crash left of segments that had no name of a segment yet."""
    for name in os.listdir(folder_fd):
        if _STANDBY.fullmatch(name):
            os.unlink(os.path.join(folder, name))


class Unnamed:
    """A segment without a name: blocks reserved, nothing in it (files.1)."""

    __slots__ = ("_folder", "_folder_fd", "_name", "fd")

    def __init__(self, folder: str, folder_fd: int, size: int) -> None:
        self._folder = folder
        self._folder_fd = folder_fd
        #: Where the file system has no files without a name.
        self._name: str | None = None
        try:
            self.fd: int = _open_to_lock(folder, os.O_TMPFILE)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self._name = os.path.join(folder, f"standby-{secrets.token_hex(4)}.tmp")
            self.fd = _open_to_lock(self._name, os.O_CREAT | os.O_EXCL)
        try:
            reserve(self.fd, 0, size, 0)
            os.fsync(self.fd)
        except BaseException:
            self.close()
            raise

    def name(self, header: SegmentHeader) -> Segment:
        """Write the header and give the segment its name; both are durable when it returns."""
        path = os.path.join(self._folder, segment_name(header.base))
        block = header.pack(crc32c)
        write_all(self.fd, block, 0)
        os.fsync(self.fd)
        _lock(self.fd, path)
        if self._name is not None:
            if os.path.exists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            os.rename(self._name, path)
        else:
            # A descriptor of the folder makes Python call linkat(2), which follows the link.
            source, target = f"/proc/self/fd/{self.fd}", segment_name(header.base)
            os.link(source, target, dst_dir_fd=self._folder_fd, follow_symlinks=True)
        self._name = None
        return Segment(self.fd, path, header)

    def close(self) -> None:
        """Give it up."""
        _close_locked(self.fd)
        if self._name is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._name)


class Control:
    """The control file as the writer has it: locked, never replaced."""

    __slots__ = ("_path", "block", "boot", "fd", "identity", "own")

    def __init__(self, folder: str) -> None:
        path = self._path = os.path.join(folder, CONTROL_NAME)
        self.fd: int = _open_to_lock(path, os.O_CREAT)
        self.boot: bytes = boot_id()
        try:
            _lock(self.fd, path)
            length = os.fstat(self.fd).st_size
            if length < CONTROL_BYTES:
                reserve(self.fd, 0, CONTROL_BYTES, length)
            self.block: bytes = os.pread(self.fd, CONTROL_BYTES, 0)
            #: Whose words these are; None where they cannot be believed.
            self.identity: ControlIdentity | None = ControlIdentity.unpack(self.block, path, crc32c)
            found = os.fstat(self.fd)
            self.own: tuple[int, int] = (found.st_dev, found.st_ino)
            if self.identity is not None and not self.identity.is_of(*self.own, self.boot):
                self.identity = None
        except BaseException:
            self.close()
            raise

    @property
    def is_of_this_boot(self) -> bool:
        """Whether its positions can be believed, too."""
        return self.identity is not None and self.identity.boot == self.boot

    def map(self) -> LogWriter:
        """Map the words, by a descriptor of its own.

        A mapping keeps its open file alive, and with it a lock, also in a forked child (files.2).
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return LogWriter(fd)
        finally:
            os.close(fd)

    def say_who_writes(self, life: int) -> None:
        """Leave a note for those who are refused."""
        holder = Holder(os.getpid(), life, os.uname().nodename)
        write_all(self.fd, holder.pack(), HOLDER_AT)

    def adopt(self, log_id: bytes) -> None:
        """Vouch for the words, which are true by now."""
        write_all(self.fd, ControlIdentity(log_id, *self.own, self.boot).pack(crc32c), 0)

    def close(self) -> None:
        """Release the lock."""
        _close_locked(self.fd)


def believed_control(path: str) -> tuple[bytes, ControlIdentity, bool] | None:
    """Read a control file as a reader does.

    Returns:
        Its block, whose it is, and whether its positions are of this boot; None if it is missing,
        or not to be believed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if remote_kind(fd) is not None:
            return None
        block, found = os.pread(fd, CONTROL_BYTES, 0), os.fstat(fd)
    finally:
        os.close(fd)
    identity, boot = ControlIdentity.unpack(block, path, crc32c), boot_id()
    if identity is None or not identity.is_of(found.st_dev, found.st_ino, boot):
        return None
    return block, identity, identity.boot == boot


def sync_segment(folder: str, base: int) -> None:
    """Make a segment durable that is not open any more."""
    fd = os.open(os.path.join(folder, segment_name(base)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
