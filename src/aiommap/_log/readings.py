"""The walks along one log, and the segments that they are done with."""

from __future__ import annotations

from weakref import WeakSet

from .._runtime.event_loop import Event
from .._runtime.workers import Workers
from .files import Segment
from .reader import Reading


class Readings:
    """Ends walks with their log; for one event loop."""

    __slots__ = ("_all", "_changed", "_releasing", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._all: WeakSet[Reading] = WeakSet()
        #: Segments that nobody reads any more, until they are closed.
        self._releasing: list[Segment] = []
        #: Set when one is closed, or a walk has ended; while somebody waits for that.
        self._changed: Event | None = None

    def add(self, reading: Reading) -> None:
        """Take care of a walk."""
        self._all.add(reading)

    def holding(self) -> list[Reading]:
        """Those that have a segment open."""
        return [reading for reading in list(self._all) if reading.holds_segment]

    def release(self, segment: Segment) -> None:
        """Close what a walk is done with, in a worker; from any thread."""
        workers = self._workers

        def closed(*_: object) -> None:
            self._releasing.remove(segment)
            self._tell()

        def close() -> None:
            workers.start(workers.control, segment.close, closed)

        if workers.forked:
            segment.close()
            return
        self._releasing.append(segment)
        if not workers.call_from_thread(close):
            self._releasing.remove(segment)
            segment.close()

    def note_end(self) -> None:
        """Take note that a walk has ended; from any thread."""
        if not self._workers.forked:
            self._workers.call_on_loop(self._tell)

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def end(self) -> None:
        """End all walks, but for what workers do for them."""
        for reading in list(self._all):
            await reading.aclose()

    async def settle(self) -> None:
        """Wait until no worker does anything for them, and no segment is open."""
        while self._releasing or any(reading.works for reading in list(self._all)):
            self._changed = self._workers.event()
            await self._changed.wait()
