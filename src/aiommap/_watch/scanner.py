"""The thread that looks: the kernel tells it where to, and stat tells it what happened.

Theory of operation. One thread looks after any number of *entries*, one for each path. It waits in
watchfiles' native notifier, which watches the directories that the routes of all entries lead
through. What the notifier says of a name is only a reason to look: the kernel's queue merges and
overflows, and the notifier drops what it cannot label. Between two events the thread goes round
all entries and directories, slowly enough to cost a fraction of a per cent; that finds what the
kernel tells nobody: mapped stores of other processes, renamed ancestors, mounts, lost events.

The notifier forgets what it has gathered when it is asked to stop. So that is asked only when
everything is going to be looked at anyway, and all other work is done in the "shall I stop"
callback that it makes before each look at what it has. It answers as soon as two looks in a row
found the same; so the callback sleeps before every other one, and the notifier itself never does.
An event then takes half a step on average, where sleeping before each look takes one and a half.

Invariants.
  1  The directories of an entry are watched before its first state is taken, so what comes after
      that cannot be missed.
  2  Entries belong to this thread alone; the loop sends commands and is sent findings.
  3  Whatever fails here is logged, and everything is looked at afresh.
"""

from __future__ import annotations

import atexit
import heapq
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from .._logs import WATCHING
from .attribution import OwnChanges
from .changes import Change
from .notifier import WatchSet
from .stat_differ import Entry, Looker

#: How often it is seen whether the kernel told something: the longest that an event takes.
STEP_SECONDS = 0.014
#: How often every entry is looked at without a reason, if there are few.
POLL_SECONDS = 0.25
#: At most this share of one core goes into that.
POLL_SHARE = 0.0015
#: What one look costs, to begin with; it is measured.
LOOK_SECONDS = 5e-6
#: The longest the thread looks without telling what it found.
MAX_BATCH = 256
#: So many looks in a row, about a millisecond, then the loop may have the interpreter: a look gives
#: it back for the moment of a system call only, which is too short for another thread to wake in.
YIELD_EVERY = 32
YIELD_SECONDS = 5e-5
TICK_SECONDS = 0.1
#: A poll lets events go first, which know more, by this much, and those of later changes as well,
#: unless the file never rests.
POLL_DELAY_SECONDS = 3 * STEP_SECONDS
LONGEST_DELAY_SECONDS = 0.5
#: So many names at once suggest that the kernel's queue overflowed, of which nobody is told.
LARGE_BATCH = 2000
#: How often the thread makes sure that somebody is left to be told.
ALIVE_SECONDS = 10.0
#: A thread that did not come round for so long may have missed an overflow as well.
LATE_SECONDS = 1.0


#: How long the interpreter waits for a thread that may hang when it ends.
END_SECONDS = 1.0

#: Scanners whose thread runs.
_running: set[Scanner] = set()
os.register_at_fork(after_in_child=_running.clear)


@atexit.register
def _end_all() -> None:
    """End all threads while the interpreter still stands.

    It ends a daemon thread by unwinding its stack, and the notifier's native frames do not take
    that: the process would abort.
    """
    for scanner in tuple(_running):
        scanner.end_now()


class Found:
    """What the thread tells the loop: a change, or the state that somebody asked for."""

    __slots__ = ("change", "entry", "state", "token")

    def __init__(self, entry: Entry, change: Change | None, token: object = None) -> None:
        self.entry = entry
        self.change = change
        self.token = token
        self.state = entry.state


#: Takes what was found, in this thread; answers False when nobody is left to take it.
Deliver = Callable[[list[Found]], bool]


