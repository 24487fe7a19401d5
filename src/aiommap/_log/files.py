"""The segments of a log, and their names. For worker threads.

Invariants.
  1  A segment gets its name only when its header is durable. The folder is synced before any
     record in the segment is reported durable (L6, L7).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import struct
from contextlib import suppress
from dataclasses import dataclass

from .._core.lengths import too_long
from .._core.opening import reserve
from .._errors import CorruptLogError
from .._native import crc32c
from .calls import naming, write_all
from .format import (
    FRAME_BYTES,
    HEADER_BYTES,
    FormatError,
    SegmentHeader,
    base_of,
    frame_bytes,
    segment_name,
)
from .locks import HeldError, LockedFile
from .log_folder import Folder
from .recovery import FoundSegment

#: Name of a segment in the making, on file systems without O_TMPFILE.
_STANDBY = re.compile(r"standby-[0-9a-f]{8}\.tmp")
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS}


def segment_bases(folder: Folder) -> list[int]:
    """List the bases of the segments of a log, oldest first; ignore unknown names."""
    found = (base_of(name) for name in folder.names())
    return sorted(base for base in found if base is not None)


def read_segment(fd: int, folder: Folder, base: int, file: LockedFile | None = None) -> Segment:
    """Make a segment of an open file: read and check its header.

    Raises:
        CorruptLogError: if there is no good header, or it has the base of another file name.
        UnsupportedError: if a later version wrote it.
    """
    name, path = segment_name(base), folder.path_of(segment_name(base))
    try:
        with naming(path):
            block = os.pread(fd, HEADER_BYTES, 0)
        header = SegmentHeader.unpack(block, path, crc32c)
    except FormatError as error:
        raise CorruptLogError(folder.path, f"{path} is damaged: {error}; restore it") from None
    if segment_name(header.base) != name:
        raise CorruptLogError(
            folder.path,
            f"{path} was named {segment_name(header.base)} when it was made: give it that name",
        )
    return Segment(fd, path, header, file)


@dataclass(slots=True)
class Segment:
    """An open segment; the file of the writer's is locked."""

    fd: int
    path: str
    header: SegmentHeader
    file: LockedFile | None = None

    def offset_of(self, position: int) -> int:
        """Return the offset in the file at which a position of the log lies."""
        return HEADER_BYTES + position - self.header.position

    def place_of(self, sequence: int, at: int, damaged: int) -> int:
        """Return the offset of a damaged record, if the headers of the frames before it tell.

        Args:
            sequence: the record.
            at, damaged: offset and sequence of the first damaged frame; the offset is returned if
                the headers do not tell.
        """
        place = at
        while True:
            head = os.pread(self.fd, FRAME_BYTES, place)
            if len(head) < FRAME_BYTES:
                return at
            length, number = struct.unpack_from("<IQ", head, 4)
            if number != damaged:
                return at
            if damaged == sequence:
                return place
            place, damaged = place + frame_bytes(length), damaged + 1

    def close(self) -> None:
        """Close the descriptor and release its lock; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if self.file is not None:
            self.file.close()
        elif fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if self.file is None:  # else that closes itself
            self.close()


def open_segment(folder: Folder, base: int) -> Segment:
    """Open a segment for reading, and read its header."""
    fd = folder.open_file(segment_name(base), os.O_RDONLY)
    try:
        return read_segment(fd, folder, base)
    except BaseException:
        os.close(fd)
        raise


def lock_segment(folder: Folder, base: int) -> Segment:
    """Open a segment for writing, and lock it against other writers (locks.2)."""
    file = LockedFile(folder, segment_name(base), 0)
    try:
        segment = read_segment(file.fd, folder, base, file)
        file.lock()
    except BaseException:
        file.close()
        raise
    return segment


def lock_last_segment(folder: Folder) -> Segment | None:
    """Lock the last segment; return None if the log has none.

    Another writer may roll to a new segment or set this one aside meanwhile: that is a
    ``HeldError``, too.
    """
    bases = segment_bases(folder)
    if not bases:
        return None
    try:
        last = lock_segment(folder, bases[-1])
    except FileNotFoundError:  # another writer, in its recovery, has set the segment aside
        raise HeldError(folder) from None
    try:
        if segment_bases(folder)[-1:] != bases[-1:]:
            raise HeldError(folder)
    except BaseException:
        last.close()
        raise
    return last


def find_segment(folder: Folder, base: int) -> FoundSegment:
    """Read size and header of a segment, and close it again."""
    segment = open_segment(folder, base)
    try:
        return FoundSegment(segment.path, os.fstat(segment.fd).st_size, segment.header)
    finally:
        segment.close()


#: What an error number of a commit means if no call of the system gave it.
_REASONS = {
    # Nobody can find the records of a segment without a name, though syncing them succeeds.
    errno.ESTALE: "the segment was unlinked by somebody else",
    errno.ENODATA: "the segment was truncated by somebody else",
    # The page of the control file cannot be reached.
    errno.EFAULT: "the control file was truncated by somebody else, or its device failed",
}


def reason_of(error: OSError) -> str:
    """Say what an error of a commit means."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)


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


