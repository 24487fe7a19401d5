"""Read-ahead: another thread reads a window of pages, ahead of a walk through the file.

If the kernel's own read-ahead is short, a walk alone leaves the device idle between requests, and
two threads keep it busy. If it is long, two threads only hinder each other (docs/decisions).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Protocol, SupportsIndex

import anyio

from .._arguments import at_least
from .._core.file_core import FileCore
from .._native import PIECE_BYTES, PoolQueue

#: From this size on, the kernel's read-ahead keeps a device busy by itself, and in larger folios.
LONG_READ_AHEAD_KIB = 512
#: The most that one request reads: closing waits for its end.
MOST_AT_ONCE = 16 * PIECE_BYTES
#: Where Linux shows that size: for whole devices and network file systems, and for partitions.
_SYSFS = ("/sys/class/bdi/{}:{}/read_ahead_kb", "/sys/dev/block/{}:{}/../queue/read_ahead_kb")


def kernel_reads_far_ahead(device: int) -> bool:
    """Tell whether a walk through a file of this device needs no read-ahead of ours.

    Worker threads only.
    """
    for place in _SYSFS:
        try:
            with open(place.format(os.major(device), os.minor(device)), "rb") as setting:
                return int(setting.read()) >= LONG_READ_AHEAD_KIB
        except (OSError, ValueError):
            continue
    return False


class ReadAhead:
    """Reads one window ahead of a position; at most one request is under way.

    Args:
        window: bytes of one window; the next one follows when less than half of it is left.
    """

    __slots__ = ("_asked", "_busy", "_core", "_end", "_queue", "_window")

    def __init__(self, core: FileCore, offset: int, end: int, window: int) -> None:
        self._core = core
        self._end = end
        self._window = max(window, PIECE_BYTES)
        self._asked = offset
        self._busy = False
        self._queue: PoolQueue | None = None

    def reach(self, position: int) -> None:
        """Note how far the walk has come, and ask for the next window when it is time."""
        if (
            self._busy
            or self._core.lifecycle.closing
            or self._asked - position >= self._window // 2
        ):
            return
        start = max(self._asked, position)
        stop = min(start + self._window, self._end, self._core.mapping.size)
        if start < stop:
            self._asked = stop
            self._busy = True
            self._core.lifecycle.begin_activity()
            self._advise(start, stop)

    def _advise(self, start: int, stop: int) -> None:
        """Read a window part by part. If the engine declines one, skip the rest: it is a hint."""
        core = self._core
        end = min(start + MOST_AT_ONCE, stop)

        def advised(_outcome: int) -> None:
            if end < stop and not core.workers.ended:  # else nobody drains the engine (engine.2)
                self._advise(end, stop)
            else:
                self._end_window()

        if self._queue is None:
            self._queue = core.workers.queue(core.identity.device)
        queue, length = self._queue, end - start
        if queue is None or queue.read_ahead(core.mapping, start, length, advised) is None:
            self._end_window()

    def _end_window(self) -> None:
        self._busy = False
        self._core.lifecycle.end_activity()


class Reads(Protocol):
    """The method of a file, or of a view, that chunks use."""

    async def read(self, offset: int, length: int) -> bytes: ...


class Chunks(AsyncIterator[bytes]):
    """Iterates over a file or view in chunks of a given size; for one task.

    It asks for the length of the source before each chunk, because the file may become longer or
    shorter meanwhile. It is not an async generator: after a ``break`` that would have to be closed.
    """

    __slots__ = ("_ahead", "_busy", "_core", "_length", "_offset", "_size", "_source", "_start")

    def __init__(
        self,
        source: Reads,
        core: FileCore,
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
        except BaseException:
            self._source = None  # like a generator, an iteration that failed has ended
            raise
        finally:
            self._busy = False
        self._offset += count
        self._ahead.reach(self._start + self._offset)
        return data

    def _make_ahead(self, most: int) -> ReadAhead:
        # At least PIECE_BYTES: a hop for each page would cost more than reading it.
        window = max(2 * self._size, PIECE_BYTES)
        return ReadAhead(self._core, self._start + self._size, self._start + most, window)

    async def aclose(self) -> None:
        """End the iteration. It waits for nothing, so leaving the iteration open does no harm."""
        self._source = None
