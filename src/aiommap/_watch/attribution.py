"""Which changes of a file are our own: activity of the hub's open files, and what it explains.

The kernel does not say who changed a file, so this is decided from two *samples* of what this
hub's files did, one from before the earlier stat and one from after the later one.

Invariants.
  1  Times that moved are our own doing if a file of this hub that is the same inode stored,
      resized or was about to in between; if the kernel told of an event, mapped stores do not
      count, since it tells of none of them.
  2  Another size is our own doing only if one of our resizes, or the growth that a store through
      a growable view brought about, ended in between and left just it.
  3  Another inode, owner, permission or number of links is never our own doing.
  4  While a resize or growth of ours is under way, or if one ended while the later stat was made,
      nothing can be said: one looks again afterwards. So the later stat stands between two samples.
  5  A file that was closed is kept in account while another of its inode is open.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from .._core.file_state import FileState, Identity
from .._core.own_activity import OwnActivity

#: So many files of an inode are remembered once they are closed, for the size that they left.
CLOSED_FILES = 8


class SizeLeft(NamedTuple):
    """The size that one file left the inode with; equal to another one if it changed none since.

    Growth by a store is counted by nobody, but until the next resize each is longer than the last.
    """

    number: int
    resizes: int
    grown: int
    size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What the files of one inode had done at one moment.

    ``stores`` counts mapped stores, of which the kernel tells nobody, and ``calls`` all that it
    tells of; ``storing`` and ``calling`` say whether more of it was under way. ``left`` has the
    files that ever changed the size.
    """

    stores: int
    calls: int
    storing: bool
    calling: bool
    resizing: bool
    left: frozenset[SizeLeft]


class _Files(NamedTuple):
    """The open files of one inode, numbered, and what the closed ones had done."""

    opened: tuple[tuple[int, OwnActivity], ...] = ()
    stores: int = 0
    calls: int = 0
    left: tuple[SizeLeft, ...] = ()


class OwnChanges:
    """The writable files of one hub, by inode.

    Files come and go on the loop thread; samples are taken in any thread, which is safe because
    what there is of an inode is replaced as a whole and never changed.
    """

    __slots__ = ("_files", "_numbers")

    def __init__(self) -> None:
        self._files: dict[Identity, _Files] = {}
        self._numbers = itertools.count()

    def add(self, file: OwnActivity) -> None:
        """Count what a file does from now on."""
        files = self._files.get(file.identity, _Files())
        opened = (*files.opened, (next(self._numbers), file))
        self._files[file.identity] = files._replace(opened=opened)

    def remove(self, file: OwnActivity) -> None:
        """Keep what a file has done, and let go of it."""
        files = self._files.get(file.identity, _Files())
        closed = [entry for entry in files.opened if entry[1] is file]
        if not closed:
            return
        opened = tuple(entry for entry in files.opened if entry[1] is not file)
        if not opened:
            del self._files[file.identity]
            return
        self._files[file.identity] = _Files(
            opened,
            files.stores + _stores(file),
            files.calls + file.offloaded_writes,
            (*files.left, *_left_by(closed))[-CLOSED_FILES:],
        )

    def sample(self, inode: Identity) -> Sample | None:
        """Say what this hub's files of an inode have done so far; None if it has none."""
        entry = self._files.get(inode)
        if entry is None:
            return None
        files = [file for _, file in entry.opened]
        # First, so that a change which this does not see under way is seen below.
        resizing = any(file.being_resized for file in files)
        return Sample(
            stores=entry.stores + sum(map(_stores, files)),
            calls=entry.calls + sum(file.offloaded_writes for file in files),
            storing=any(file.mapping.writable_leases or file.touching for file in files),
            calling=any(file.queued_bytes or file.durable_stores for file in files),
            resizing=resizing,
            left=frozenset((*entry.left, *_left_by(entry.opened))),
        )


def _stores(file: OwnActivity) -> int:
    mapping = file.mapping  # what was stored through memory that was lent is told by nothing else
    return mapping.sequence + mapping.ended_leases + file.touches


def _left_by(files: Iterable[tuple[int, OwnActivity]]) -> list[SizeLeft]:
    return [
        SizeLeft(number, file.size_changes, file.mapping.grown, file.mapping.file_end)
        for number, file in files
        if file.size_changes or file.mapping.grown
    ]


_NOTHING = Sample(0, 0, storing=False, calling=False, resizing=False, left=frozenset())


def size_is_stable(before: Sample | None, after: Sample | None) -> bool:
    """Tell whether no size of ours can have changed between two samples (attribution.4)."""
    if after is None or before is None:
        return after is None or not after.resizing
    return not (before.resizing or after.resizing) and before.left == after.left


def made_syscalls(before: Sample | None, after: Sample | None) -> bool:
    """Tell whether we may have done something that the kernel tells watchers of."""
    if after is None:
        return before is not None  # closed meanwhile, with whatever that flushed
    before = before or _NOTHING
    moved = before.calls != after.calls or not after.left <= before.left
    return moved or before.calling or after.calling


def stored_mapped(before: Sample | None, after: Sample | None) -> bool:
    """Tell whether we may have stored through a mapping."""
    if after is None:
        return before is not None
    before = before or _NOTHING
    return before.stores != after.stores or before.storing or after.storing


def _left(old: int, new: int, before: Sample | None, after: Sample | None) -> int:
    """Say which size we left the file with; what it has now, where that is one of several."""
    if after is None:
        return new if before is not None and before.resizing else old
    sizes = {left.size for left in after.left - (before or _NOTHING).left}
    return new if new in sizes else max(sizes, default=old)


def subtract_own(
    old: FileState, new: FileState, before: Sample | None, after: Sample | None, *, told: bool
) -> FileState:
    """Return the old state with what we did ourselves put in: equal to the new one if that is all.

    Args:
        told: whether an event of the kernel led here, and none that our own calls may have made.
    """
    size = _left(old.size, new.size, before, after)
    if not (made_syscalls(before, after) or (not told and stored_mapped(before, after))):
        return replace(old, size=size)
    return replace(old, size=size, mtime_ns=new.mtime_ns, ctime_ns=new.ctime_ns)
