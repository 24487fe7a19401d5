"""The engine: the native pool of one event loop, and the way of its outcomes to the loop.

Why native threads. A hop to a thread that runs Python costs a job object, two locks and two waits
for the GIL: some 80 microseconds of CPU. The device delivers a cold page after 90. The threads of
the pool make one system call and never touch Python. The loop hands over together all reads that
tasks begin in one turn, and learns together of all jobs that have landed (docs/decisions).

An engine exists while hubs keep it. All hubs of a loop share it, with its threads and its one
descriptor.

Invariants.
  1  An engine closes when its last keeper has gone and no job is in flight. A read that was left
      behind still fills its memory, and holds the descriptor open until it ends.
  2  If the loop of an engine has ended, jobs that land later are given up at the next garbage
      collection, or when an engine is made or released. Otherwise their waiters would keep files
      and hubs alive.
  3  A forked child uses no engine of its parent: it neither drains nor closes one.
  4  The end of a run of trio ends the task that watches the descriptor. Then an engine takes no
     more commits, and stays until those in flight have landed.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

from .._native import Pool, PoolQueue
from .asyncio_loop import OLD_GENERATION
from .callbacks import nothing, when_garbage
from .event_loop import EventLoop
from .threads import Forks

#: A limit on the jobs of one hub that run at a time, larger than any number of threads.
NO_LIMIT = 1 << 16

#: The engine of each loop, by the token of the loop.
_engines: dict[object, Engine] = {}
#: Engines that nobody keeps, and that still have jobs in flight.
_leaving: list[Engine] = []

os.register_at_fork(after_in_child=_engines.clear)
os.register_at_fork(after_in_child=_leaving.clear)


class Engine:
    """The pool of one event loop; for the loop thread."""

    __slots__ = ("_forks", "_keepers", "_loop", "_pool", "_stop_watching")

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._keepers = 0
        self._forks = Forks.count
        self._pool = Pool(loop.waiter, loop.call_soon, loop.future_loop)
        self._stop_watching = loop.add_reader(
            self._pool.fileno(), self._pool.drain, self._has_committed
        )

    @classmethod
    def of_loop(cls, loop: EventLoop) -> Engine:
        """Return the engine of the loop that runs here; the caller has to keep it.

        Raises:
            OSError: if no descriptor is left.
            NotImplementedError: if the loop watches no descriptors.
        """
        engine = _engines.get(loop.token)
        if engine is None:
            _give_up_ended()
            engine = _engines[loop.token] = cls(loop)
        return engine

    def keep(self, owner: object) -> Callable[[], object]:
        """Keep the engine until the owner is garbage, or until the returned function is called."""
        self._keepers += 1
        return when_garbage(owner, self._release_in_any_thread)

    def queue(self, owner: object, readers: int | None, device: int) -> PoolQueue:
        """Make the place of one file.

        Args:
            owner: jobs of one owner share the limit; the hub of the file, or another object.
            readers: how many jobs of the owner run at a time; None means no limit.
            device: the device of the file.
        """
        limit = NO_LIMIT if readers is None else readers
        return self._pool.queue(id(owner), limit, device)

    def _has_committed(self) -> bool:
        """Take no more commits; tell whether all have landed (engine.4)."""
        self._pool.deaf = True
        return not self._pool.commits

    def _release_in_any_thread(self) -> None:
        if self._forks != Forks.count:
            return
        try:
            self._loop.call_from_thread(self._release)
        except RuntimeError:
            self._release()  # the loop has ended, so no other thread uses the engine

    def _release(self) -> None:
        self._keepers -= 1
        if not self._keepers:
            _engines.pop(self._loop.token, None)
            _leaving.append(self)
            self._pool.when_empty(self._close)
            _give_up_ended()

    def _close(self) -> None:
        _leaving.remove(self)
        self._stop_watching()
        self._pool.close()

    def give_up(self) -> None:
        """Drain jobs that have landed, if the loop has ended and so will never do it."""
        try:
            self._loop.call_from_thread(nothing)
        except RuntimeError:
            self._pool.give_up()


def _give_up_ended() -> None:
    for engine in (*_engines.values(), *_leaving):
        engine.give_up()


def _give_up_with_garbage(phase: str, info: dict[str, int]) -> None:
    if phase == "start" and info["generation"] >= OLD_GENERATION:
        _give_up_ended()


gc.callbacks.append(_give_up_with_garbage)