class Scanner:
    """Looks after entries in a thread of its own, until it is told to end.

    Args:
        own: says what this hub's files did.
        deliver: takes findings; when it answers False, the thread ends.
        notify: whether to ask the kernel; False on network file systems, whose changes it does
            not see, and where a look may hang.
        poll_seconds: how often entries are looked at without a reason, at best.
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
        self._poll_seconds = poll_seconds
        self._set: WatchSet[Entry] = WatchSet(notify=notify)
        self._looker = Looker(own, lambda *found: self._tell(Found(*found)), self._set.reroute)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._found: list[Found] = []
        self._entries: set[Entry] = set()
        #: Entries whose state was asked for and that are not watched yet, and who asked.
        self._asked: list[tuple[Entry, object]] = []
        self._ring: deque[Entry | str] = deque()
        self._timed: list[tuple[float, int, Entry]] = []
        #: When to look at what a poll found, in that order, what, and when that was.
        self._suspects: deque[tuple[float, Entry, float]] = deque()
        self._owed = 0.0
        self._looks = 0
        self._look_seconds = LOOK_SECONDS
        self._ticked_at = self._tick_at = self._alive_at = time.monotonic()
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._over = False
        self._warned = False
        #: Whether the notifier's next look is its second one, for which nobody sleeps.
        self._looked = False

    # Any thread.

    def add(self, entry: Entry, interval: float | None, token: object) -> None:
        """Watch a path, and tell its state once it is watched."""
        self._commands.put(lambda: self._add(entry, interval, token))

    def remove(self, entry: Entry) -> None:
        """Watch a path no longer."""
        self._commands.put(lambda: self._remove(entry))

    def end(self) -> None:
        """End the thread soon."""
        self._over = True
        self._commands.put(lambda: None)

    def end_now(self) -> None:
        """End the thread, and wait for that; not for one that hangs."""
        self.end()
        with suppress(queue.Empty):
            self._ended.get(timeout=END_SECONDS)

    # The scanner's thread only, from here on.

    def run(self) -> None:
        """Look until the end."""
        _running.add(self)
        while not self._over:
            try:
                self._round()
            except BaseException:  # scanner.3; a panic of the notifier is no Exception
                WATCHING.exception("watching files met an error and begins afresh")
                self._set.close()
                time.sleep(TICK_SECONDS)
        self._set.close()
        _running.discard(self)
        self._ended.put(None)

    def is_set(self) -> bool:
        """Sleep, and do what is due; tell whether the notifier has to be left.

        It asks twice a step, so nearly always nothing is due, and little is done.
        """
        self._looked = not self._looked
        if not self._looked:
            return False
        try:
            command = self._commands.get(timeout=STEP_SECONDS)
        except queue.Empty:
            if not self._found and time.monotonic() < self._tick_at:
                return self._over or self._set.incomplete
        else:
            command()
            self._obey()
        return self._step()

    def _step(self) -> bool:
        if not self._commands.empty():
            self._obey()
        if time.monotonic() >= self._tick_at:
            self._tick()
        self._set.find_routes()
        self._send()
        return self._over or self._set.incomplete

    def _round(self) -> None:
        self._obey()
        if self._set.incomplete:
            self._rewatch()
        notifier = self._set.notifier
        if notifier is None:
            self._wait()
        else:
            try:
                self._looked = False
                labels = notifier.watch(0, 0, 0, self)
            except RuntimeError as error:
                self._begin_afresh(error)
                return
            if not isinstance(labels, str):
                self._handle(labels)
        self._step()

    def _begin_afresh(self, error: RuntimeError) -> None:
        """Give up a notifier that failed; a name that is no text is enough for that."""
        if not self._warned:
            self._warned = True
            WATCHING.warning("what tells of changed files failed, and begins afresh: %s", error)
        self._set.close()
        time.sleep(TICK_SECONDS)

    def _wait(self) -> None:
        """Wait for a command, or until a look is due."""
        seconds = self._tick_at - time.monotonic() if self._entries else None
        try:
            command = self._commands.get(timeout=seconds and max(seconds, 0.001))
        except queue.Empty:
            return
        command()
        self._obey()

    def _obey(self) -> None:
        while not self._commands.empty():
            self._commands.get()()
        self._set.find_routes()
        self._answer()

    def _answer(self) -> None:
        """Tell the states that were asked for, if all is watched (scanner.1)."""
        if self._asked and not self._set.incomplete:
            asked, self._asked = self._asked, []
            for entry, token in asked:
                if entry.known:
                    self._looker.look(entry, "poll")
                else:
                    self._looker.begin(entry)
                self._tell(Found(entry, None, token))

    def _add(self, entry: Entry, interval: float | None, token: object) -> None:
        if interval is not None and interval < entry.interval:
            entry.interval = interval
            self._time(entry)
        if entry not in self._entries:
            self._entries.add(entry)
            self._ring.append(entry)
            self._set.add(entry)
        self._asked.append((entry, token))

    def _time(self, entry: Entry) -> None:
        """Look at an entry when its interval is over."""
        entry.due = time.monotonic() + entry.interval
        heapq.heappush(self._timed, (entry.due, id(entry), entry))
        self._tick_at = min(self._tick_at, entry.due)

    def _remove(self, entry: Entry) -> None:
        entry.live = False
        self._entries.discard(entry)
        self._set.discard(entry)

    def _rewatch(self) -> None:
        self._set.rebuild()
        if self._set.incomplete:  # directories come and go at the moment
            time.sleep(STEP_SECONDS)
        self._ring = deque([*self._entries, *self._set.directories])
        self._look_at_all()
        self._answer()

    # Looking.

    def _handle(self, labels: Iterable[tuple[int, str]]) -> None:
        """Look at what the kernel named; what it says of it does not matter."""
        names = {name for _, name in labels}
        for name in names:
            for path in self._set.paths(name):
                for entry in self._set.entries(path):
                    self._set.reroute(entry)
                    self._look(entry, "event")
                if self._set.is_watched(path):
                    self._look_at_directory(path)
        if len(names) >= LARGE_BATCH:
            self._look_at_all()

    def _look_at_all(self) -> None:
        for entry in tuple(self._entries):
            self._look(entry, "poll")

    def _look(self, entry: Entry, source: str) -> None:
        """Look at one of many."""
        self._looker.look(entry, source)
        self._looks += 1
        if self._looks % YIELD_EVERY == 0:
            time.sleep(YIELD_SECONDS)

    def _look_at_directory(self, path: str) -> None:
        if self._set.has_moved(path):
            self._set.lose(path)

    def _tick(self) -> None:
        """Look at whatever it is the turn of."""
        now = time.monotonic()
        elapsed, self._ticked_at = now - self._ticked_at, now
        if elapsed > LATE_SECONDS:
            self._look_at_all()
        if now > self._alive_at:
            self._alive_at = now + ALIVE_SECONDS
            if not self._deliver([]):  # no other value is ever put there: ``end`` may come between
                self._over = True
        self._tick_at = now + TICK_SECONDS
        while self._timed and self._timed[0][0] <= now:
            due, _, entry = heapq.heappop(self._timed)
            if entry.live and due == entry.due:  # else it was put in again, for an earlier time
                self._poll(entry, now)
                self._time(entry)
        while self._suspects and self._suspects[0][0] <= now:
            _, entry, since = self._suspects.popleft()
            if entry.suspect and entry.live:
                self._look_at_suspect(entry, now, since)
        if self._timed:
            self._tick_at = min(self._tick_at, self._timed[0][0])
        if self._suspects:
            self._tick_at = min(self._tick_at, self._suspects[0][0])
        self._go_round(now, elapsed)

    def _go_round(self, now: float, elapsed: float) -> None:
        period = max(self._poll_seconds, len(self._ring) * self._look_seconds / POLL_SHARE)
        self._owed = min(self._owed + elapsed * len(self._ring) / period, len(self._ring))
        count = min(int(self._owed), MAX_BATCH)
        if not count:
            return
        self._owed -= count
        began = time.thread_time()
        for _ in range(count):
            turn = self._ring.popleft()
            if isinstance(turn, str):
                if not self._set.is_watched(turn):
                    continue
                self._look_at_directory(turn)
            elif turn.live:
                self._poll(turn, now)
            else:
                continue
            self._ring.append(turn)
        spent = (time.thread_time() - began) / count
        self._look_seconds += (spent - self._look_seconds) / 16

    def _poll(self, entry: Entry, now: float) -> None:
        """Look without a reason, but leave what is found to an event that is on its way."""
        if self._set.notifier is None:
            self._looker.look(entry, "poll")
        elif entry.known and not entry.suspect and self._looker.differs(entry):
            entry.suspect = True
            self._suspects.append((now + POLL_DELAY_SECONDS, entry, now))

    def _look_at_suspect(self, entry: Entry, now: float, since: float) -> None:
        """Look, unless the file has changed once more and an event may be on its way."""
        patient = now - since < LONGEST_DELAY_SECONDS
        if patient and self._looker.changed_within(entry, POLL_DELAY_SECONDS):
            self._suspects.append((now + POLL_DELAY_SECONDS, entry, since))
        else:
            self._looker.look(entry, "poll")

    def _tell(self, found: Found) -> None:
        self._found.append(found)
        if len(self._found) >= MAX_BATCH:
            self._send()

    def _send(self) -> None:
        if self._found:
            found, self._found = self._found, []
            if not self._deliver(found):
                self._over = True
