"""The files in the folder of a cache: names, headers of objects, the state of the folder; pure.

    aiommap-cache     the marker: only a folder that has it is ours. It holds the state of the
                      folder: bytes reserved, counters, the hand of the clock, reservations under
                      way. Behind its end lies one byte for each owner; a live owner keeps it
                      locked. From ADDRESSES_AT on lie hashes of addresses (addresses.py)
    ID.data           the object, sparse
    ID.map            its header, and a word and a checksum for each block (sys/block_map.h)

ID is a hash of the object's identity, so two states of one object share no file. There are no more
files than these, because a new cache has to make them all before its first read.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from .source import ObjectIdentity, RemoteState

MARKER = "aiommap-cache"
DATA_SUFFIX = ".data"
MAP_SUFFIX = ".map"
FORMAT = 2

HEADER_BYTES = 4096
STATE_BYTES = 4096
#: Numbers of owners of claims: each open cache has one, and number 0 is nobody's. The state of the
#: folder has room for the reservations of so many.
OWNERS = 496
#: How many hashes of addresses there are, of 4 bytes; a page of them takes room once it is used.
ADDRESSES = 1 << 16
ADDRESSES_AT = 2 * STATE_BYTES

#: The states of a block; sys/block_map.h says what they mean.
EMPTY, BUSY, PRESENT, SUSPECT = range(4)

_MAGIC = b"AIOMMAPR"
#: For people who find the folder.
_MARKER_TEXT = b"A cache of aiommap.remote. It may be deleted at any time.\n".ljust(64, b"\0")
_HEAD = struct.Struct("<8sIIIIQQQQQ16s")
_STATE = struct.Struct("<64sQQQ32sQ")
_OWN = struct.Struct("<Q")
OWN_AT = STATE_BYTES - OWNERS * _OWN.size
_NAME = re.compile(r"([0-9a-f]{64})\.(data|map)")
#: What the layout before this one had beside the marker: its objects' files lay in subfolders.
EARLIER_FILES = ("state", "leases")
EARLIER_SUBFOLDER = re.compile(r"[0-9a-f]{2}")

Checksum = Callable[[bytes], int]


class LayoutError(ValueError):
    """Bytes are not a header of ours, or the header is damaged."""


def state_of(word: int) -> int:
    """Return the state of a block from its word."""
    return word & 3


def owner_of(word: int) -> int:
    """Return the owner of a BUSY block from its word."""
    return word >> 3 & 511


def block_count(size: int, block_size: int) -> int:
    """Return how many blocks an object has."""
    return -(-size // block_size)


def map_bytes(size: int, block_size: int) -> int:
    """Return the bytes of a map: a header, and 4 bytes and 8 bytes for each block."""
    count = block_count(size, block_size)
    return HEADER_BYTES + -(-4 * count // 8) * 8 + 8 * count


def blocks_of_map(length: int) -> int:
    """Return how many blocks a map of this length is for."""
    return max(0, length - HEADER_BYTES) // 12


def list_bytes(count: int) -> int:
    """Return how many bytes the file system's list of extents may take, for so many blocks."""
    return round_up(16 * count) + 4096


def overhead_bytes(size: int, block_size: int) -> int:
    """Return what an object takes on the disk besides its blocks: the map and the extent list."""
    return round_up(map_bytes(size, block_size)) + list_bytes(block_count(size, block_size))


