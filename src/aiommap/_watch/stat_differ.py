"""Comparing watched paths with their files, and leaving out changes made by this hub.

Scanner thread only. ``_watch/scanner`` says when a path is compared, ``_watch/attribution`` which
changes are our own, and ``_watch/watched_path`` what is kept of a path.

Invariants.
  1  The state of a path is the one last reported, with our own changes since applied. So no
     difference is lost, though a later one may join it, and none is reported twice.
  2  A difference that mapped stores of ours explain is reported all the same if a foreign event
     follows soon: a poll may see a change before its event comes.
  3  A file whose size moved but whose times did not is being cut: truncate(2) moves the times last.
     It is compared when the cut has ended; otherwise the cut would be reported twice.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Callable

from .._core.file_state import FileState, Identity
from .attribution import (
    OwnChanges,
    Sample,
    rests_on_mapped_stores,
    size_is_stable,
    subtract_own,
)
from .changes import MOVES, Change, ChangeKind, classify
from .watched_path import WatchedPath, key_of

#: How often we try again because a resize of ours came between the stat and the samples around it.
MAX_ATTEMPTS = 8


def stat_of(path: str) -> os.stat_result | None:
    """Return what stat(2) says of a path; None if it names nothing."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _stat_if_allowed(path: str) -> os.stat_result | None:
    try:
        return stat_of(path)
    except OSError:
        return None


class StatDiffer:
    """Compares watched paths with their files.

    Args:
        own: says what this hub's files did.
        report: takes a change.
        mark_unresolved: called when a path names another file, because a link may have changed.
    """

    __slots__ = ("_mark_unresolved", "_own", "_report")

    def __init__(
        self,
        own: OwnChanges,
        report: Callable[[WatchedPath, Change], object],
        mark_unresolved: Callable[[WatchedPath], object],
    ) -> None:
        # Weak: a thread keeps what it refers to alive, and a file that nobody closed must go (I15).
        self._own = weakref.ref(own)
        self._report = report
        self._mark_unresolved = mark_unresolved

    def differs(self, watched: WatchedPath) -> bool:
        """Tell whether ``compare`` would find a difference, as cheaply as can be."""
        try:
            return key_of(stat_of(watched.path)) != watched.key
        except OSError:
            return False

    def changed_within(self, watched: WatchedPath, seconds: float) -> bool:
        """Tell whether the file changed so recently that an event of it may follow."""
        try:
            found = stat_of(watched.path)
        except OSError:
            return False
        return found is not None and abs(time.time_ns() - found.st_ctime_ns) < seconds * 1e9

    def begin(self, watched: WatchedPath) -> None:
        """Take the first state of a path."""
        found: os.stat_result | None = None
        sample: Sample | None = None
        for _ in range(MAX_ATTEMPTS):
            found = _stat_if_allowed(watched.path)
            # The sample comes second. So a store of ours in between counts as somebody else's,
            # which is better than the reverse.
            sample = self._sample(found and FileState.of(found))
            # A resize in between would count for neither; a second stat shows it. Then try again.
            if key_of(_stat_if_allowed(watched.path)) == key_of(found):
                break
        watched.begin(found, sample)

    def compare(self, watched: WatchedPath, source: str, *, patient: bool = True) -> bool:
        """Compare a path with the state last reported of it, and report a difference.

        Returns:
            False if the size is changing right now, and the path is to be compared again.

        Args:
            patient: whether to leave a file that is being cut (stat_differ.3). Some file systems do
                not move the times with each change of the size, so patience has to end.
        """
        if not watched.is_known:
            return True  # its first state has not been taken yet
        done = any(self._compare_once(watched, source, patient) for _ in range(MAX_ATTEMPTS))
        if done:
            watched.clear_suspicion()
        return done

    def _compare_once(self, watched: WatchedPath, source: str, patient: bool) -> bool:
        """Compare; false if the size is changing right now (attribution.4, stat_differ.3)."""
        before = self._sample(watched.state)
        now = time.monotonic()
        watched.note_syscalls(watched.sample, before)
        try:
            found = stat_of(watched.path)
        except OSError:
            return True  # stat(2) fails for now: EACCES, EIO, ESTALE
        foreign = source == "event" and watched.event_is_foreign(now)
        if key_of(found) == watched.key:
            missed = watched.observe_same(before, event_is_foreign=foreign)
            if missed is not None:
                self._report(watched, watched.change(ChangeKind.MODIFIED, missed, source))
            return True
        old, new = watched.state, found and FileState.of(found)
        taken: FileState | None = None
        if old is not None and new is not None and old.is_same_file(new):
            after = self._sample(old)
            if (patient and watched.is_being_cut(new)) or not size_is_stable(before, after):
                return False
            if watched.note_syscalls(watched.sample, after):
                foreign = False
            if not foreign and rests_on_mapped_stores(old, new, watched.sample, after):
                taken = old
            old = subtract_own(old, new, watched.sample, after, event_is_foreign=foreign)
        elif new is not None:
            before = self._sample(new)
        watched.observe(found, new, before, taken_for_ours=taken)
        self._report_difference(watched, old, source)
        return True

    def _report_difference(self, watched: WatchedPath, old: FileState | None, source: str) -> None:
        kind = classify(old, watched.state)
        if kind is None:
            return
        if kind in MOVES:
            self._mark_unresolved(watched)
        self._report(watched, watched.change(kind, old, source))

    def _sample(self, state: FileState | None) -> Sample | None:
        if state is None:
            return None
        own = self._own()
        return None if own is None else own.sample(Identity(state.device, state.inode))
