"""Read a log of ``aiommap.Log`` with nothing but Python: ``python examples/read_log.py FOLDER``.

The program shows docs/log_format.md as code. No writer may have the log open meanwhile.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

HEADER = struct.Struct("<8sHHI16sQQQQQIIQ")
FRAME = struct.Struct("<IIQII")
RECORD, OPEN, END, DISCARD = 1, 2, 3, 4


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def table_entry(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc


TABLE = [table_entry(byte) for byte in range(256)]


def read_header(segment: bytes | mmap.mmap) -> tuple[int, ...]:
    """Return base, position, salt, durable below, first, life, previous checksum and end."""
    magic, major, _, flags, _, *fields = HEADER.unpack_from(segment)
    if magic != b"aiomlog\n" or major != 1 or flags:
        raise ValueError("not a segment of version 1")
    if crc32c(segment[:88]) != int.from_bytes(segment[88:92], "little"):
        raise ValueError("the header of a segment is damaged")
    return tuple(fields)


def read_segment(segment: bytes | mmap.mmap) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield kind, sequence, life and data of each frame, up to the first invalid one."""
    base, position, salt, _, _, life, _, _ = read_header(segment)
    place, sequence = 4096, base
    while place + FRAME.size <= len(segment):
        crc, length, number, frame_life, claim_and_kind = FRAME.unpack_from(segment, place)
        begin, kind = place + FRAME.size, claim_and_kind >> 24
        end = begin + (length + 7) // 8 * 8
        if kind == 0 or number != sequence or frame_life < life or end > len(segment):
            return
        covered = struct.pack("<QQ", salt, position + place - 4096) + segment[place + 4 : end]
        if crc32c(covered) != crc:
            return
        yield kind, number, frame_life, segment[begin : begin + length]
        place, life, sequence = end, frame_life, sequence + (kind == RECORD)


def map_file(path: Path) -> mmap.mmap:
    """Map a segment: most of a new segment is reserved room, which is never read then."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_log(folder: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield sequence, life and data of each record that was not discarded."""
    paths = sorted(folder.glob("[0-9]" * 20 + ".log"))
    segments = [map_file(path) for path in paths]
    first = read_header(segments[-1])[4] if segments else 1
    frames = [list(read_segment(segment)) for segment in segments]
    for kind, _, _, data in (frame for segment in frames for frame in segment):
        if kind == DISCARD:
            first = max(first, int.from_bytes(data[:8], "little"))
    for kind, sequence, life, data in (frame for segment in frames for frame in segment):
        if kind == RECORD and sequence >= first:
            yield sequence, life, data


if __name__ == "__main__":
    for sequence, life, data in read_log(Path(sys.argv[1])):
        print(sequence, life, data)
