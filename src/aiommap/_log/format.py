"""The bytes of a log: segment headers, frames, the control file; pure.

docs/log_format.md has the tables. The native module lays out and checks frames. This module has
the headers of segments, the data of the frames that are no records, the control file, and names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .._errors import UnsupportedError

SEGMENT_MAGIC: Final = b"aiomlog\n"
CONTROL_MAGIC: Final = b"aiomctl\n"
MAJOR: Final = 1
MINOR: Final = 0

HEADER_BYTES: Final = 4096
FRAME_BYTES: Final = 24
ALIGNMENT: Final = 8
MIN_SEGMENT_BYTES: Final = 64 << 10
MAX_SEGMENT_BYTES: Final = 2 << 30
MAX_SEQUENCE: Final = (1 << 63) - 1
MAX_LIFE: Final = (1 << 32) - 1
#: What a segment needs besides the data of its largest record: its own header, the header of the
#: frame, padding, and the END frame.
RESERVED_BYTES: Final = HEADER_BYTES + FRAME_BYTES + ALIGNMENT + FRAME_BYTES

OPEN: Final = 2
END: Final = 3
DISCARD: Final = 4

CONTROL_NAME: Final = "control"
CONTROL_BYTES: Final = 4096
#: Where the words of the control file lie.
TAIL: Final = 256
DURABLE: Final = 320
DURABLE_SEQUENCE: Final = 384
LAST_SEQUENCE: Final = 448
FIRST: Final = 512
FUTEX: Final = 576
CLEAN: Final = 640

_HEADER = struct.Struct("<8sHHI16sQQQQQIIQ")
_CRC = struct.Struct("<I")
#: Data of an OPEN frame: how many bytes recovery cut off at its place, and whole records in them.
OPEN_DATA = struct.Struct("<QQ")
#: Data of a DISCARD frame: the lowest sequence that is kept.
DISCARD_DATA = struct.Struct("<Q")
_IDENTITY = struct.Struct("<8sHHI16sQQ16s")
_HOLDER = struct.Struct("<QI64s")
HOLDER_AT: Final = 128
_NAME = re.compile(r"([0-9]{20})\.log")


#: A function that returns the CRC32C of bytes. The native module has one; this module is pure.
Checksum = Callable[[bytes], int]


class FormatError(ValueError):
    """Bytes are not a header; the message says why."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first block of a segment; it is written once.

    Attributes:
        log_id: 16 random bytes that all segments of a log share.
        base: sequence of the first record, and the name of the file.
        position: logical position of byte 4096.
        salt: a random number that is part of every checksum of the segment.
        durable_below: records before this sequence were durable when the segment was made.
        first: the lowest sequence that was not discarded when the segment was made.
        life: the life of the writer that made it.
        previous_crc: checksum of the last frame of the segment before; 0 in the first one.
        previous_end: position at which that frame ends.
    """

    log_id: bytes
    base: int
    position: int
    salt: int
    durable_below: int
    first: int
    life: int
    previous_crc: int
    previous_end: int

    def pack(self, crc32c: Checksum) -> bytes:
        """Return the bytes of the block."""
        fields = _HEADER.pack(
            SEGMENT_MAGIC,
            MAJOR,
            MINOR,
            0,
            self.log_id,
            self.base,
            self.position,
            self.salt,
            self.durable_below,
            self.first,
            self.life,
            self.previous_crc,
            self.previous_end,
        )
        return (fields + _CRC.pack(crc32c(fields))).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, block: bytes, path: str, crc32c: Checksum) -> SegmentHeader:
        """Read the bytes of a block.

        Raises:
            FormatError: if they are not a header, or it is damaged.
            UnsupportedError: if a later version wrote it.
        """
        if len(block) < HEADER_BYTES:
            raise FormatError(f"it has {len(block)} bytes, and a header has {HEADER_BYTES}")
        magic, major, _, flags, *fields = _HEADER.unpack_from(block)
        if magic != SEGMENT_MAGIC:
            raise FormatError("it does not begin as a segment of a log does")
        check_version(major, flags, path)
        (crc,) = _CRC.unpack_from(block, _HEADER.size)
        if crc != crc32c(block[: _HEADER.size]):
            raise FormatError("the checksum of its header is wrong")
        return cls(*fields)


def check_version(major: int, flags: int, path: str) -> None:
    """Refuse a major version or a flag that this version of the format does not know."""
    if major != MAJOR:
        raise UnsupportedError(
            f"read {path}", f"it has version {major} of the format of logs, this is {MAJOR}"
        )
    if flags:
        raise UnsupportedError(
            f"read {path}", f"it needs features that are not known here: flags {flags:#x}"
        )


@dataclass(frozen=True, slots=True)
class ControlIdentity:
    """Which log a control file belongs to, and when its words can be believed."""

    log_id: bytes
    device: int
    inode: int
    boot: bytes

    def pack(self, crc32c: Checksum) -> bytes:
        """Return its bytes, checksum included."""
        fields = _IDENTITY.pack(
            CONTROL_MAGIC, MAJOR, MINOR, 0, self.log_id, self.device, self.inode, self.boot
        )
        return fields + _CRC.pack(crc32c(fields))

    @classmethod
    def unpack(cls, block: bytes, path: str, crc32c: Checksum) -> ControlIdentity | None:
        """Read it; return None if there is none, as in a new file, or its checksum is wrong."""
        if len(block) < CONTROL_BYTES or not block.startswith(CONTROL_MAGIC):
            return None
        _, major, _, flags, log_id, device, inode, boot = _IDENTITY.unpack_from(block)
        check_version(major, flags, path)
        (crc,) = _CRC.unpack_from(block, _IDENTITY.size)
        if crc != crc32c(block[: _IDENTITY.size]):
            return None
        return cls(log_id, device, inode, boot)

    def is_of(self, device: int, inode: int, boot: bytes) -> bool:
        """Tell whether this identity was written into this very file, in this boot or before.

        A copy of the folder has other inodes. A device may get another number at a reboot.
        """
        return self.inode == inode and (self.device == device or self.boot != boot)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes the log; for messages only."""

    pid: int
    life: int
    host: str

    def pack(self) -> bytes:
        """Return its bytes."""
        return _HOLDER.pack(self.pid, self.life, self.host.encode()[:64])

    @classmethod
    def unpack(cls, block: bytes) -> Holder:
        """Read it from the bytes of a control file."""
        pid, life, host = _HOLDER.unpack_from(block, HOLDER_AT)
        return cls(pid, life, host.rstrip(b"\0").decode(errors="replace"))

    @property
    def is_told(self) -> bool:
        """Whether these bytes look like what a writer noted, and not like anything else."""
        return self.pid > 0 and self.host.isprintable() and "\ufffd" not in self.host


def word(block: bytes, at: int) -> int:
    """Read one word of a control file."""
    return int.from_bytes(block[at : at + 8], "little")


def segment_name(base: int) -> str:
    """Return the name of the segment whose first record has this sequence."""
    return f"{base:020d}.log"


def base_of(name: str) -> int | None:
    """Return the sequence in the name of a segment; None if the name is not that of a segment."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def frame_bytes(length: int) -> int:
    """Return the bytes that the frame of a record of this length takes."""
    return FRAME_BYTES + -(-length // ALIGNMENT) * ALIGNMENT