def list_segments(folder: Folder, first: int) -> tuple[LogSegment, ...]:
    """List the segments whose base is ``first`` or higher, oldest first."""
    bases = segment_bases(folder)
    while True:
        try:
            return tuple(_describe(folder, base) for base in bases if base >= first)
        except FileNotFoundError:
            before, bases = bases, segment_bases(folder)
            if bases == before:
                raise  # the segment was not discarded meanwhile: it is missing


def _describe(folder: Folder, base: int) -> LogSegment:
    found = find_segment(folder, base)
    header = found.header
    return LogSegment(found.path, base, found.size, header.life, header.durable_below)


def remove_standbys(folder: Folder) -> None:
    """Remove the standby files that a crash left behind."""
    for name in folder.names():
        if _STANDBY.fullmatch(name):
            folder.unlink(name)


class Unnamed:
    """A segment that has no name yet: its blocks are reserved, and it is empty (files.1)."""

    __slots__ = ("_file", "_folder", "_name")

    def __init__(self, folder: Folder, size: int) -> None:
        self._folder = folder
        #: Name of a standby file, where the file system has no files without a name.
        self._name: str | None = None
        try:
            self._file = LockedFile(folder, ".", os.O_TMPFILE)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self._name = f"standby-{secrets.token_hex(4)}.tmp"
            self._file = LockedFile(folder, self._name, os.O_CREAT | os.O_EXCL)
        try:
            with naming(folder.path):
                reserve(self._file.fd, 0, size, 0)
                os.fsync(self._file.fd)
        except OSError as error:
            self.close()
            if error.errno == errno.EFBIG:
                raise too_long(folder.path, size) from error
            raise
        except BaseException:
            self.close()
            raise

    def name(self, header: SegmentHeader) -> Segment:
        """Write the header and give the segment its name; both are durable when it returns."""
        folder, name = self._folder, segment_name(header.base)
        path = folder.path_of(name)
        block = header.pack(crc32c)
        file = self._file
        write_all(file.fd, block, 0)
        os.fsync(file.fd)
        file.lock()
        if self._name is not None:
            if folder.identity_of(name) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            folder.rename(self._name, name)
        else:
            folder.give_name(file.fd, name)
        self._name = None
        return Segment(file.fd, path, header, file)

    def close(self) -> None:
        """Close the descriptor, and remove the standby file if there is one."""
        self._file.close()
        if self._name is not None:
            with suppress(FileNotFoundError):
                self._folder.unlink(self._name)


def sync_segment(folder: Folder, base: int) -> None:
    """Make durable a segment that the writer has closed."""
    try:
        fd = folder.open_file(segment_name(base), os.O_RDONLY)
    except CorruptLogError as error:  # something else has its name
        raise OSError(errno.ESTALE, error.reason) from error
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
