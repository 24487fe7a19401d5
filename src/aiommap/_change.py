"""What happened to a watched path: states of a file, the kinds of change between two, merging.

Pure: a state is what stat(2) said at one moment, a change is the difference of two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple, Protocol


class ChangeKind(Enum):
    """What happened to a path, as far as the states before and after it tell.

    The first of these that applies is the kind, in this order: ``CREATED``, ``REMOVED``,
    ``REPLACED``, ``TRUNCATED`` or ``GROWN``, ``MODIFIED``, ``METADATA``, ``CHANGED``. A file that
    was rewritten and has another size now is therefore ``TRUNCATED`` or ``GROWN``: the states tell
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


class StatResult(Protocol):
    """What is read of an ``os.stat_result``."""

    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mode(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


class Identity(NamedTuple):
    """What tells a file from another one at the same path."""

    device: int
    inode: int

    @classmethod
    def of(cls, found: StatResult) -> Identity:
        """Take the identity out of a stat result."""
        return cls(found.st_dev, found.st_ino)


@dataclass(frozen=True, slots=True)
class FileState:
    """What stat(2) said of a file at one moment.

    Attributes:
        device: number of the file system it is on.
        inode: its number there; device and inode tell it from any other file.
        size: its length in bytes.
        mode: its type and permissions.
        links: how many names it has.
        user: number of its owner.
        group: number of its group.
        mtime_ns: when its bytes were modified, in nanoseconds since 1970.
        ctime_ns: when anything of it was changed, in nanoseconds since 1970.
    """

    device: int
    inode: int
    size: int
    mode: int
    links: int
    user: int
    group: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: StatResult) -> FileState:
        """Take the state out of a stat result."""
        return cls(
            device=found.st_dev,
            inode=found.st_ino,
            size=found.st_size,
            mode=found.st_mode,
            links=found.st_nlink,
            user=found.st_uid,
            group=found.st_gid,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
        )

    def is_same_file(self, other: FileState) -> bool:
        """Tell whether two states are of one file."""
        return (self.device, self.inode) == (other.device, other.inode)


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
        source: how it was found: "event" by the kernel telling of it, "poll" by looking,
            "start" because it had already happened when watching began.
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
