"""Chunks: bytes front to back, the next piece being read in while the caller holds this one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol, SupportsIndex

import anyio

from ._arguments import at_least
from ._core import Core
from ._native import PIECE_BYTES
from ._read_ahead import ReadAhead


class Reads(Protocol):
    """What chunks need of a file, or of a view."""

    async def read(self, offset: int, length: int) -> bytes: ...


class Chunks(AsyncIterator[bytes]):
    """Pieces of a source that begins at a byte of the file, of so many bytes each; for one task.

    The length of the source is asked for before each piece: a file may become longer or shorter
    meanwhile. No async generator, as those that a ``break`` leaves have to be finalized.
    """

    __slots__ = ("_ahead", "_busy", "_core", "_length", "_offset", "_size", "_source", "_start")

    def __init__(
        self,
        source: Reads,
        core: Core,
        size: SupportsIndex,
        start: int,
        length: Callable[[], int],
    ) -> None:
        count = at_least(1, size, "size", "ask for at least 1 byte a chunk")
        self._source: Reads | None = source
        self._core = core
        self._size = min(count, max(length(), 1))
        self._start = start
        self._length = length
        self._offset = 0
        self._ahead: ReadAhead | None = None
        self._busy = False

    async def __anext__(self) -> bytes:
        if self._busy:
            raise anyio.BusyResourceError("reading chunks of one iteration (make one a task) from")
        most = self._length()
        if self._source is None or self._offset >= most:
            raise StopAsyncIteration
        if self._ahead is None:
            self._ahead = self._make_ahead(most)
        count = min(self._size, most - self._offset)
        self._busy = True
        try:
            data = await self._source.read(self._offset, count)
        finally:
            self._busy = False
        self._offset += count
        self._ahead.reach(self._start + self._offset)
        return data

    def _make_ahead(self, most: int) -> ReadAhead:
        # A window of at least PIECE_BYTES: a hop for each page would cost more than reading it.
        window = max(2 * self._size, PIECE_BYTES)
        return ReadAhead(self._core, self._start + self._size, self._start + most, window)

    async def aclose(self) -> None:
        """End the iteration; nothing has to be waited for, so leaving it open does no harm."""
        self._source = None
