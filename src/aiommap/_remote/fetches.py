"""The fetches of one object that are under way, as the loop knows them."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from .._runtime.callbacks import nothing
from .._runtime.event_loop import Event
from .._runtime.workers import Workers
from .body import Body
from .counters import Counters
from .entry import Entry
from .fetching import Run, runs_of
from .source import RemoteSource

#: So many fetches a thread runs before it gives its token back, for whoever opens something.
FETCHES_A_TURN = 8

Ended = Callable[[list[Body] | None, BaseException | None], object]


class FetchQueue:
    """What the threads of a cache are to fetch: one that is done takes the next fetch by itself.

    With a trip to the loop and back between two fetches a thread would wait twice for its turn.
    The last fetch of a thread ends together with its job, when the thread is free for the next one.
    """

    __slots__ = ("_threads", "_waiting", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._waiting: deque[tuple[Callable[[], list[Body]], Ended]] = deque()
        self._threads = 0

    def start(self, fetch: Callable[[], list[Body]], ended: Ended) -> None:
        """Fetch in a thread; ``ended`` gets the result or the error. For the loop thread."""
        self._waiting.append((fetch, ended))
        self._employ()

    def _employ(self) -> None:
        """Have one thread more, if there may be one."""
        reads = self._workers.reads
        if self._threads < reads.total_tokens:
            self._threads += 1
            self._workers.start(reads, self._work, self._leave)

    def _work(self) -> Callable[[], object]:
        """Fetch what waits; return what is to be called on the loop for the last of it."""
        for left in reversed(range(FETCHES_A_TURN)):
            try:
                fetch, ended = self._waiting.popleft()
            except IndexError:  # others were faster
                break
            tell = partial(ended, *_outcome_of(fetch))
            if not (left and self._waiting):
                return tell
            if not self._workers.call_from_thread(tell):
                break  # the loop has ended
        return nothing

    def _leave(self, tell: Callable[[], object] | None, _error: BaseException | None) -> None:
        self._threads -= 1
        if self._waiting:
            self._employ()
        if tell is not None:
            tell()


def _outcome_of(fetch: Callable[[], list[Body]]) -> tuple[list[Body] | None, BaseException | None]:
    try:
        return fetch(), None
    except BaseException as error:
        return None, error


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

    __slots__ = ("__weakref__", "_counters", "_entry", "_queue", "_under_way", "_workers")

    def __init__(
        self, workers: Workers, queue: FetchQueue, entry: Entry, counters: Counters
    ) -> None:
        self._workers = workers
        self._queue = queue
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
        self._queue.start(partial(self._run, source, run), partial(self._end, fetch))
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
