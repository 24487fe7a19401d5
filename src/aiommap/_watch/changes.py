"""What happened to a watched path: states of a file, the kinds of change between two, merging.

Pure: a state is what stat(2) said at one moment, a change is the difference of two of them.

A new kind of change is a member of ``ChangeKind``, a case of ``classify`` and, if it is harmless,
one of ``merge``. If it depends on a part of stat(2) that ``Change.old`` does not have yet, that is
a field of ``_core/file_state.FileState``. A field counts as somebody else's doing unless
``_watch/attribution.subtract_own`` says otherwise. What moves neither times nor size is never seen:
``_watch/watched_path.key_of`` is compared first. Events only say where to look, so the notifier
needs nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum

from .._core.file_state import FileState


class ChangeKind(Enum):
    """What happened to a path, as far as the states before and after it show.

    The first of these that applies is the kind, in this order: ``CREATED``, ``REMOVED``,
    ``REPLACED``, ``TRUNCATED`` or ``GROWN``, ``MODIFIED``, ``METADATA``, ``CHANGED``. A file that
    was rewritten and has another size now is therefore ``TRUNCATED`` or ``GROWN``: the states show
    the rest.
    """

    #: The size is the same and the time of modification moved: it was written to, or touched.
    MODIFIED = "modified"
    #: Owner, permissions or number of links.
    METADATA = "metadata"
    #: Only the time of change moved, which nobody can set: bytes were overwritten and the time of
    #: modification set back, as ``cp -p`` does, or something was changed that no state shows.
    CHANGED = "changed"
    #: The file is longer.
    GROWN = "grown"
    #: The file is shorter: bytes beyond its end are gone.
    TRUNCATED = "truncated"
    #: The path names another file than before.
    REPLACED = "replaced"
    #: The path names nothing any more.
    REMOVED = "removed"
    #: The path names a file again, or for the first time.
    CREATED = "created"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a watched path.

    Attributes:
        kind: what happened; see ``ChangeKind`` for what counts as what.
        path: the path that was watched, absolute, symbolic links as they were given.
        old: the state before it; None if there was no file.
        new: the state after it; None if there is no file.
        merged: how many further changes this one stands for: it replaced that many in a full
            buffer, where ``old`` is then the state before the first and ``new`` after the last.
        source: how it was found: "event" by an event of the kernel, "poll" by comparing without
            one, "start" because it had already happened when watching began.
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
    """Make one change of two of the same path.

    What was removed and created again counts as replaced, even if the number of the old inode
    was given to the new file; what was created and removed again counts as removed. What was
    written to and has its old size and times again counts as changed.
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
