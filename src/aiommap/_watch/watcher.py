"""The watcher of a hub: the subscriptions to each path, and the changes that each gets.

This is the half on the loop thread. The other half, ``_watch/scanner``, finds the changes. A hub
has at most two scanners: one for paths on local file systems, which asks the kernel, and one for
paths on network file systems, where a stat may hang and must not delay the others.

Invariants.
  1  A scanner runs while it has a path. It ends with the last path, with the hub or with the event
     loop. Closing the hub waits for the end of the local one; that of the other may hang.
  2  A subscription that has begun gets every change found from then on. If its own ``since`` makes
     the first state a change, it gets that change first.
  3  A forked child never touches the parent's scanners (I10).
"""

from __future__ import annotations

import math
import os
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial

import anyio

from .._core.file_state import FileState
from .._errors import ForkedError
from .._runtime.callbacks import when_garbage
from .._runtime.event_loop import Event
from .._runtime.threads import Forks, run_in_thread
from .._runtime.workers import Workers
from .attribution import OwnChanges
from .changes import Change
from .path_resolution import check_watchable, is_remote
from .scanner import POLL_SECONDS, Finding, Scanner
from .subscriptions import DEFAULT_BUFFER, Changes, Since, from_now
from .watched_path import WatchedPath

#: How many changes one turn of the loop pushes at most, because each wakes a task.
MAX_PUSHES = 64


class _ScannerThread:
    """A scanner with its thread, and how many paths it has."""

    __slots__ = ("_abandoned", "_paths", "ended", "remote", "scanner")

    def __init__(self, scanner: Scanner, ended: Event, *, remote: bool) -> None:
        self.scanner = scanner
        #: A thread for network file systems may hang, so nobody waits for its end.
        self.remote = remote
        self.ended = ended
        self._paths = 0
        self._abandoned: weakref.finalize[..., Watcher] | None = None

    def end_with(self, watcher: Watcher) -> None:
        """End the thread if the watcher becomes garbage before it was closed."""
        self._abandoned = when_garbage(watcher, self.scanner.end)

    def add_path(self) -> None:
        """Count one more path."""
        self._paths += 1

    def remove(self, watched: WatchedPath) -> bool:
        """Stop watching a path; true if it was the last one."""
        self.scanner.remove(watched)
        self._paths -= 1
        return not self._paths

    def end(self) -> None:
        """End the thread soon."""
        if self._abandoned is not None:
            self._abandoned.detach()
        self.scanner.end()


class _SubscribedPath:
    """A path, and its subscriptions."""

    __slots__ = ("live", "thread", "waiting", "watched")

    def __init__(self, path: str, thread: _ScannerThread) -> None:
        self.watched = WatchedPath(path)
        self.thread = thread
        thread.add_path()
        #: Subscriptions that wait for the first state.
        self.waiting: set[Changes] = set()
        #: Subscriptions that get every change.
        self.live: set[Changes] = set()


