"""Attribution: which changes of a file are our own.

The kernel does not say who changed a file. So we compare two *samples* of what the open files of
this hub did: one taken before the earlier stat, and one taken after the later stat.

Invariants.
  1  A change of the times is ours if one of our files on that inode stored or resized, or was about
     to, between the two samples. If an inotify event reported the change, mapped stores do not
     count: they raise no event.
  2  A change of the size is ours only if one of our resizes, or a store of ours through a growable
     view, ended between the two samples and left exactly that size, and if no append of ours met
     bytes that others had appended.
  3  A change of inode, owner, permissions or number of links is never ours.
  4  While a resize or growth of ours runs, or if one ended during the later stat, a change cannot
     be attributed: the caller compares again. So the later stat stands between two samples.
  5  A closed file stays in the account while another file of its inode is open.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from .._core.file_state import FileState, Identity
from .._core.own_activity import OwnActivity

#: How many closed files of an inode are remembered, for the size that each left.
CLOSED_FILES = 8


class SizeLeft(NamedTuple):
    """The size to which one file last changed the inode; equal until it changes the size again.

    No counter counts growth by stores. It shows all the same: until the next resize, each growth
    makes the file longer. ``foreign`` counts how often others had appended bytes before that size.
    """

    number: int
    resizes: int
    grown: int
    size: int
    foreign: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What the files of one inode had done at one moment.

    ``stores`` counts all stores, also mapped ones, which raise no event. ``calls`` counts the
    system calls that raise one. ``storing`` and ``calling`` say whether more were under way.
    ``left`` has an item for each file that ever changed the size.
    """

    stores: int
    calls: int
    storing: bool
    calling: bool
    resizing: bool
    left: frozenset[SizeLeft]


class _Files(NamedTuple):
    """The open files of one inode, each with a number, and what the closed ones had done."""

    opened: tuple[tuple[int, OwnActivity], ...] = ()
    stores: int = 0
    calls: int = 0
    left: tuple[SizeLeft, ...] = ()


class OwnChanges:
    """The writable files of one hub, by inode.

    The loop thread adds and removes files; any thread takes samples. That is safe because the loop
    thread replaces the entry of an inode as a whole, and never changes one.
    """

    __slots__ = ("__weakref__", "_files", "_numbers")

    def __init__(self) -> None:
        self._files: dict[Identity, _Files] = {}
        self._numbers = itertools.count()

    def add(self, file: OwnActivity) -> None:
        """Count what a file does, from now on."""
        files = self._files.get(file.identity, _Files())
        opened = (*files.opened, (next(self._numbers), file))
        self._files[file.identity] = files._replace(opened=opened)

    def remove(self, file: OwnActivity) -> None:
        """Forget a file, but remember what it has done (attribution.5)."""
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
            files.calls + file.calls,
            (*files.left, *_left_by(closed))[-CLOSED_FILES:],
        )

    def sample(self, inode: Identity) -> Sample | None:
        """Return what this hub's files of an inode have done so far; None if there is none."""
        entry = self._files.get(inode)
        if entry is None:
            return None
        files = [file for _, file in entry.opened]
        # Read these first: ``left`` and the counts show what begins or ends later.
        resizing = any(file.being_resized for file in files)
        calling = any(file.calling for file in files)
        return Sample(
            stores=entry.stores + sum(map(_stores, files)),
            calls=entry.calls + sum(file.calls for file in files),
            storing=any(file.mapping.writable_leases or file.touching for file in files),
            calling=calling,
            resizing=resizing,
            left=frozenset((*entry.left, *_left_by(entry.opened))),
        )


def _stores(file: OwnActivity) -> int:
    mapping = file.mapping  # nothing else counts stores through the memory of a view
    return mapping.sequence + mapping.ended_leases + file.touches


def _left_by(files: Iterable[tuple[int, OwnActivity]]) -> list[SizeLeft]:
    return [
        SizeLeft(
            number,
            file.size_changes,
            file.mapping.grown,
            file.mapping.file_end,
            file.foreign_growth,
        )
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
    """Tell whether we may have made a system call that raises an event."""
    if after is None:
        return before is not None  # the file was closed meanwhile, and closing may flush
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
    """Return the size that we left, or the old one; the new one if it is among several we left."""
    if after is None:
        return new if before is not None and before.resizing else old
    known = (before or _NOTHING).left
    met = {left.number: left.foreign for left in known}
    if any(left.foreign > met.get(left.number, 0) for left in after.left):
        return old
    sizes = {left.size for left in after.left - known}
    return new if new in sizes else max(sizes, default=old)


def subtract_own(
    old: FileState,
    new: FileState,
    before: Sample | None,
    after: Sample | None,
    *,
    event_is_foreign: bool,
) -> FileState:
    """Return the old state with our own changes applied: equal to the new one if all are ours.

    Args:
        event_is_foreign: whether an event led here that no system call of ours can have raised.
    """
    size = _left(old.size, new.size, before, after)
    if not (
        made_syscalls(before, after) or (not event_is_foreign and stored_mapped(before, after))
    ):
        return replace(old, size=size)
    return replace(old, size=size, mtime_ns=new.mtime_ns, ctime_ns=new.ctime_ns)


def rests_on_mapped_stores(
    old: FileState, new: FileState, before: Sample | None, after: Sample | None
) -> bool:
    """Tell whether a difference is ours, but would not be if a foreign event led to it."""
    explained = subtract_own(old, new, before, after, event_is_foreign=False)
    return explained == new != subtract_own(old, new, before, after, event_is_foreign=True)
