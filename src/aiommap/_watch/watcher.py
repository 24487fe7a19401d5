"""The watcher of a hub: who wants to know of which path, and what is told to whom.

The loop thread's half; the half that looks is ``_watch/scanner``. There are at most two scanners:
one for paths on local file systems, which asks the kernel, and one for paths on network file
systems, where a look may hang and must not keep the others waiting.

Invariants.
  1  A scanner runs while there is a path for it, and ends with the last one, with the hub, or
      with the event loop; the hub's end waits for it.
  2  A subscriber that began gets every change that is found from then on, and first what its own
      ``since`` calls a change already.
  3  A forked child never touches the parent's scanners (I10).
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial

import anyio

from .._core.file_state import FileState
from .._errors import ForkedError
from .._runtime.event_loop import Event
from .._runtime.threads import Forks, run_in_thread
from .._runtime.workers import Workers
from .attribution import OwnChanges
from .changes import Change, classify
from .path_resolution import check_watchable, is_remote
from .scanner import POLL_SECONDS, Found, Scanner
from .stat_differ import Entry
from .subscriptions import DEFAULT_BUFFER, Changes, Since, Subscriber, from_now

#: So many subscribers are told in one turn of the loop.
TOLD_IN_A_TURN = 64


class _Watched:
    """A path that somebody wants to know of."""

    __slots__ = ("entry", "live", "scanner", "waiting")

    def __init__(self, path: str, scanner: _Running) -> None:
        self.entry = Entry(path)
        self.scanner = scanner
        self.waiting: set[Subscriber] = set()
        self.live: set[Subscriber] = set()


class _Running:
    """A scanner with its thread."""

    __slots__ = ("abandoned", "ended", "paths", "remote", "scanner")

    def __init__(self, scanner: Scanner, ended: Event, *, remote: bool) -> None:
        self.scanner = scanner
        #: Nobody waits for the end of one that may hang.
        self.remote = remote
        self.ended = ended
        self.paths = 0
        #: Ends it if the watcher is garbage before it was closed.
        self.abandoned: weakref.finalize[..., Watcher] | None = None


class Watcher:
    """Watches any number of paths for any number of subscribers; for one event loop.

    Args:
        workers: makes, or checks, the workers of the running loop.
        own: what this hub's files do.
        seen: told the state of a path whenever it is found to have changed, or was asked for.
    """

    def __init__(
        self,
        workers: Callable[[], Workers],
        own: OwnChanges,
        seen: Callable[[str, FileState | None], None],
    ) -> None:
        self._workers = workers
        self._own = own
        self._seen = seen
        self._bound: Workers | None = None
        self._forks = Forks.count
        self._closed = False
        self._paths: dict[str, _Watched] = {}
        self._running: dict[bool, _Running] = {}
        self._ending: set[_Running] = set()
        #: Subscribers whose path is being looked up.
        self._beginning: set[Subscriber] = set()
        #: What was found and is still to be told, and to whom; in order, a few in each turn.
        self._telling: deque[Found] = deque()
        #: Who is still to be told of the first of them.
        self._told_next: list[Subscriber] | None = None

    @property
    def workers(self) -> Workers:
        """The workers of the loop that watching began in."""
        if self._bound is None:
            self._bound = self._workers()
        return self._bound

    def subscribe(
        self,
        path: str,
        *,
        buffer: int = DEFAULT_BUFFER,
        poll_interval: float | None = None,
        since: Since = from_now,
        ended: Callable[[Changes], object] | None = None,
    ) -> Changes:
        """Make a subscription to a path, which need not exist; it begins when it is entered.

        Args:
            path: absolute.
            buffer: how many changes may wait to be fetched; beyond that they are merged.
            poll_interval: seconds between looks for what the kernel does not tell.
            since: given the state found when watching began, returns the one to compare it with:
                a difference is the first change.
            ended: told when the subscription was ended by whoever has it.
        """
        subscriber = Subscriber(path, buffer=buffer, poll_interval=poll_interval, since=since)
        return Changes(self, subscriber, ended)

    def begin(self, subscriber: Subscriber) -> None:
        """Have a subscriber told of changes, from a moment on that it is told, too."""
        if self._closed:
            raise anyio.ClosedResourceError("the hub is closed: watch in a new one")
        workers = self.workers
        workers.check_loop()
        self._beginning.add(subscriber)
        watched = self._paths.get(subscriber.path)
        if watched is not None:
            self._add(subscriber, watched)
            return
        ended = partial(self._looked_up, subscriber)
        workers.start(workers.control, partial(_look_up, subscriber.path), ended)

    def check_process(self, path: str) -> None:
        """Raise in a forked child of the process that watches (watcher.3)."""
        if self._bound is not None and self._bound.forked:
            raise ForkedError(path)

    def forget(self, subscriber: Subscriber) -> None:
        """Tell a subscriber nothing more."""
        self._beginning.discard(subscriber)
        watched = self._paths.get(subscriber.path)
        if watched is None:
            return
        watched.live.discard(subscriber)
        watched.waiting.discard(subscriber)
        if watched.live or watched.waiting or self._forks != Forks.count:
            return
        del self._paths[subscriber.path]
        running = watched.scanner
        running.scanner.remove(watched.entry)
        running.paths -= 1
        if not running.paths:
            self._end(running)

    async def aclose(self) -> None:
        """End every subscription, and wait until no thread of ours looks any more."""
        self._closed = True
        if self._telling:
            self._tell(math.inf)
        for subscriber in self._beginning:
            subscriber.end()
        for watched in self._paths.values():
            for subscriber in (*watched.live, *watched.waiting):
                subscriber.end()
        self._paths.clear()
        if self._forks != Forks.count:
            return
        for running in list(self._running.values()):
            self._end(running)
        with anyio.CancelScope(shield=True):
            for running in list(self._ending):
                await running.ended.wait()

    def _looked_up(
        self, subscriber: Subscriber, remote: bool | None, error: BaseException | None
    ) -> None:
        if subscriber.ended or self._closed:
            subscriber.end()
            return
        try:
            if error is not None:
                raise error
            watched = self._watched(subscriber.path, remote=bool(remote))
        except Exception as failure:  # no thread can be started, for one; this is a callback
            self._beginning.discard(subscriber)
            subscriber.start(failure)
        else:
            self._add(subscriber, watched)

    def _watched(self, path: str, *, remote: bool) -> _Watched:
        watched = self._paths.get(path)
        if watched is None:
            running = self._scanner(remote=remote)
            running.paths += 1
            watched = self._paths[path] = _Watched(path, running)
        return watched

    def _add(self, subscriber: Subscriber, watched: _Watched) -> None:
        self._beginning.discard(subscriber)
        watched.waiting.add(subscriber)
        watched.scanner.scanner.add(watched.entry, subscriber.poll_interval, subscriber)

    def _scanner(self, *, remote: bool) -> _Running:
        running = self._running.get(remote)
        if running is not None:
            return running
        workers, ended = self.workers, self.workers.event()
        asked = _polling_asked_for()
        scanner = Scanner(
            self._own,
            _deliverer(self, workers),
            notify=not remote and asked is None,
            poll_seconds=asked or POLL_SECONDS,
        )
        running = _Running(scanner, ended, remote=remote)

        ending = self._ending

        def told() -> None:
            ending.discard(running)
            ended.set()

        def run() -> None:
            scanner.run()
            workers.call_from_thread(told)

        run_in_thread(run)
        self._running[remote] = running
        running.abandoned = weakref.finalize(self, scanner.end)
        running.abandoned.atexit = False
        return running

    def _end(self, running: _Running) -> None:
        del self._running[running.remote]
        if not running.remote:
            self._ending.add(running)
        if running.abandoned is not None:
            running.abandoned.detach()
        running.scanner.end()

    def receive(self, found: list[Found]) -> None:
        """Take what a scanner found; on the loop."""
        for item in found:
            watched = self._paths.get(item.entry.path)
            if watched is None or watched.entry is not item.entry:
                continue
            self._seen(item.entry.path, item.state)
            idle = not self._telling
            self._telling.append(item)
            if idle:
                self._tell()

    def _tell(self, most: float = TOLD_IN_A_TURN) -> None:
        """Tell what was found; the rest in the next turn, as each of many wakes a task."""
        while self._telling:
            item = self._telling[0]
            if self._told_next is None:  # not earlier: who began before this was found is in it
                self._told_next = self._who_is_told(item)
            while self._told_next and most > 0:
                assert item.change is not None
                self._told_next.pop().push(item.change)
                most -= 1
            if self._told_next:
                self.workers.call_soon(self._tell)
                return
            self._told_next = None
            self._telling.popleft()
            self._begun(item)

    def _who_is_told(self, item: Found) -> list[Subscriber]:
        watched = self._paths.get(item.entry.path)
        if item.change is None or watched is None or watched.entry is not item.entry:
            return []
        return [*watched.live]

    def _begun(self, item: Found) -> None:
        """Begin to tell the subscriber that asked for a state, if that is what was found."""
        watched, token = self._paths.get(item.entry.path), item.token
        if item.change is not None or watched is None or watched.entry is not item.entry:
            return
        if isinstance(token, Subscriber) and token in watched.waiting:
            watched.waiting.discard(token)
            watched.live.add(token)
            self._start(token, item.state)

    def _start(self, subscriber: Subscriber, state: FileState | None) -> None:
        old = subscriber.since(state)
        kind = classify(old, state)
        if kind is not None:
            now = time.time_ns()
            subscriber.push(Change(kind, subscriber.path, old, state, 0, "start", now))
        subscriber.start()


def _look_up(path: str) -> bool:
    """Tell whether a path is one for the scanner of network file systems. Worker threads only."""
    check_watchable(path)
    return is_remote(path)


def _deliverer(watcher: Watcher, workers: Workers) -> Callable[[list[Found]], bool]:
    """Make what hands findings over to the loop, without keeping the watcher alive."""
    reference = weakref.ref(watcher)

    def receive(found: list[Found]) -> None:
        alive = reference()
        if alive is not None:
            alive.receive(found)

    def deliver(found: list[Found]) -> bool:
        return reference() is not None and workers.call_from_thread(partial(receive, found))

    return deliver


def _polling_asked_for() -> float | None:
    """Return the seconds between polls if the environment asks for polling, as watchfiles does."""
    value = os.environ.get("WATCHFILES_FORCE_POLLING", "")
    if not value or value.lower() in ("false", "disable", "disabled"):
        return None
    delay = os.environ.get("WATCHFILES_POLL_DELAY_MS", "")
    return max(int(delay), 1) / 1000 if delay.isdecimal() else 0.3
