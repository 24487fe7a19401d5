"""The thread that finds changes: events say which paths to compare, and stat says what happened.

Theory of operation. One thread serves any number of watched paths. It waits in watchfiles' native
notifier, which watches the directories on the way to all of them. An event is only a reason to
compare a path with its file: the kernel's queue merges and overflows, and the notifier drops events
that it cannot label. Between events the thread polls all paths and directories in turn, slowly
enough to cost a fraction of a per cent of a core. That finds the changes that raise no event:
mapped stores of other processes, renamed ancestors, mounts, lost events.

A notifier that is told to stop discards its pending events. So this thread stops it only at the
end, and raises an exception through it when other directories are to be watched. It does all other
work in the notifier's ``is_set`` callback, which the notifier calls before each check of its
pending events. The notifier returns when two checks in a row found the same events. So the callback
sleeps before every other check, and the notifier itself never sleeps. An event is then found after
half a step on average; with a sleep before each check that would take one and a half.

Invariants.
  1  The directories of a path are watched before its first state is taken, so no later change is
     missed.
  2  ``WatchedPath`` objects belong to this thread alone. The loop thread sends commands, and
     receives findings.
  3  After any failure the thread logs it and compares everything.
"""

from __future__ import annotations

import atexit
import heapq
import os
import queue
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeAlias

from .._logs import WATCHING
from .attribution import OwnChanges
from .changes import Change
from .notifier import DirectoryWatches
from .stat_differ import StatDiffer
from .subscriptions import Changes
from .watched_path import WatchedPath

#: How often the thread reads events, and so the longest that an event waits.
STEP_SECONDS = 0.014
#: How often each path is polled, if there are few paths.
POLL_SECONDS = 0.25
#: Polls take at most this share of one core.
POLL_SHARE = 0.0015
#: The first estimate of what one poll costs; the thread measures it.
POLL_COST_SECONDS = 5e-6
#: The thread polls, or keeps findings, at most this many at a time.
MAX_BATCH = 256
#: After this many stats, about a millisecond, the thread gives up the interpreter for this long. A
#: stat gives it up only for a moment, which is too short for another thread to wake in.
YIELD_EVERY = 32
YIELD_SECONDS = 5e-5
TICK_SECONDS = 0.1
#: After a poll found a difference the thread waits this long for the event, which says more. It
#: waits as long again after each further change, but no longer than MAX_DELAY_SECONDS in all.
POLL_DELAY_SECONDS = 3 * STEP_SECONDS
MAX_DELAY_SECONDS = 0.5
#: This many names at once suggest that the kernel's queue overflowed; the notifier hides that.
LARGE_BATCH = 2000
#: How often the thread checks that its watcher still exists.
ALIVE_SECONDS = 10.0
#: A thread that was held up for this long may have missed an overflow as well.
LATE_SECONDS = 1.0
#: How long the interpreter waits, when it ends, for a thread that may hang.
END_SECONDS = 1.0

#: Scanners whose thread runs.
_running: set[Scanner] = set()
os.register_at_fork(after_in_child=_running.clear)


@atexit.register
def _end_all() -> None:
    """End all threads before the interpreter ends.

    The interpreter ends a daemon thread by unwinding its stack. The notifier's native frames do not
    survive that: the process would abort.
    """
    for scanner in tuple(_running):
        scanner.end_now()


#: The subscription that asked for a state; weak, as the thread must not keep it.
Asker: TypeAlias = "weakref.ReferenceType[Changes]"


class _RebuildDueError(Exception):
    """Other directories are to be watched. Raised through the notifier, which keeps its events."""


class Finding:
    """What the thread sends to the loop: a change, or a state that was asked for."""

    __slots__ = ("asker", "change", "state", "watched")

    def __init__(
        self, watched: WatchedPath, change: Change | None, asker: Asker | None = None
    ) -> None:
        self.watched = watched
        self.change = change
        self.asker = asker
        self.state = watched.state


#: Takes findings from the scanner's thread; returns False when the watcher is gone.
Deliver = Callable[[list[Finding]], bool]


