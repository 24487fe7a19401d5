"""The fetches of one object that are under way: the loop's half."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from .._native import time_slice_wake
from .._runtime.callbacks import nothing
from .._runtime.event_loop import Waiter
from .._runtime.loops import call_later
from .._runtime.workers import Workers
from .body import Body
from .counters import Counters
from .entry import Entry
from .fetching import Run, runs_of
from .source import RemoteSource

#: How many fetches a thread runs before it returns its token to an ``open`` that waits for it; and
#: how many if nobody seems to, because the one that waits next has to get a chance.
FETCHES_A_TURN = 8
MOST_FETCHES_A_TURN = 32
#: How soon the loop looks again for fetches that have ended, while they do so at least this often.
LOOK_SECONDS = 0.001
DENSE_SECONDS = 3 * LOOK_SECONDS

Ended = Callable[[list[Body] | None, BaseException | None], object]


class FetchQueue:
    """The fetches that wait for a thread of the cache; a thread takes one after another by itself.

    If the loop handed out each fetch, a thread would wait twice between two of them: for the loop,
    and for the GIL. The last fetch of a thread is reported when the thread's job ends, because the
    thread is then free for the next job.

    To wake the loop takes four system calls of two threads, and after each of them the thread waits
    for the GIL. So the fetches that end before the loop has woken are reported together. And while
    they end one soon after another, and the threads need nothing of the loop because each finds
    another fetch to go on with, the loop looks for reports every millisecond, and nobody wakes it.
    Network cards and their drivers do the same.
    """

    __slots__ = ("_ended", "_looked", "_looked_for", "_threads", "_waiting", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._waiting: deque[tuple[Callable[[], list[Body]], Ended]] = deque()
        self._threads = 0
        #: Reports for the loop; and whether it will look for them, so that nobody has to wake it.
        self._ended: deque[Callable[[], object]] = deque()
        self._looked_for = False
        self._looked = 0.0

    def start(self, fetch: Callable[[], list[Body]], ended: Ended) -> None:
        """Fetch in a thread; ``ended`` gets the result or the error. For the loop thread."""
        self._waiting.append((fetch, ended))
        self._employ()

    def _employ(self) -> None:
        """Start another thread, unless all are running."""
        reads = self._workers.reads
        if self._threads < reads.total_tokens:
            self._workers.start(reads, self._work, self._leave)
            self._threads += 1  # not if that raised: the next fetch tries again, with what waits

    def _work(self) -> Callable[[], object]:
        """Run waiting fetches; return the call that reports the last of them, for the loop."""
        waiting, reads = self._waiting, self._workers.reads
        for left in reversed(range(MOST_FETCHES_A_TURN)):
            try:
                fetch, ended = waiting.popleft()
            except IndexError:  # other threads took them
                break
            tell = partial(ended, *_outcome_of(fetch))
            others_wait = left <= MOST_FETCHES_A_TURN - FETCHES_A_TURN and reads.is_awaited
            if others_wait or not (left and waiting):
                return tell
            if not self._report(tell):
                break  # the loop has ended
        return nothing

    def _report(self, tell: Callable[[], object]) -> bool:
        """Have the loop call a function soon; False if the loop has ended."""
        self._ended.append(tell)
        if self._looked_for:  # it was there before the loop begins to look
            return not self._workers.ended
        self._looked_for = True
        return self._workers.call_from_thread(self._take_reports)

    def _take_reports(self) -> None:
        """Make the reports that there are; then look again soon, or have the threads wake us."""
        before, self._looked = self._looked, time.monotonic()
        dense = bool(self._ended) and self._looked - before < DENSE_SECONDS
        self._looked_for = dense and len(self._waiting) >= self._threads
        if self._looked_for:
            call_later(LOOK_SECONDS, self._take_reports)
        self._tell()

    def _tell(self) -> None:
        for _ in range(len(self._ended)):
            self._ended.popleft()()

    def _leave(self, tell: Callable[[], object] | None, _error: BaseException | None) -> None:
        self._threads -= 1
        if self._waiting:
            self._employ()
        self._tell()  # or these would wait for the next look, though this thread has woken the loop
        if tell is not None:
            tell()


def _outcome_of(fetch: Callable[[], list[Body]]) -> tuple[list[Body] | None, BaseException | None]:
    try:
        return fetch(), None
    except BaseException as error:
        return None, error


class Fetch:
    """One fetch, for any number of tasks that wait for it.

    Attributes:
        run: the blocks [first, end) that it fetches.
        ended: whether it has ended.
        bodies: what it brought; if nobody wants it, only what could not be stored.
        error: why it failed; None if it did not.
        wanted: whether somebody waits for it.
    """

    __slots__ = ("_waiter", "_waiters", "bodies", "ended", "error", "run", "wanted")

    def __init__(
        self, run: Run, waiter: Callable[[], Waiter[None]], *, wanted: bool = False
    ) -> None:
        self.run: Run = run
        #: Makes waiters. Nearly always one task waits, for which an event would take longer.
        self._waiter = waiter
        self._waiters: list[Waiter[None]] = []
        self.ended: bool = False
        self.wanted: bool = wanted
        self.bodies: list[Body] = []
        self.error: BaseException | None = None

    def end(self, bodies: list[Body], error: BaseException | None) -> None:
        """Set the outcome, and wake all waiters."""
        self.bodies = bodies if self.wanted else [body for body in bodies if not body.kept]
        self.error = error
        self.ended = True
        if self._waiters:
            time_slice_wake(len(self._waiters))  # they have waited: they need not give way again
        for waiter in self._waiters:
            if not waiter.done():  # as one is that was cancelled in this turn of the loop
                waiter.set_result(None)

    async def wait(self) -> list[Body]:
        """Wait for the end; return the bodies, or raise a copy of the error."""
        if not self.ended:
            waiter = self._waiter()
            self._waiters.append(waiter)
            try:
                await waiter
            except BaseException:
                self._waiters.remove(waiter)
                raise
        if self.error is not None:
            raise _again(self.error) from self.error
        return self.bodies


class Fetches:
    """Starts fetches in workers, one for a block: all tasks that want the block wait for that one.

    A fetch belongs to no task, and no cancellation ends it (R11). It keeps the files open.
    """

    __slots__ = (
        "__weakref__",
        "_begun",
        "_counters",
        "_entry",
        "_queue",
        "_under_way",
        "_workers",
    )

    def __init__(
        self, workers: Workers, queue: FetchQueue, entry: Entry, counters: Counters
    ) -> None:
        self._workers = workers
        self._queue = queue
        self._entry = entry
        self._counters = counters
        self._under_way: dict[int, Fetch] = {}
        self._begun: Fetch | None = None

    def begin(
        self, source: RemoteSource, runs: Sequence[Run], *, wanted: bool = True
    ) -> list[Fetch]:
        """Begin to fetch runs of blocks; return all fetches to wait for.

        Blocks that are not under way yet are fetched in as few requests as possible.

        Args:
            wanted: whether somebody waits for the bodies, also for those that can be stored.
        """
        if len(runs) == 1 and runs[0][1] - runs[0][0] == 1 and runs[0][0] not in self._under_way:
            return [self._start(source, runs[0], wanted)]  # as nearly always
        found: dict[Fetch, None] = {}
        rest: set[int] = set()  # a set, because runs may overlap
        for run in runs:
            for block in range(*run):
                fetch = self._under_way.get(block)
                if fetch is None:
                    rest.add(block)
                elif fetch not in found:
                    found[fetch] = None
                    fetch.wanted = fetch.wanted or wanted
                    self._counters.add(coalesced=1)
        for request in self._entry.requests(runs_of(sorted(rest))):
            found[self._start(source, request, wanted)] = None
        return list(found)

    def adopt(self, fetch: Fetch) -> None:
        """Have whoever wants its blocks wait for a fetch that an opening began."""
        self._begun = fetch
        if fetch.ended:
            return
        for block in range(*fetch.run):
            self._under_way.setdefault(block, fetch)

    def take_begun(self) -> Fetch | None:
        """Return the fetch that the opening of one more snapshot began; once."""
        begun, self._begun = self._begun, None
        return begun

    def part_with(self, fetch: Fetch) -> None:
        """Have nobody who comes from now on wait for a fetch."""
        for block in range(*fetch.run):
            if self._under_way.get(block) is fetch:
                del self._under_way[block]

    def _start(self, source: RemoteSource, run: Run, wanted: bool) -> Fetch:
        fetch = Fetch(run, self._workers.waiter, wanted=wanted)
        self._entry.use()
        for block in range(*run):
            self._under_way[block] = fetch
        self._queue.start(partial(self._run, source, run), partial(self._end, fetch))
        return fetch

    def _run(self, source: RemoteSource, run: Run) -> list[Body]:
        """Fetch a run in a worker, and end the use that ``_start`` began."""
        try:
            return self._entry.fetch(source, *run)
        finally:
            self._entry.release()

    def _end(self, fetch: Fetch, bodies: list[Body] | None, error: BaseException | None) -> None:
        self.part_with(fetch)
        fetch.end(bodies or [], error)


def _again(error: BaseException) -> BaseException:
    """Copy an error, so that each of several tasks raises one with a traceback of its own."""
    try:
        return copy.copy(error)
    except Exception:
        return RuntimeError(f"a fetch failed: {error}")
