"""The walks along one log, and the segments that they are done with."""

from __future__ import annotations

from weakref import WeakSet

from .._runtime.event_loop import Event
from .._runtime.workers import Workers
from .files import Segment
from .reader import Reading


class Readings:
    """Ends the walks when their log is closed; for one event loop."""

    __slots__ = ("_all", "_changed", "_releasing", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._all: WeakSet[Reading] = WeakSet()
        #: Segments that nobody reads any more, until they are closed.
        self._releasing: list[Segment] = []
        #: For ``settle``: set when a segment is closed, or a walk or its worker has ended.
        self._changed: Event | None = None

    def add(self, reading: Reading) -> None:
        """Keep track of a walk."""
        self._all.add(reading)

    def holding(self) -> list[Reading]:
        """Return the walks that have a segment open."""
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
        """Note that a walk has ended, or a worker's job for one; from any thread."""
        if not self._workers.forked:
            self._workers.call_on_loop(self._tell)

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def end(self) -> None:
        """End all walks; a step that a task is in ends by itself."""
        for reading in list(self._all):
            await reading.aclose()

    async def settle(self) -> None:
        """Wait until no worker does anything for the walks, and no segment is open.

        Call it when the log is closed. It waits for workers, which end by themselves, and for no
        task: a task may be suspended for ever.
        """
        while self._close_idle() or self._releasing:
            self._changed = self._workers.event()
            await self._changed.wait()

    def _close_idle(self) -> bool:
        """Close the segments that no worker uses; tell whether one uses any.

        A task that is resumed later finds the log closed before it needs its segment.
        """
        at_work = False
        for reading in list(self._all):
            if reading.works:
                at_work = True
            else:
                reading.close_segment()
        return at_work