def round_up(length: int) -> int:
    """Round up to a multiple of what a file system allocates."""
    return -(-length // 4096) * 4096


def round_down(length: int) -> int:
    """Round down to a multiple of what a file system allocates."""
    return length // 4096 * 4096


def identifier(identity: ObjectIdentity) -> str:
    """Return the name of an object in one state, for its files."""
    return hashlib.sha256("\0".join(identity.key).encode("utf-8", "surrogatepass")).hexdigest()


def file_names(name: str) -> tuple[str, str]:
    """Return the file names of the data and of the map of an object."""
    return name + DATA_SUFFIX, name + MAP_SUFFIX


def name_in(file_name: str) -> str | None:
    """Return the object to which a file of the folder belongs; None for other files."""
    found = _NAME.fullmatch(file_name)
    return None if found is None else found[1]


@dataclass(slots=True)
class Header:
    """The first bytes of a map.

    Attributes:
        identity: the object and its state.
        block_size: bytes of a block.
        opened: the folder's counter of openings when this object was opened last.
        boot: id of the boot in which its words were written.
        device, inode: of the data file that the words are about.
    """

    identity: ObjectIdentity
    block_size: int
    opened: int
    boot: bytes
    device: int
    inode: int

    def note_opened(self, identity: ObjectIdentity, ticks: int) -> None:
        """Note an opening, and the state that the store gave then."""
        self.identity, self.opened = identity, ticks

    def note_file(self, boot: bytes, device: int, inode: int) -> None:
        """Note the boot and the data file for which the words are true."""
        self.boot, self.device, self.inode = boot, device, inode

    @property
    def salt(self) -> int:
        """A number that goes into each checksum, so that blocks of other objects never match."""
        return int(identifier(self.identity)[:16], 16)

    def pack(self, checksum: Checksum) -> bytes:
        """Return the bytes of the header.

        Raises:
            LayoutError: if the URL and the state of the object are too long for it.
        """
        state = self.identity.state
        text = json.dumps(
            [
                self.identity.url,
                self.identity.validator,
                state.etag,
                state.version,
                state.modified,
            ]
        ).encode()
        body = _HEAD.pack(
            _MAGIC,
            FORMAT,
            self.block_size.bit_length() - 1,
            len(text),
            0,
            state.size,
            self.opened,
            self.device,
            self.inode,
            0,
            self.boot,
        )
        block = body + text
        if len(block) > HEADER_BYTES - 4:
            raise LayoutError(f"{self.identity.url} has names of {len(text)} bytes: too long")
        block += bytes(HEADER_BYTES - 4 - len(block))
        return block + struct.pack("<I", checksum(block))

    @classmethod
    def unpack(cls, block: bytes, checksum: Checksum) -> Header:
        """Read a header.

        Raises:
            LayoutError: if it is damaged, or of another format.
        """
        if len(block) < HEADER_BYTES or block[:8] != _MAGIC:
            raise LayoutError("no header of a cached object")
        if struct.unpack("<I", block[HEADER_BYTES - 4 : HEADER_BYTES])[0] != checksum(
            block[: HEADER_BYTES - 4]
        ):
            raise LayoutError("the header is damaged")
        _, version, shift, length, _, size, opened, device, inode, _, boot = _HEAD.unpack_from(
            block
        )
        if version != FORMAT:
            raise LayoutError(f"the header is of format {version}")
        url, validator, etag, number, modified = json.loads(block[_HEAD.size : _HEAD.size + length])
        state = RemoteState(size, etag, number, modified)
        identity = ObjectIdentity(url, state, validator)
        return cls(identity, 1 << shift, opened, boot, device, inode)


@dataclass(slots=True)
class FolderState:
    """What all processes count together; read and written with the folder's lock held.

    Attributes:
        reserved: bytes that are stored, or reserved for blocks to come.
        ticks: number of openings of objects.
        next_owner: the owner at which the search for a free one begins.
        hand: the object at the hand of the clock, or 32 zero bytes.
        hand_block: the block of that object at the hand.
    """

    reserved: int = 0
    ticks: int = 0
    next_owner: int = 0
    hand: bytes = field(default=bytes(32))
    hand_block: int = 0

    def reserve(self, length: int) -> None:
        """Reserve bytes."""
        self.reserved += length

    def give_back(self, length: int) -> None:
        """End the reservation of bytes, or count bytes that are gone from the disk."""
        self.reserved = max(0, self.reserved - length)

    def recount(self, reserved: int) -> None:
        """Set the count to the result of a recount."""
        self.reserved = reserved

    def count_opening(self) -> None:
        """Count one opening of an object."""
        self.ticks += 1

    def note_owner(self, owner: int) -> None:
        """Begin the next search for a free owner at this one."""
        self.next_owner = owner

    def move_hand(self, name: bytes, block: int) -> None:
        """Move the clock's hand to a block of an object."""
        self.hand, self.hand_block = name, block

    def pack(self) -> bytes:
        """Return the bytes of the state; the reservations of owners follow it in the file."""
        return _STATE.pack(
            _MARKER_TEXT, self.reserved, self.ticks, self.next_owner, self.hand, self.hand_block
        )

    @classmethod
    def unpack(cls, block: bytes) -> FolderState | None:
        """Read a state; None if the bytes are not one."""
        if len(block) < _STATE.size or not block.startswith(_MARKER_TEXT):
            return None
        return cls(*_STATE.unpack_from(block)[1:])


def lease_offset(owner: int) -> int:
    """Return the offset of the byte that an owner keeps locked while it is alive."""
    return STATE_BYTES + owner


def own_offset(owner: int) -> int:
    """Return the offset of an owner's reservation in the state file."""
    return OWN_AT + owner * _OWN.size


def pack_own(reserved: int) -> bytes:
    """Return the bytes of an owner's reservation: what it has reserved and not used yet."""
    return _OWN.pack(reserved)


def unpack_owns(block: bytes) -> list[int]:
    """Return what each owner has reserved and not used yet."""
    return [number for (number,) in _OWN.iter_unpack(block[OWN_AT : OWN_AT + OWNERS * _OWN.size])]
