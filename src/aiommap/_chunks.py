"""Chunks: a file front to back, the next piece being read in while the caller holds this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ._core import Core
from ._native import PIECE_BYTES
from ._read_ahead import ReadAhead


class Reads(Protocol):
    """What chunks need of a file."""

    async def read(self, offset: int, length: int) -> bytes: ...


async def iterate(file: Reads, core: Core, size: int) -> AsyncIterator[bytes]:
    """Yield chunks of ``size`` bytes, the last one shorter."""
    # A window of at least PIECE_BYTES: a hop for each page would cost more than reading it.
    ahead = ReadAhead(core, size, core.mapping.size, max(2 * size, PIECE_BYTES))
    offset = 0
    while offset < core.mapping.size:
        length = min(size, core.mapping.size - offset)
        data = await file.read(offset, length)
        offset += length
        ahead.reach(offset)
        yield data
