"""One watched path: the state that was last reported of it, and when it is polled next.

A path is in one of four conditions: new (no state was taken yet), known, suspect (a poll found a
difference that an event may still explain), or removed. Only the methods here change it.
Scanner thread only, but for ``path``.
"""

from __future__ import annotations

import math
import os
import time

from .._core.file_state import FileState
from .._core.kernel import kernel_version
from .attribution import Sample, made_syscalls
from .changes import Change, ChangeKind
from .path_resolution import ResolvedPath

#: How long after a system call its event may come.
EVENT_DELAY_SECONDS = 0.1
#: How long after a poll an event may come of a change that the poll saw.
LATE_EVENT_SECONDS = 0.5
#: The longest tick of a kernel (HZ=100). The times of files may be as coarse as that.
TICK_NS = 10_000_000

#: What is compared first: two states with the same key are the same.
Key = tuple[int, ...]


def key_of(found: os.stat_result | None) -> Key | None:
    """Return what tells one state from another, without making a ``FileState``."""
    if found is None:
        return None
    return (found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)


def _has_coarse_times(release: str) -> bool:
    """Tell whether a file that changes twice within a tick of the kernel may keep its times.

    Since Linux 6.13 a change after a stat always gets another time than the stat has seen.
    """
    return kernel_version(release) < (6, 13)


COARSE_TIMES = _has_coarse_times(os.uname().release)


def _is_recent(state: FileState | None) -> bool:
    if not COARSE_TIMES or state is None:
        return False
    return abs(time.time_ns() - state.ctime_ns) < 2 * TICK_NS


class WatchedPath:
    """One watched path."""

    __slots__ = (
        "_due_at",
        "_interval",
        "_is_recent",
        "_syscalls_at",
        "_taken_for_ours",
        "is_known",
        "is_removed",
        "is_suspect",
        "key",
        "path",
        "resolved",
        "sample",
        "state",
    )

    def __init__(self, path: str) -> None:
        self.path = path
        #: Where the path leads; None until it is resolved.
        self.resolved: ResolvedPath | None = None
        #: The state last reported; None if there was no file.
        self.state: FileState | None = None
        self.key: Key | None = None
        #: What this hub's files of that inode had done when the state was taken.
        self.sample: Sample | None = None
        self.is_known = False
        self.is_suspect = False
        self.is_removed = False
        #: When this hub last made a system call that raises an event.
        self._syscalls_at = -math.inf
        #: The state before a difference that mapped stores of ours explained, and when it was seen.
        self._taken_for_ours: tuple[FileState, float] | None = None
        #: Whether the file could change again and keep its times, because they are coarse.
        self._is_recent = False
        self._interval = math.inf
        self._due_at = math.inf

    def resolve_to(self, resolved: ResolvedPath) -> None:
        """Note where the path leads now."""
        self.resolved = resolved

    def remove(self) -> None:
        """Mark it as removed; queues that still hold it skip it."""
        self.is_removed = True

    # When it is polled.

    def poll_every(self, seconds: float) -> bool:
        """Shorten the interval between polls; false if it is as short already."""
        if seconds >= self._interval:
            return False
        self._interval = seconds
        return True

    def schedule(self, now: float) -> float:
        """Start the interval, and return when it ends."""
        self._due_at = now + self._interval
        return self._due_at

    def due(self, scheduled: float) -> bool:
        """Tell whether the poll scheduled for that moment still counts.

        A shorter interval may have replaced it by an earlier one.
        """
        return not self.is_removed and scheduled == self._due_at

    # Its states.

    def begin(self, found: os.stat_result | None, sample: Sample | None) -> None:
        """Take the first state, and a sample of this hub's files that was taken just after it."""
        self.observe(found, found and FileState.of(found), sample)
        self.is_known = True
        self.note_syscalls(None, sample)  # their events may still follow

    def suspect(self) -> None:
        """Note that a poll found a difference."""
        self.is_suspect = True

    def clear_suspicion(self) -> None:
        """Note that the difference was compared."""
        self.is_suspect = False

    def note_syscalls(self, before: Sample | None, after: Sample | None) -> bool:
        """Note whether this hub made system calls between two samples, whose events may follow."""
        if (before or after) and made_syscalls(before, after):
            self._syscalls_at = time.monotonic()
            return True
        return False

    def event_is_foreign(self, moment: float) -> bool:
        """Tell whether no system call of this hub can have raised an event at this moment."""
        return moment - self._syscalls_at > EVENT_DELAY_SECONDS

    def is_being_cut(self, state: FileState) -> bool:
        """Tell whether a state of the same file was taken in the middle of truncate(2)."""
        old = self.state
        return (
            old is not None
            and not self._is_recent
            and old.size != state.size
            and (old.mtime_ns, old.ctime_ns) == (state.mtime_ns, state.ctime_ns)
        )

    def observe(
        self,
        found: os.stat_result | None,
        state: FileState | None,
        sample: Sample | None,
        *,
        taken_for_ours: FileState | None = None,
    ) -> None:
        """Take a state as the one last reported, with the sample that belongs to it.

        Args:
            taken_for_ours: the state before, if only mapped stores of ours explained the
                difference.
        """
        self.state, self.key, self.sample = state, key_of(found), sample
        self._is_recent = _is_recent(state)
        self._taken_for_ours = None
        if taken_for_ours is not None:
            self._taken_for_ours = (taken_for_ours, time.monotonic())

    def observe_same(self, sample: Sample | None, *, event_is_foreign: bool) -> FileState | None:
        """Note that the state is the same; return an old state if a foreign event shows a change.

        The event shows one in two cases. It came soon after a poll that took a difference for ours:
        mapped stores raise no event, so others stored, too. Or it came within the tick of the
        kernel in which the state was taken: the file may have changed and kept its times.
        """
        self.sample = sample
        if not event_is_foreign:
            return None
        taken, self._taken_for_ours = self._taken_for_ours, None
        if taken is not None and time.monotonic() - taken[1] < LATE_EVENT_SECONDS:
            return taken[0]
        if not self._is_recent:
            return None
        self._is_recent = _is_recent(self.state)
        return self.state

    def change(self, kind: ChangeKind, old: FileState | None, source: str) -> Change:
        """Make the change from an old state to the present one."""
        return Change(kind, self.path, old, self.state, 0, source, time.time_ns())
