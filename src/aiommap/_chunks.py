"""Chunks: a file front to back, the next piece being read in while the caller holds this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ._core import Core
from ._errors import UnsupportedError
from ._native import PIECE_BYTES
from ._workers import spawn

#: Read ahead at least this much, however small the chunks: a hop for each page would cost more
#: than reading it.
WINDOW_BYTES = PIECE_BYTES


class _Reads(Protocol):
    async def read(self, offset: int, length: int) -> bytes: ...


class _ReadAhead:
    """Keeps reading in one window ahead of a position; at most one request at a time."""

    __slots__ = ("_asked", "_busy", "_core", "_window")

    def __init__(self, core: Core, chunk: int) -> None:
        self._core = core
        self._window = max(chunk, WINDOW_BYTES)
        self._asked = 0
        self._busy = False

    def reach(self, position: int) -> None:
        """Ask for the next window once less than half a window is left of what was asked for."""
        if self._busy or self._core.closing or self._asked - position >= self._window // 2:
            return
        start = max(self._asked, position)
        end = min(start + self._window, self._core.mapping.size)
        if start < end:
            self._asked = end
            self._busy = True
            spawn(self._fetch, start, end)

    async def _fetch(self, start: int, end: int) -> None:
        core = self._core
        try:
            async with core.activity():
                await core.workers.batch(core.workers.reads, self._advise, start, end)
        finally:
            self._busy = False

    def _advise(self, start: int, end: int) -> None:
        try:
            for at in range(start, end, PIECE_BYTES):
                self._core.mapping.read_ahead(at, min(PIECE_BYTES, end - at))
        except (OSError, ValueError, UnsupportedError):
            pass  # only a hint: the read itself meets the same trouble and reports it


async def iterate(file: _Reads, core: Core, size: int) -> AsyncIterator[bytes]:
    """Yield chunks of ``size`` bytes, the last one shorter."""
    ahead = _ReadAhead(core, size)
    offset = 0
    while offset < core.mapping.size:
        length = min(size, core.mapping.size - offset)
        data = await file.read(offset, length)
        offset += length
        ahead.reach(offset)
        yield data
