"""Looking at watched paths: stat says what there is, and what this hub did is put out of account.

Scanner thread only. See ``_watch/scanner`` for when one looks, and ``_watch/attribution`` for what
is our own.

Invariants.
  1  An entry's state is what was last reported, or our own doing since: no difference is ever
      lost, only merged with a later one, and none is reported twice.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable

from .._core.file_state import FileState, Identity
from .attribution import OwnChanges, Sample, made_syscalls, size_is_stable, subtract_own
from .changes import MOVES, Change, ChangeKind, classify
from .path_resolution import Route

#: An event may follow the call that caused it by this much.
EVENT_DELAY_SECONDS = 0.1
#: So often one looks again at once because a resize of ours came in between.
LOOKS = 8
#: The longest tick of a kernel (HZ=100), which is how coarse the times of files may be.
TICK_NS = 10_000_000


class Entry:
    """One watched path. Belongs to the scanner's thread, but for ``path``."""

    __slots__ = (
        "called_at",
        "due",
        "interval",
        "key",
        "known",
        "live",
        "path",
        "recent",
        "route",
        "sample",
        "state",
        "suspect",
    )

    def __init__(self, path: str) -> None:
        self.path = path
        self.route: Route | None = None
        self.state: FileState | None = None
        #: What is compared first: states with the same one are the same.
        self.key: tuple[int, ...] | None = None
        self.known = False
        #: What this hub's files of that inode had done when the state was taken.
        self.sample: Sample | None = None
        #: When we last did something that makes the kernel tell of an event.
        self.called_at = -math.inf
        #: Whether the file could be changed once more without its times moving.
        self.recent = False
        #: Whether a poll found a difference that an event may still tell of.
        self.suspect = False
        self.interval = math.inf
        self.due = math.inf
        self.live = True


def stat_of(path: str) -> os.stat_result | None:
    """Look at a path; None if it names nothing."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _seen(path: str) -> os.stat_result | None:
    """Look at a path; None also if it may not be looked at."""
    try:
        return stat_of(path)
    except OSError:
        return None


def _key(found: os.stat_result | None) -> tuple[int, ...] | None:
    if found is None:
        return None
    return (found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)


def _has_coarse_times(release: str) -> bool:
    """Tell whether files that change twice within a tick of the kernel may keep their times.

    Since Linux 6.13 the times that somebody has looked at are told from those of later changes.
    """
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    return numbers < [6, 13]


COARSE_TIMES = _has_coarse_times(os.uname().release)


def _is_recent(state: FileState | None) -> bool:
    if not COARSE_TIMES or state is None:
        return False
    return abs(time.time_ns() - state.ctime_ns) < 2 * TICK_NS


class Looker:
    """Compares entries with their files.

    Args:
        own: says what this hub's files did.
        tell: takes a change.
        reroute: has the way to an entry found again, since its file is another one.
    """

    __slots__ = ("_own", "_reroute", "_tell")

    def __init__(
        self,
        own: OwnChanges,
        tell: Callable[[Entry, Change], object],
        reroute: Callable[[Entry], object],
    ) -> None:
        self._own = own
        self._tell = tell
        self._reroute = reroute

    def differs(self, entry: Entry) -> bool:
        """Tell whether there is something to look at, as cheaply as can be."""
        try:
            return _key(stat_of(entry.path)) != entry.key
        except OSError:
            return False

    def changed_within(self, entry: Entry, seconds: float) -> bool:
        """Tell whether the file changed so shortly ago that an event of it may be on its way."""
        try:
            found = stat_of(entry.path)
        except OSError:
            return False
        return found is not None and abs(time.time_ns() - found.st_ctime_ns) < seconds * 1e9

    def look(self, entry: Entry, source: str) -> None:
        """Compare a path with what was last told of it."""
        if not entry.known:
            return  # its first state has not been taken yet
        entry.suspect = False
        for _ in range(LOOKS):
            if self._look_once(entry, source):
                break

    def _look_once(self, entry: Entry, source: str) -> bool:
        """Look; False if nothing can be said now (attribution.4): a later look sees it."""
        old = entry.state
        before = self._sample(old)
        now = time.monotonic()
        if (before or entry.sample) and made_syscalls(entry.sample, before):
            entry.called_at = now
        try:
            found = stat_of(entry.path)
        except OSError:
            return True  # not to be seen at the moment: EACCES, EIO, ESTALE
        told = source == "event" and now - entry.called_at > EVENT_DELAY_SECONDS
        if _key(found) == entry.key:
            entry.sample = before
            if told and entry.recent:
                entry.recent = _is_recent(entry.state)
                self._tell(entry, _change(entry, ChangeKind.MODIFIED, old, source))
            return True
        return self._compare(entry, found, before, told=told, source=source)

    def _compare(
        self,
        entry: Entry,
        found: os.stat_result | None,
        before: Sample | None,
        *,
        told: bool,
        source: str,
    ) -> bool:
        old, new = entry.state, found and FileState.of(found)
        if old is not None and new is not None and old.is_same_file(new):
            after = self._sample(old)
            if not size_is_stable(before, after):
                return False
            if (after or entry.sample) and made_syscalls(entry.sample, after):
                entry.called_at, told = time.monotonic(), False
            old = subtract_own(old, new, entry.sample, after, told=told)
        elif new is not None:
            before = self._sample(new)
        entry.state, entry.key, entry.sample = new, _key(found), before
        entry.recent = _is_recent(new)
        self._tell_change(entry, old, source)
        return True

    def _tell_change(self, entry: Entry, old: FileState | None, source: str) -> None:
        new = entry.state
        kind = classify(old, new)
        if kind is None:
            return
        if kind in MOVES:
            self._reroute(entry)
        self._tell(entry, _change(entry, kind, old, source))

    def begin(self, entry: Entry) -> None:
        """Take the first state."""
        for _ in range(LOOKS):
            found = _seen(entry.path)
            entry.state, entry.key = found and FileState.of(found), _key(found)
            # Taken afterwards, so a store in between goes for somebody else's: better than the
            # reverse. What shows by another look is in neither: then both are taken again.
            entry.sample = self._sample(entry.state)
            if _key(_seen(entry.path)) == entry.key:
                break
        entry.known = True
        entry.recent = _is_recent(entry.state)
        if made_syscalls(None, entry.sample):  # an event of that may be on its way
            entry.called_at = time.monotonic()

    def _sample(self, state: FileState | None) -> Sample | None:
        if state is None:
            return None
        return self._own.sample(Identity(state.device, state.inode))


def _change(entry: Entry, kind: ChangeKind, old: FileState | None, source: str) -> Change:
    return Change(kind, entry.path, old, entry.state, 0, source, time.time_ns())
