"""The files of a log: segments, their names, control file, the writer's locks. For worker threads.

Invariants.
  1  A segment gets its name only when its header is durable. The folder is synced before any
     record in the segment is reported durable (L6, L7).
  2  The kernel keeps the writer's locks. We never break a lock because of a process number or a
     time (L13). A forked child closes its copies of the descriptors: they would keep the locks of
     a parent that died.
  3  The writer holds two locks: one on the control file, one on the segment that it writes. The
     control file alone is not enough: somebody may remove it, and a second writer would lock the
     new one. A segment is locked before it has its name, and the segment before it stays locked
     until then. So the last segment is always locked.
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
#: struct flock with the padding behind its last field: lock byte 0 exclusively; unlock it.
_LOCK_BYTE_0 = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_UNLOCK_BYTE_0 = struct.pack("hhqqi0q", fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)

#: Types of file systems that have no device: tmpfs and ramfs.
_IN_MEMORY = {0x01021994, 0x858458F6}

#: Name of a segment in the making, on file systems without O_TMPFILE.
_STANDBY = re.compile(r"standby-[0-9a-f]{8}\.tmp")
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS}

#: Descriptors that hold a lock, or may get one.
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
    """Open a file that is locked later, and have a forked child close its copy from now on.

    A child that is forked before the lock is taken has a copy of the descriptor, too.
    """
    fd = os.open(path, flags | os.O_RDWR | os.O_CLOEXEC, 0o644)
    _held.add(fd)
    return fd


def _close_locked(fd: int) -> None:
    """Release the lock of a descriptor if it has one, and close it.

    Closing alone would leave the lock with a child that another thread forks at this moment.
    """
    if fd in _held and _SET_LOCK is not None:
        with suppress(OSError):
            fcntl.fcntl(fd, _SET_LOCK, _UNLOCK_BYTE_0)
    _held.discard(fd)
    os.close(fd)


def _lock(fd: int, path: str) -> None:
    """Lock a descriptor of ``_open_to_lock``; raise ``HeldError`` if another writer has it."""
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
    """Say who wrote last, if the control file can be read."""
    try:
        with open(control, "rb") as file:
            block = file.read(CONTROL_BYTES)
    except OSError:
        return None
    return Holder.unpack(block) if len(block) == CONTROL_BYTES else None


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


def is_in_memory(fd: int) -> bool:
    """Tell whether reads of a file never wait for a device."""
    return filesystem_type(fd) in _IN_MEMORY


def segment_bases(folder: int) -> list[int]:
    """List the bases of the segments of a log, oldest first; ignore unknown names."""
    found = (base_of(name) for name in os.listdir(folder))
    return sorted(base for base in found if base is not None)


def read_header(fd: int, path: str, folder: str) -> SegmentHeader:
    """Read and check the header of an open segment.

    Raises:
        CorruptLogError: if there is no good header, or it has the base of another file name.
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
        """Return the offset in the file at which a position of the log lies."""
        return HEADER_BYTES + position - self.header.position

    def close(self) -> None:
        """Close the descriptor and release its lock; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _close_locked(fd)


def open_segment(folder: str, base: int) -> Segment:
    """Open a segment for reading, and read its header."""
    path = os.path.join(folder, segment_name(base))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Segment(fd, path, read_header(fd, path, folder))
    except BaseException:
        os.close(fd)
        raise


def lock_segment(folder: str, base: int) -> Segment:
    """Open a segment for writing, and lock it against other writers (files.3)."""
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
    """Lock the last segment; return None if the log has none.

    Another writer may roll to a new segment or set this one aside meanwhile: that is a
    ``HeldError``, too.
    """
    bases = segment_bases(folder_fd)
    if not bases:
        return None
    held = HeldError(folder, _holder(os.path.join(folder, CONTROL_NAME)))
    try:
        last = lock_segment(folder, bases[-1])
    except FileNotFoundError:  # another writer, in its recovery, has set the segment aside
        raise held from None
    try:
        if segment_bases(folder_fd)[-1:] != bases[-1:]:
            raise held
    except BaseException:
        last.close()
        raise
    return last


def find_segment(folder: str, base: int) -> FoundSegment:
    """Read size and header of a segment, and close it again."""
    segment = open_segment(folder, base)
    try:
        return FoundSegment(segment.path, os.fstat(segment.fd).st_size, segment.header)
    finally:
        segment.close()


def explained(error: OSError) -> OSError:
    """Give an error of a sync the reason that its errno does not tell.

    A sync that succeeds on a segment without a name is ESTALE to us: nobody can find its records.
    """
    if error.errno == errno.ESTALE:
        return OSError(error.errno, "the segment was unlinked by somebody else")
    return error


@dataclass(frozen=True, slots=True)
class LogSegment:
    """One file of a log.

    Attributes:
        path: the file.
        base: sequence of its first record.
        size: bytes of the file; a segment is made in its full size.
        life: number of the opening of the log in which it was made.
        durable_below: records before this sequence were durable when the segment was made.
    """

    path: str
    base: int
    size: int
    life: int
    durable_below: int


def list_segments(folder: str, first: int) -> tuple[LogSegment, ...]:
    """List the segments whose base is ``first`` or higher, oldest first."""
    folder_fd = open_folder(folder, create=False)
    try:
        bases = segment_bases(folder_fd)
        while True:
            try:
                return tuple(_describe(folder, base) for base in bases if base >= first)
            except FileNotFoundError:
                before, bases = bases, segment_bases(folder_fd)
                if bases == before:
                    raise  # the segment was not discarded meanwhile: it is missing
    finally:
        os.close(folder_fd)


def _describe(folder: str, base: int) -> LogSegment:
    found = find_segment(folder, base)
    header = found.header
    return LogSegment(found.path, base, found.size, header.life, header.durable_below)


def remove_standbys(folder: str, folder_fd: int) -> None:
    """Remove the standby files that a crash left behind."""
    for name in os.listdir(folder_fd):
        if _STANDBY.fullmatch(name):
            os.unlink(os.path.join(folder, name))


class Unnamed:
    """A segment that has no name yet: its blocks are reserved, and it is empty (files.1)."""

    __slots__ = ("_folder", "_folder_fd", "_name", "fd")

    def __init__(self, folder: str, folder_fd: int, size: int) -> None:
        self._folder = folder
        self._folder_fd = folder_fd
        #: Path of a standby file, where the file system has no files without a name.
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
            # Given dst_dir_fd, Python calls linkat(2), which can follow the link in /proc.
            source, target = f"/proc/self/fd/{self.fd}", segment_name(header.base)
            os.link(source, target, dst_dir_fd=self._folder_fd, follow_symlinks=True)
        self._name = None
        return Segment(self.fd, path, header)

    def close(self) -> None:
        """Close the descriptor, and remove the standby file if there is one."""
        _close_locked(self.fd)
        if self._name is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._name)


class Control:
    """The control file of a writer: it is locked, and never replaced.

    Attributes:
        fd: its locked descriptor.
        block: its bytes when it was opened.
        own: its device and inode.
        boot: id of the boot of this machine.
        identity: what it says of the log; None if its words cannot be believed.
    """

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
        """Whether the file was written in this boot, so that its positions can be believed, too."""
        return self.identity is not None and self.identity.boot == self.boot

    def map(self) -> LogWriter:
        """Map the words by a second descriptor, which has no lock.

        A mapping keeps its open file alive. With the first descriptor it would keep the lock in a
        forked child (files.2).
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return LogWriter(fd)
        finally:
            os.close(fd)

    def say_who_writes(self, life: int) -> None:
        """Note who writes, for the messages of writers that are refused."""
        holder = Holder(os.getpid(), life, os.uname().nodename)
        write_all(self.fd, holder.pack(), HOLDER_AT)

    def adopt(self, log_id: bytes) -> None:
        """Write the identity, so that readers believe the words; call it when they are true."""
        write_all(self.fd, ControlIdentity(log_id, *self.own, self.boot).pack(crc32c), 0)

    def close(self) -> None:
        """Close the descriptor and release its lock."""
        _close_locked(self.fd)


def believed_control(path: str) -> tuple[bytes, ControlIdentity, bool] | None:
    """Read a control file as a reader does.

    Returns:
        The bytes of the file, its identity, and whether it was written in this boot; None if it
        is missing or cannot be believed.
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
    """Make durable a segment that the writer has closed."""
    fd = os.open(os.path.join(folder, segment_name(base)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
