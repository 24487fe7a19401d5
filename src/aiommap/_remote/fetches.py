"""The fetches of one object that are under way, as the loop knows them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial

from .._runtime.event_loop import Event
from .._runtime.workers import Workers
from .body import Body
from .counters import Counters
from .entry import Entry
from .fetching import Run, runs_of
from .source import RemoteSource


class Fetch:
    """One fetch; tasks wait for ``done``, and what they find here stays.

    Attributes:
        done: set when it has ended.
        bodies: what it brought, whether that was stored or not.
        error: why it failed, if it did.
    """

    __slots__ = ("bodies", "done", "error", "run")

    def __init__(self, run: Run, done: Event) -> None:
        self.run: Run = run
        self.done: Event = done
        self.bodies: list[Body] = []
        self.error: BaseException | None = None

    def end(self, bodies: list[Body], error: BaseException | None) -> None:
        """End it: wake who waits."""
        self.bodies, self.error = bodies, error
        self.done.set()

    async def wait(self) -> list[Body]:
        """Wait for the end; return what it brought, or raise what it met."""
        await self.done.wait()
        if self.error is not None:
            raise _again(self.error) from self.error
        return self.bodies


class Fetches:
    """Starts fetches in workers, one a block: whoever wants a block that is under way waits for it.

    A fetch belongs to nobody, and no cancellation ends it (R11). It keeps the files open.
    """

    __slots__ = ("__weakref__", "_counters", "_entry", "_under_way", "_workers")

    def __init__(self, workers: Workers, entry: Entry, counters: Counters) -> None:
        self._workers = workers
        self._entry = entry
        self._counters = counters
        self._under_way: dict[int, Fetch] = {}

    def begin(self, source: RemoteSource, runs: Iterable[Run]) -> list[Fetch]:
        """Have runs of blocks fetched, in as few requests as may be; return all to wait for."""
        found: dict[Fetch, None] = {}
        rest: set[int] = set()  # runs may overlap, in any order
        for run in runs:
            for block in range(*run):
                fetch = self._under_way.get(block)
                if fetch is None:
                    rest.add(block)
                elif fetch not in found:
                    found[fetch] = None
                    self._counters.add(coalesced=1)
        for request in self._entry.requests(runs_of(sorted(rest))):
            found[self._start(source, request)] = None
        return list(found)

    def _start(self, source: RemoteSource, run: Run) -> Fetch:
        fetch = Fetch(run, self._workers.event())
        self._entry.use()
        for block in range(*run):
            self._under_way[block] = fetch
        self._workers.start(
            self._workers.reads, partial(self._run, source, run), partial(self._end, fetch)
        )
        return fetch

    def _run(self, source: RemoteSource, run: Run) -> list[Body]:
        """Fetch; in a worker."""
        try:
            return self._entry.fetch(source, *run)
        finally:
            self._entry.release()

    def _end(self, fetch: Fetch, bodies: list[Body] | None, error: BaseException | None) -> None:
        for block in range(*fetch.run):
            del self._under_way[block]
        fetch.end(bodies or [], error)


def _again(error: BaseException) -> BaseException:
    """Make an error that one of several tasks may raise, each with a traceback of its own."""
    try:
        return copy.copy(error)
    except Exception:
        return RuntimeError(f"a fetch failed: {error}")