class Scanner:
    """Finds changes of paths in a thread of its own, until ``end`` is called.

    Args:
        own: says what this hub's files did.
        deliver: takes findings; when it returns False, the thread ends.
        notify: whether to ask the kernel for events. False for network file systems: the kernel
            does not see their changes, and a stat of them may hang.
        poll_seconds: how often each path is polled, if there are few paths.
    """

    def __init__(
        self,
        own: OwnChanges,
        deliver: Deliver,
        *,
        notify: bool,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._deliver = deliver
        self._poll_period = poll_seconds
        self._watches = DirectoryWatches(notify=notify)
        self._differ = StatDiffer(
            own,
            lambda watched, change: self._report(Finding(watched, change)),
            self._watches.mark_unresolved,
        )
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._findings: list[Finding] = []
        self._paths: set[WatchedPath] = set()
        #: Paths whose state is to be reported once they are watched, and the asker of each request.
        self._requests: list[tuple[WatchedPath, Asker]] = []
        #: Paths and directories in the order in which they are polled.
        self._poll_ring: deque[WatchedPath | str] = deque()
        #: Paths with an interval of their own, by the time of their next poll.
        self._scheduled: list[tuple[float, int, WatchedPath]] = []
        #: Suspect paths: when to compare each, in that order, and when a poll found the difference.
        self._suspects: deque[tuple[float, WatchedPath, float]] = deque()
        #: How many polls the thread may make now; it grows with time.
        self._poll_credit = 0.0
        self._compared = 0
        #: Seconds of this thread that one poll takes, on average.
        self._poll_cost = POLL_COST_SECONDS
        self._ticked_at = self._tick_at = self._alive_at = time.monotonic()
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_over = False
        self._warned = False
        #: Whether the callback slept before the notifier's last check.
        self._has_slept = False

    # Any thread.

    def add(self, watched: WatchedPath, interval: float | None, asker: Asker) -> None:
        """Watch a path, and report its state with the asker once it is watched."""
        self._commands.put(lambda: self._add(watched, interval, asker))

    def remove(self, watched: WatchedPath) -> None:
        """Stop watching a path."""
        self._commands.put(lambda: self._remove(watched))

    def end(self) -> None:
        """End the thread soon."""
        self._is_over = True
        self._commands.put(lambda: None)

    def end_now(self) -> None:
        """End the thread and wait for its end, but only for a second: it may hang."""
        self.end()
        with suppress(queue.Empty):
            self._ended.get(timeout=END_SECONDS)

    # The scanner's thread only, from here on.

    def run(self) -> None:
        """Find changes until the end."""
        _running.add(self)
        while not self._is_over:
            try:
                self._run_once()
            except BaseException:  # scanner.3; a panic of the notifier is no Exception
                WATCHING.exception("watching files met an error and begins afresh")
                self._watches.close()
                time.sleep(TICK_SECONDS)
        self._watches.close()
        _running.discard(self)
        self._ended.put(None)

    def is_set(self) -> bool:
        """Sleep, and do the work that is due; tell whether the notifier has to stop.

        The notifier calls this twice a step, so in most calls no work is due.
        """
        self._has_slept = not self._has_slept
        if not self._has_slept:
            return False
        try:
            command = self._commands.get(timeout=STEP_SECONDS)
        except queue.Empty:
            if not self._findings and time.monotonic() < self._tick_at:
                return self._must_stop()
        else:
            command()
            self._run_commands()
        self._step()
        return self._must_stop()

    def _must_stop(self) -> bool:
        if self._watches.incomplete and not self._is_over:
            raise _RebuildDueError
        return self._is_over

    def _step(self) -> None:
        if not self._commands.empty():
            self._run_commands()
        if time.monotonic() >= self._tick_at:
            self._tick()
        self._watches.resolve_pending()
        self._send()

    def _run_once(self) -> None:
        self._run_commands()
        if self._watches.incomplete:
            self._rebuild_watches()
        notifier = self._watches.notifier
        if notifier is None:
            self._wait()
        else:
            try:
                self._has_slept = False
                labels = notifier.watch(0, 0, 0, self)
            except _RebuildDueError:
                return
            except RuntimeError as error:
                self._restart_notifier(error)
                return
            if not isinstance(labels, str):
                self._handle(labels)
        self._step()

    def _restart_notifier(self, error: RuntimeError) -> None:
        """Close a notifier that failed, as it does for a name that is not text."""
        if not self._warned:
            self._warned = True
            WATCHING.warning("what tells of changed files failed, and begins afresh: %s", error)
        self._watches.close()
        time.sleep(TICK_SECONDS)

    def _wait(self) -> None:
        """Wait for a command, or until a poll is due."""
        seconds = self._tick_at - time.monotonic() if self._paths else None
        try:
            command = self._commands.get(timeout=seconds and max(seconds, 0.001))
        except queue.Empty:
            return
        command()
        self._run_commands()

    def _run_commands(self) -> None:
        while not self._commands.empty():
            self._commands.get()()
        self._watches.resolve_pending()
        self._answer_requests()

    def _answer_requests(self) -> None:
        """Report the requested states, if every path is watched (scanner.1)."""
        if self._requests and not self._watches.incomplete:
            requests, self._requests = self._requests, []
            for watched, asker in requests:
                if watched.is_known:
                    self._compare(watched, "poll")
                else:
                    self._differ.begin(watched)
                self._report(Finding(watched, None, asker))

    def _add(self, watched: WatchedPath, interval: float | None, asker: Asker) -> None:
        if interval is not None and watched.poll_every(interval):
            self._schedule(watched, time.monotonic())
        if watched not in self._paths:
            self._paths.add(watched)
            self._poll_ring.append(watched)
            self._watches.add(watched)
        self._requests.append((watched, asker))

    def _schedule(self, watched: WatchedPath, now: float) -> None:
        """Poll a path when its interval is over."""
        due = watched.schedule(now)
        heapq.heappush(self._scheduled, (due, id(watched), watched))
        self._tick_at = min(self._tick_at, due)

    def _remove(self, watched: WatchedPath) -> None:
        watched.remove()
        self._paths.discard(watched)
        self._watches.discard(watched)

    def _rebuild_watches(self) -> None:
        changed = self._watches.rebuild()
        if self._watches.incomplete:  # directories are being created or removed
            time.sleep(STEP_SECONDS)
        self._poll_ring = deque([*self._paths, *self._watches.directories])
        for path in changed:
            self._handle_change(path)
        self._compare_all()
        self._answer_requests()

    # Comparing.

    def _handle(self, labels: Iterable[tuple[int, str]]) -> None:
        """Compare the paths that the kernel named; the kind of its event does not matter."""
        names = {name for _, name in labels}
        for name in names:
            for path in self._watches.aliases(name):
                self._handle_change(path)
        if len(names) >= LARGE_BATCH:
            self._compare_all()

    def _handle_change(self, path: str) -> None:
        for watched in self._watches.decided_by(path):
            self._watches.mark_unresolved(watched)
            self._compare(watched, "event")
        if self._watches.is_watched(path):
            self._check_directory(path)

    def _compare_all(self) -> None:
        for watched in tuple(self._paths):
            self._compare(watched, "poll")

    def _compare(self, watched: WatchedPath, source: str) -> None:
        """Compare one path of many."""
        if not self._differ.compare(watched, source) and not watched.is_suspect:
            now = time.monotonic()
            self._suspect(watched, now, now)
        self._compared += 1
        if self._compared % YIELD_EVERY == 0:
            time.sleep(YIELD_SECONDS)

    def _check_directory(self, path: str) -> None:
        if self._watches.is_stale(path):
            self._watches.mark_stale(path)

    def _tick(self) -> None:
        """Poll the paths that are due."""
        now = time.monotonic()
        elapsed, self._ticked_at = now - self._ticked_at, now
        if elapsed > LATE_SECONDS:
            self._compare_all()
        if now > self._alive_at:
            self._alive_at = now + ALIVE_SECONDS
            if not self._deliver([]):  # never assign False: ``end`` may run in another thread
                self._is_over = True
        self._tick_at = now + TICK_SECONDS
        while self._scheduled and self._scheduled[0][0] <= now:
            due, _, watched = heapq.heappop(self._scheduled)
            if watched.due(due):
                self._poll(watched, now)
                self._schedule(watched, now)
        while self._suspects and self._suspects[0][0] <= now:
            _, watched, since = self._suspects.popleft()
            if watched.is_suspect and not watched.is_removed:
                self._compare_suspect(watched, now, since)
        if self._scheduled:
            self._tick_at = min(self._tick_at, self._scheduled[0][0])
        if self._suspects:
            self._tick_at = min(self._tick_at, self._suspects[0][0])
        self._poll_next(now, elapsed)

    def _poll_next(self, now: float, elapsed: float) -> None:
        """Poll as many paths and directories as the share of a core allows."""
        total = len(self._poll_ring)
        period = max(self._poll_period, total * self._poll_cost / POLL_SHARE)
        self._poll_credit = min(self._poll_credit + elapsed * total / period, total)
        count = min(int(self._poll_credit), MAX_BATCH)
        if not count:
            return
        self._poll_credit -= count
        began = time.thread_time()
        for _ in range(count):
            turn = self._poll_ring.popleft()
            if isinstance(turn, str):
                if not self._watches.is_watched(turn):
                    continue
                self._check_directory(turn)
            elif turn.is_removed:
                continue
            else:
                self._poll(turn, now)
            self._poll_ring.append(turn)
        spent = (time.thread_time() - began) / count
        self._poll_cost += (spent - self._poll_cost) / 16

    def _poll(self, watched: WatchedPath, now: float) -> None:
        """Compare a path without an event; if it differs, wait for the event that may follow."""
        if self._watches.notifier is None:
            self._differ.compare(watched, "poll", patient=False)
        elif watched.is_known and not watched.is_suspect and self._differ.differs(watched):
            self._suspect(watched, now, now)

    def _compare_suspect(self, watched: WatchedPath, now: float, since: float) -> None:
        """Compare, unless the file has just changed again and an event may follow."""
        patient = now - since < MAX_DELAY_SECONDS
        if (
            patient and self._differ.changed_within(watched, POLL_DELAY_SECONDS)
        ) or not self._differ.compare(watched, "poll", patient=patient):
            self._suspect(watched, now, since)

    def _suspect(self, watched: WatchedPath, now: float, since: float) -> None:
        """Compare a path a little later, unless an event leads to it before that."""
        watched.suspect()
        self._suspects.append((now + POLL_DELAY_SECONDS, watched, since))

    def _report(self, finding: Finding) -> None:
        self._findings.append(finding)
        if len(self._findings) >= MAX_BATCH:
            self._send()

    def _send(self) -> None:
        if self._findings:
            findings, self._findings = self._findings, []
            if not self._deliver(findings):
                self._is_over = True
