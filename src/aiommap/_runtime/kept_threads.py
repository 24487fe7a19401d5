"""Two threads that the process starts before it needs them: the clock and the reserve.

``clock`` calls functions at deadlines. Files whose flush policy asks for background flushes keep it
(``_flush/background``). A timer of an event loop would not do: it fires when the loop has time, but
not during a long computation, nor between two runs of the loop.

``reserve`` runs jobs when the system can start no thread, at a limit on processes for instance.
Every hub keeps it (``Workers``). So a file that was opened can always be flushed and closed (I15).

Theory of operation. A kept thread exists while it has keepers. It alone touches its alarms. Other
threads send it orders through a queue: an alarm to add, or None for one keeper less. Putting into
the queue never waits, so a finalizer may do it at any moment.
"""

from __future__ import annotations

import heapq
import itertools
import os
import queue
import time
import weakref
from collections.abc import Callable

from .._logs import FLUSHES
from .threads import Job, Mutex, run_in_thread

#: Returns the function to call, or None if it is gone, as a weak reference does.
Reference = Callable[[], Job | None]
Alarm = tuple[float, int, Reference]

#: A longer wait is split into several: the system cannot wait for every number of seconds.
LONGEST_WAIT_SECONDS = 3600.0


class KeptThread:
    """Calls functions, one after the other, at times of ``time.monotonic``."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin without a thread, and with a new mutex; also in a forked child.

        The parent's thread does not exist there, and may have held the old mutex.
        """
        self._mutex = Mutex()
        self._keepers = 0
        self._runs = False
        self._order = itertools.count()
        #: An alarm to add; None means one keeper less.
        self._orders: queue.SimpleQueue[Alarm | None] = queue.SimpleQueue()
        self._alarms: list[Alarm] = []

    @property
    def runs(self) -> bool:
        """Whether there is a thread."""
        return self._runs

    def keep(self, owner: object) -> Callable[[], object]:
        """Keep the thread until the owner is garbage, or until the returned function is called.

        Raises:
            RuntimeError: if no thread can be started.
        """
        with self._mutex:
            if not self._runs:
                run_in_thread(self._run)
                self._runs = True
            self._keepers += 1
        stop = weakref.finalize(owner, self._orders.put, None)
        stop.atexit = False
        return stop

    def call_at(self, when: float, reference: Reference) -> None:
        """Call the function of a reference at a time; only while somebody keeps the thread."""
        self._orders.put((when, next(self._order), reference))

    def call(self, function: Job) -> None:
        """Call a function after those before it; only while somebody keeps the thread."""
        self.call_at(0, lambda: function)

    def _run(self) -> None:
        while self._run_orders():
            while self._alarms and self._alarms[0][0] <= time.monotonic():
                self._call(heapq.heappop(self._alarms)[2])

    def _run_orders(self) -> bool:
        """Wait for an order or for the next alarm; tell whether to go on."""
        try:
            order = self._orders.get(timeout=self._wait_seconds())
        except queue.Empty:
            return True
        if order is None:
            return not self._drop_keeper()
        heapq.heappush(self._alarms, order)
        return True

    def _wait_seconds(self) -> float | None:
        if not self._alarms:
            return None
        return min(max(self._alarms[0][0] - time.monotonic(), 0), LONGEST_WAIT_SECONDS)

    def _drop_keeper(self) -> bool:
        """Count one keeper less; tell whether it was the last."""
        with self._mutex:
            self._keepers -= 1
            self._runs = self._keepers > 0
            if not self._runs:
                self._alarms.clear()
            return not self._runs

    def _call(self, reference: Reference) -> None:
        function = reference()
        try:
            if function is not None:
                function()
        except Exception:  # no memory, for instance; other functions wait for their turn
            FLUSHES.exception("what was due in the background could not be done")


clock = KeptThread()
reserve = KeptThread()
for _thread in (clock, reserve):
    os.register_at_fork(after_in_child=_thread.renew)


def run_in_some_thread(job: Job, tell: Job | None = None) -> None:
    """Run a job as ``run_in_thread`` does, or in the reserve if no thread can be started.

    Only while somebody keeps the reserve.
    """
    try:
        run_in_thread(job, tell)
    except RuntimeError:

        def both() -> None:
            job()
            if tell is not None:
                tell()

        reserve.call(both)