class Watcher:
    """Watches any number of paths for any number of subscribers; for one event loop.

    Args:
        workers: returns the workers of the running loop, made on the first call.
        own: knows what this hub's files did.
        on_state: called with the state of a path whenever it has changed, or was asked for.
    """

    def __init__(
        self,
        workers: Callable[[], Workers],
        own: OwnChanges,
        on_state: Callable[[str, FileState | None], None],
    ) -> None:
        self._workers = workers
        self._own = own
        self._on_state = on_state
        self._bound: Workers | None = None
        self._forks = Forks.count
        self._closed = False
        self._paths: dict[str, _SubscribedPath] = {}
        #: The scanners, by whether they are for network file systems.
        self._threads: dict[bool, _ScannerThread] = {}
        self._ending: set[_ScannerThread] = set()
        #: Subscriptions that have not begun yet: a worker looks up their path.
        self._beginning: set[Changes] = set()
        #: Findings in their order; each turn of the loop distributes a few.
        self._findings: deque[Finding] = deque()
        #: The subscriptions that have not got the first of them yet.
        self._receivers: list[Changes] | None = None

    @property
    def workers(self) -> Workers:
        """The workers of the loop in which watching began."""
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
        on_change: Callable[[Change], object] | None = None,
        on_end: Callable[[Changes], object] | None = None,
    ) -> Changes:
        """Make a subscription to a path, which need not exist; it begins when it is entered.

        Args:
            path: absolute.
            buffer: how many changes may wait to be fetched; beyond that they are merged.
            poll_interval: seconds between polls for changes that raise no event.
            since: gets the state found when watching began, and returns the state to compare it
                with; if they differ, that is the first change.
            on_change: called on the loop with each change, in place of the buffer; it must not
                raise.
            on_end: called when the subscriber ends the subscription.
        """
        return Changes(
            self,
            path,
            buffer=buffer,
            poll_interval=poll_interval,
            since=since,
            on_change=on_change,
            on_end=on_end,
        )

    def begin(self, changes: Changes, path: str, poll_interval: float | None) -> None:
        """Begin a subscription; its ``_start`` or ``_fail`` is called later."""
        if self._closed:
            raise anyio.ClosedResourceError("the hub is closed: watch in a new one")
        workers = self.workers
        workers.check_loop()
        self._beginning.add(changes)
        subscribed = self._paths.get(path)
        if subscribed is not None:
            self._add(changes, poll_interval, subscribed)
            return
        ended = partial(self._looked_up, changes, path, poll_interval)
        workers.start(workers.control, partial(_look_up, path), ended)

    def check_process(self, path: str) -> None:
        """Raise in a forked child of the process that watches (watcher.3)."""
        if self._bound is not None and self._bound.forked:
            raise ForkedError(path)

    def forget(self, changes: Changes, path: str) -> None:
        """Stop pushing changes to a subscription."""
        self._beginning.discard(changes)
        subscribed = self._paths.get(path)
        if subscribed is None:
            return
        subscribed.live.discard(changes)
        subscribed.waiting.discard(changes)
        if subscribed.live or subscribed.waiting or self._forks != Forks.count:
            return
        del self._paths[path]
        if subscribed.thread.remove(subscribed.watched):
            self._end(subscribed.thread)

    async def aclose(self) -> None:
        """End every subscription, and wait until the scanner's thread has ended."""
        self._closed = True
        if self._findings:
            self._distribute(math.inf)
        ending = [*self._beginning]
        for subscribed in self._paths.values():
            ending += (*subscribed.live, *subscribed.waiting)
        for changes in ending:
            changes._finish()  # noqa: SLF001  this is its source
        self._paths.clear()
        if self._forks != Forks.count:
            return
        for thread in list(self._threads.values()):
            self._end(thread)
        with anyio.CancelScope(shield=True):
            for thread in list(self._ending):
                await thread.ended.wait()

    def _looked_up(
        self,
        changes: Changes,
        path: str,
        poll_interval: float | None,
        remote: bool | None,
        error: BaseException | None,
    ) -> None:
        if changes.ended or self._closed:
            changes._finish()  # noqa: SLF001  this is its source
            return
        try:
            if error is not None:
                raise error
            subscribed = self._subscribed(path, remote=bool(remote))
        except Exception as failure:  # such as no thread to start; a callback must not raise
            self._beginning.discard(changes)
            changes._fail(failure)  # noqa: SLF001  this is its source
        else:
            self._add(changes, poll_interval, subscribed)

    def _subscribed(self, path: str, *, remote: bool) -> _SubscribedPath:
        subscribed = self._paths.get(path)
        if subscribed is None:
            subscribed = self._paths[path] = _SubscribedPath(path, self._thread(remote=remote))
        return subscribed

    def _add(
        self, changes: Changes, poll_interval: float | None, subscribed: _SubscribedPath
    ) -> None:
        self._beginning.discard(changes)
        subscribed.waiting.add(changes)
        # A weak reference: the thread must not keep the subscription, which refers to the watcher.
        subscribed.thread.scanner.add(subscribed.watched, poll_interval, weakref.ref(changes))

    def _thread(self, *, remote: bool) -> _ScannerThread:
        """Return the thread for local or for remote paths; start it if it does not run."""
        thread = self._threads.get(remote)
        if thread is not None:
            return thread
        workers, ended = self.workers, self.workers.event()
        poll_seconds = _requested_poll_seconds()
        scanner = Scanner(
            self._own,
            _deliverer(self, workers),
            notify=not remote and poll_seconds is None,
            poll_seconds=poll_seconds or POLL_SECONDS,
        )
        thread = _ScannerThread(scanner, ended, remote=remote)
        ending = self._ending
        loop = weakref.ref(workers)

        def finish() -> None:
            ending.discard(thread)
            ended.set()

        def run() -> None:
            scanner.run()
            if (alive := loop()) is not None:
                alive.call_from_thread(finish)

        run_in_thread(run)
        self._threads[remote] = thread
        thread.end_with(self)
        return thread

    def _end(self, thread: _ScannerThread) -> None:
        del self._threads[thread.remote]
        if not thread.remote:
            self._ending.add(thread)
        thread.end()

    def receive(self, findings: list[Finding]) -> None:
        """Take what a scanner found; on the loop."""
        for finding in findings:
            if self._subscribed_to(finding) is None:
                continue
            self._on_state(finding.watched.path, finding.state)
            idle = not self._findings
            self._findings.append(finding)
            if idle:
                self._distribute()

    def _distribute(self, budget: float = MAX_PUSHES) -> None:
        """Push findings to their subscriptions; those beyond the budget in the next turn."""
        while self._findings:
            finding = self._findings[0]
            if self._receivers is None:  # taken now, so that a subscription begun by then is in it
                self._receivers = self._receivers_of(finding)
            while self._receivers and budget > 0:
                assert finding.change is not None
                self._receivers.pop()._push(finding.change)  # noqa: SLF001  this is its source
                budget -= 1
            if self._receivers:
                self.workers.call_soon(self._distribute)
                return
            self._receivers = None
            self._findings.popleft()
            self._start_waiting(finding)

    def _subscribed_to(self, finding: Finding) -> _SubscribedPath | None:
        """Return the subscribed path of a finding; None if its subscriptions have ended."""
        subscribed = self._paths.get(finding.watched.path)
        current = subscribed is not None and subscribed.watched is finding.watched
        return subscribed if current else None

    def _receivers_of(self, finding: Finding) -> list[Changes]:
        subscribed = self._subscribed_to(finding)
        return [] if finding.change is None or subscribed is None else [*subscribed.live]

    def _start_waiting(self, finding: Finding) -> None:
        """Start the subscription that asked for a state, if the finding is that state."""
        subscribed = self._subscribed_to(finding)
        if finding.asker is None or subscribed is None:
            return
        changes = finding.asker()
        if changes is not None and changes in subscribed.waiting:
            subscribed.waiting.discard(changes)
            subscribed.live.add(changes)
            changes._start(finding.state)  # noqa: SLF001  this is its source


def _look_up(path: str) -> bool:
    """Tell whether a path is for the scanner of network file systems. Worker threads only."""
    check_watchable(path)
    return is_remote(path)


def _deliverer(watcher: Watcher, workers: Workers) -> Callable[[list[Finding]], bool]:
    """Make the function that sends findings to the loop.

    It keeps neither the watcher alive nor the loop. A loop that was closed keeps the calls that it
    has not made, and so may refer to the watcher.
    """
    reference, loop = weakref.ref(watcher), weakref.ref(workers)

    def receive(findings: list[Finding]) -> None:
        alive = reference()
        if alive is not None:
            alive.receive(findings)

    def deliver(findings: list[Finding]) -> bool:
        alive = loop()
        if reference() is None or alive is None:
            return False
        return alive.call_from_thread(partial(receive, findings))

    return deliver


def _requested_poll_seconds() -> float | None:
    """Return the seconds between polls if the environment asks for polling, as watchfiles does."""
    value = os.environ.get("WATCHFILES_FORCE_POLLING", "")
    if not value or value.lower() in ("false", "disable", "disabled"):
        return None
    delay = os.environ.get("WATCHFILES_POLL_DELAY_MS", "")
    return max(int(delay), 1) / 1000 if delay.isdecimal() else 0.3
