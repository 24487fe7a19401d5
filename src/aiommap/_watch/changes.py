"""Changes of a watched path: their kinds, and how two of them merge.

Pure: a state is what stat(2) said at one moment, and a change is the difference of two states.

To add a kind of change, add a member to ``ChangeKind``, a case to ``classify`` and, if the bytes
are surely the same, a case to ``merge``: the kind stands only if both changes are of it. Two states
are all that ``classify`` has: a kind that they do not show can only come from ``merge``. If it
depends on a part of stat(2) that ``Change.old`` lacks (it has device, inode, size, mode, links,
user, group, mtime_ns and ctime_ns), add a field to ``_core/file_state.FileState``. A change of a
field counts as made by others unless ``_watch/attribution.subtract_own`` says otherwise. A change
that moves neither times nor size is never seen, because ``_watch/watched_path.key_of`` is compared
first. The notifier needs no change: its events only say which paths to compare.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum

from .._core.file_state import FileState


class ChangeKind(Enum):
    """What happened to a path, as far as the states before and after it show.

    The kind is the first of these that applies: ``CREATED``, ``REMOVED``, ``REPLACED``,
    ``TRUNCATED`` or ``GROWN``, ``MODIFIED``, ``METADATA``, ``CHANGED``. So a file that was
    rewritten and has another size is ``TRUNCATED`` or ``GROWN``; the states show the rest.
    """

    #: The size is the same and the time of modification moved: it was written to, or touched.
    MODIFIED = "modified"
    #: The owner, the permissions or the number of links changed.
    METADATA = "metadata"
    #: Only the time of change moved, which nobody can set. Either bytes were overwritten and the
    #: time of modification was set back, as ``cp -p`` does, or something changed that no state
    #: shows.
    CHANGED = "changed"
    #: The file is longer.
    GROWN = "grown"
    #: The file is shorter: bytes beyond its end are gone.
    TRUNCATED = "truncated"
    #: The path names another file.
    REPLACED = "replaced"
    #: The path names no file.
    REMOVED = "removed"
    #: The path names a file, and named none in the state before.
    CREATED = "created"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a watched path.

    Attributes:
        kind: what happened.
        path: the absolute path that is watched; symbolic links stay as they were given.
        old: the state before the change; None if there was no file.
        new: the state after the change; None if there is no file.
        merged: how many further changes were merged into this one in a full buffer; ``old`` is then
            the state before the first of them, and ``new`` the state after the last.
        source: how it was found: "event", by an event of the kernel; "poll", by comparing without
            an event; "start", because it had happened before watching began.
        detected_ns: when it was found, in nanoseconds since 1970; compare with ``new.mtime_ns``.
    """

    kind: ChangeKind
    path: str
    old: FileState | None
    new: FileState | None
    merged: int = 0
    source: str = "event"
    detected_ns: int = 0


def classify(old: FileState | None, new: FileState | None) -> ChangeKind | None:
    """Name the difference of two states; None if there is none."""
    if old == new:
        return None
    if old is None:
        return ChangeKind.CREATED
    if new is None:
        return ChangeKind.REMOVED
    if not old.is_same_file(new):
        return ChangeKind.REPLACED
    if old.size != new.size:
        return ChangeKind.GROWN if new.size > old.size else ChangeKind.TRUNCATED
    if old.mtime_ns != new.mtime_ns:
        return ChangeKind.MODIFIED
    if replace(old, ctime_ns=new.ctime_ns) != new:
        return ChangeKind.METADATA
    return ChangeKind.CHANGED


#: After one of these the path names another file, or none.
MOVES = (ChangeKind.REPLACED, ChangeKind.REMOVED, ChangeKind.CREATED)


def merge(first: Change, last: Change) -> Change:
    """Merge two changes of the same path into one.

    A file that was removed and created again counts as replaced, even if the new file got the inode
    number of the old one. A file that was created and removed again counts as removed. A file that
    was written to, and has its old size and times again, counts as changed.
    """
    kind = classify(first.old, last.new) or last.kind
    if kind in (ChangeKind.METADATA, ChangeKind.CHANGED):
        harmless = first.kind is last.kind is ChangeKind.METADATA
        kind = ChangeKind.METADATA if harmless else ChangeKind.CHANGED
    moved = first.kind in MOVES or last.kind in MOVES
    if moved and first.old is not None and last.new is not None:
        kind = ChangeKind.REPLACED
    return replace(last, kind=kind, old=first.old, merged=first.merged + last.merged + 1)


class _Cell:
    """A place in the buffer, whose change may still be merged with later ones."""

    __slots__ = ("change",)

    def __init__(self, change: Change) -> None:
        self.change = change

    def merge(self, later: Change) -> None:
        self.change = merge(self.change, later)


class ChangeBuffer:
    """Changes in order of arrival; in a full buffer a change merges into the newest of its path.

    It holds ``limit`` changes, or one of each path if those are more.
    """

    __slots__ = ("_cells", "_limit", "_newest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._cells: deque[_Cell] = deque()
        self._newest: dict[str, _Cell] = {}

    def __len__(self) -> int:
        return len(self._cells)

    def push(self, change: Change) -> None:
        """Add a change, or merge it."""
        newest = self._newest.get(change.path)
        if newest is not None and len(self._cells) >= self._limit:
            newest.merge(change)
            return
        cell = self._newest[change.path] = _Cell(change)
        self._cells.append(cell)

    def pop(self) -> Change:
        """Take the oldest change out."""
        cell = self._cells.popleft()
        if self._newest[cell.change.path] is cell:
            del self._newest[cell.change.path]
        return cell.change
