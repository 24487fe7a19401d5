"""Chunks: bytes front to back, the next piece being read in while the caller holds this one."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Callable
from typing import Protocol, SupportsIndex

from ._core import Core
from ._native import PIECE_BYTES
from ._read_ahead import ReadAhead


class Reads(Protocol):
    """What chunks need of a file, or of a view."""

    async def read(self, offset: int, length: int) -> bytes: ...


def chunks(
    source: Reads, core: Core, size: SupportsIndex, start: int, length: Callable[[], int]
) -> AsyncIterator[bytes]:
    """Iterate over a source that begins at a byte of the file, in pieces of so many bytes.

    Its length is asked for before each piece: a file may become longer or shorter meanwhile.
    """
    count = operator.index(size)
    if count < 1:
        raise ValueError(f"chunk size is {count}: ask for at least 1 byte a chunk")
    return _iterate(source, core, min(count, max(length(), 1)), start, length)


async def _iterate(
    source: Reads, core: Core, size: int, start: int, length: Callable[[], int]
) -> AsyncIterator[bytes]:
    # A window of at least PIECE_BYTES: a hop for each page would cost more than reading it.
    ahead = ReadAhead(core, start + size, start + length(), max(2 * size, PIECE_BYTES))
    offset = 0
    while offset < (most := length()):
        count = min(size, most - offset)
        data = await source.read(offset, count)
        offset += count
        ahead.reach(start + offset)
        yield data
