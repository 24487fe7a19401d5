"""The engine: the native pool of one event loop, and how its outcomes come to the loop.

Why native threads. A hop to a thread that runs Python costs a job object, two locks, and twice the
wait for the GIL, some 80 microseconds of CPU; a cold page is there after 90. The threads of the
pool make one system call and never touch Python. Reads that tasks begin in one turn of the loop are
handed over together, and what has landed is told together (docs/decisions).

An engine exists while hubs keep it. All hubs of a loop share it: threads, and one descriptor.

Invariants.
  1  An engine closes when its last keeper has gone and nothing is in flight: a read that was left
      behind fills its memory to the end, and holds the descriptor open for as long.
  2  Of an engine whose loop ended, what landed later is given up when garbage is collected, when
      the next engine is made, or one is let go: what waits for it refers to files and their hub.
  3  A forked child has no engine of its parent's: it neither drains one nor closes it.
  4  At the end of a run of trio, which ends what watches the descriptor, an engine stays until
     what it commits has landed, and takes no more of that.
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

#: Of jobs of one hub that run at a time: more than there are ever threads.
NO_LIMIT = 1 << 16

#: The engine of each loop, by the token of that.
_engines: dict[object, Engine] = {}
#: Engines that nobody keeps, but have something in flight.
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
        self._pool = Pool(loop.waiter, loop.call_soon)
        self._stop_watching = loop.add_reader(
            self._pool.fileno(), self._pool.drain, self._has_committed
        )

    @classmethod
    def of_loop(cls, loop: EventLoop) -> Engine:
        """Return the engine of the loop that runs here, for somebody who keeps it.

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
        """Keep it until the owner is garbage, or what is returned is called."""
        self._keepers += 1
        return when_garbage(owner, self._release_in_any_thread)

    def queue(self, owner: object, readers: int | None, device: int) -> PoolQueue:
        """Make the place of one file.

        Args:
            owner: the hub of the file, or what stands for it.
            readers: how many of its jobs run at a time; None means as many as there are threads.
            device: the device that the file is on.
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
            self._release()  # the loop has ended, and nobody else uses it

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
        """Take what has landed if the loop has ended, so that nobody else will."""
        try:
            self._loop.call_from_thread(nothing)
        except RuntimeError:
            self._pool.drain()


def _give_up_ended() -> None:
    for engine in (*_engines.values(), *_leaving):
        engine.give_up()


def _give_up_with_garbage(phase: str, info: dict[str, int]) -> None:
    if phase == "start" and info["generation"] >= OLD_GENERATION:
        _give_up_ended()


gc.callbacks.append(_give_up_with_garbage)
