"""One opening: a worker finds the object, tells the task, and then receives the first block.

The task that opens goes on as soon as the object is known. The block that was asked for together
with its state is a fetch like others from then on: whoever wants it waits for it, and no
cancellation ends it (R11).
"""

from __future__ import annotations

from collections.abc import Callable

from .._runtime.threads import Mutex
from .._runtime.workers import Workers
from .body import Body
from .fetches import Fetch, Fetches
from .open_objects import Found


class Attempt:
    """An opening whose task may be gone when the object is found. For the loop thread.

    Args:
        find: finds the object, in a worker; gets a function that tells whether it is still wanted.
        workers: provide the thread.
    """

    __slots__ = (
        "_abandoned",
        "_error",
        "_fetches",
        "_find",
        "_first",
        "_found",
        "_mutex",
        "_told",
        "workers",
    )

    def __init__(self, find: Callable[[Callable[[], bool]], Found], workers: Workers) -> None:
        self._find = find
        self.workers: Workers = workers
        self._told = workers.event()
        self._error: BaseException | None = None
        self._first = Fetch((0, 1), workers.waiter)
        self._fetches: Fetches | None = None
        self._mutex = Mutex()
        #: With the mutex: whether nobody waits any more, and what was found meanwhile.
        self._abandoned = False
        self._found: Found | None = None

    async def find(self) -> Found:
        """Find the object; the caller has to close it.

        Cancellation: the object is given up as soon as it is found.
        """
        workers = self.workers
        workers.start(workers.reads, self._run, self._end)
        try:
            await self._told.wait()
        except BaseException:
            if (left := self._take(abandon=True)) is not None:
                workers.start(workers.control, left.give_up, lambda *_: None)
            raise
        found = self._take()
        if found is None:
            assert self._error is not None
            try:
                raise self._error
            finally:
                self._error = None  # or the traceback and this would keep each other alive
        return found

    def join(self, fetches: Fetches) -> None:
        """Let whoever reads the first block wait for it, if it is on its way."""
        self._fetches = fetches
        fetches.adopt(self._first)

    def _take(self, *, abandon: bool = False) -> Found | None:
        with self._mutex:
            self._abandoned = self._abandoned or abandon
            found, self._found = self._found, None
        return found

    def _end(self, bodies: list[Body] | None, error: BaseException | None) -> None:
        """Take note that the worker is done."""
        if not self._told.is_set():
            self._error = error
            self._told.set()
        if self._fetches is not None:
            self._fetches.part_with(self._first)
        self._first.end(bodies or [], error)

    # In the worker.

    def _run(self) -> list[Body]:
        if self._abandoned:
            return []
        found = self._find(lambda: not self._abandoned)
        begun, entry = found.begun, found.entry
        if begun is not None:
            entry.use()  # the task that is told of it may release it at once
        try:
            if not self._hand_over(found):
                found.give_up()
            elif begun is not None:
                return entry.fetch(begun, 0, 1, self._tell)
        finally:
            if begun is not None:
                begun.finish()
                entry.release()
        return []

    def _tell(self) -> None:
        """Let the task go on. The block is claimed by now, and what is left needs the GIL least."""
        self.workers.call_from_thread(self._told.set)

    def _hand_over(self, found: Found) -> bool:
        """Keep the object for the task; False if the task is gone."""
        with self._mutex:
            if not self._abandoned:
                self._found = found
            return not self._abandoned
