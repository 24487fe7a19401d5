"""One opening: workers find the object, tell the task, and receive the first block.

The task that opens goes on as soon as the object is known. The block that was asked for together
with its state is a fetch like others from then on: whoever wants it waits for it, and no
cancellation ends it (R11).
"""

from __future__ import annotations

from collections.abc import Callable

from .._native import time_slice_wake
from .._runtime.threads import Mutex
from .._runtime.workers import Workers
from .body import Body
from .fetches import Fetch, Fetches
from .open_objects import Found, HandOver

#: How many reads of 10 us a snapshot takes to make, beside other work, and its first read.
OPENING_READS = 200


class Attempt:
    """An opening whose task may be gone when the object is found. For the loop thread.

    Args:
        find: finds the object, in a worker, as ``OpenObjects.find`` does.
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

    def __init__(
        self,
        find: Callable[[Callable[[], bool], HandOver], list[Body]],
        workers: Workers,
    ) -> None:
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

    def _tell(self) -> None:
        """Wake the task. It has waited, so it need not give way in its first read, too."""
        time_slice_wake(OPENING_READS)
        self._told.set()

    def _end(self, bodies: list[Body] | None, error: BaseException | None) -> None:
        """Take note that the worker is done."""
        if not self._told.is_set():
            self._error = error
            self._tell()
        if self._fetches is not None:
            self._fetches.part_with(self._first)
        self._first.end(bodies or [], error)

    # In workers.

    def _run(self) -> list[Body]:
        return [] if self._abandoned else self._find(self._is_wanted, self._hand_over)

    def _is_wanted(self) -> bool:
        return not self._abandoned

    def _hand_over(self, found: Found, more: bool) -> None:
        """Keep the object for the task; give it up if the task is gone.

        If there is ``more`` to do, the task goes on meanwhile; else when this job ends.
        """
        with self._mutex:
            wanted = not self._abandoned
            if wanted:
                self._found = found
        if not wanted:
            found.give_up()
        elif more:
            self.workers.call_from_thread(self._tell)
