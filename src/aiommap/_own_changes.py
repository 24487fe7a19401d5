"""Which changes of a file are our own: activity of the hub's open files, and what it explains.

The kernel does not say who changed a file, so this is decided from two *samples* of what this
hub's files did, one from before the earlier stat and one from after the later one.

Invariants.
  O1  Times that moved are our own doing if a file of this hub that is the same inode stored,
      resized or was about to in between; if the kernel told of an event, mapped stores do not
      count, since it tells of none of them.
  O2  Another size is our own doing only if one of our resizes ended in between and left just it.
  O3  Another inode, owner, permission or number of links is never our own doing.
  O4  While a resize of ours is under way nothing can be said: one looks again afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from ._change import FileState

Inode = tuple[int, int]


class Mapped(Protocol):
    """What is asked of a mapping; every answer is one step under the GIL."""

    @property
    def size(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def writable_leases(self) -> int: ...


class Writing(Protocol):
    """What is asked of an open file."""

    @property
    def mapping(self) -> Mapped: ...
    @property
    def inode(self) -> Inode: ...
    @property
    def offloaded_writes(self) -> int: ...
    @property
    def queued_bytes(self) -> int: ...
    @property
    def durable_stores(self) -> int: ...
    @property
    def size_changes(self) -> int: ...
    @property
    def touches(self) -> int: ...
    @property
    def touching(self) -> int: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """What the files of one inode had done at one moment.

    ``stores`` counts mapped stores, of which the kernel tells nobody, and ``calls`` all that it
    tells of; ``storing`` and ``calling`` say whether more of it was under way. ``sizes`` are what
    the files that were ever resized were left with.
    """

    stores: int
    calls: int
    resizes: int
    storing: bool
    calling: bool
    resizing: bool
    sizes: frozenset[int]


class OwnChanges:
    """The writable files of one hub, by inode.

    Files come and go on the loop thread; samples are taken in any thread, which is safe because
    a list is replaced and never changed.
    """

    __slots__ = ("_ended", "_files")

    def __init__(self) -> None:
        self._files: dict[Inode, tuple[Writing, ...]] = {}
        #: What closed files had done, so that the counts of a sample only ever grow.
        self._ended: dict[Inode, tuple[int, int, int]] = {}

    def add(self, file: Writing) -> None:
        """Count what a file does from now on."""
        self._files[file.inode] = (*self._files.get(file.inode, ()), file)

    def remove(self, file: Writing) -> None:
        """Keep what a file has done, and let go of it."""
        files = self._files.get(file.inode, ())
        others = tuple(other for other in files if other is not file)
        if len(others) == len(files):
            return
        if others:
            stores, calls, resizes = self._ended.get(file.inode, (0, 0, 0))
            self._ended[file.inode] = (
                stores + file.mapping.sequence + file.touches,
                calls + file.offloaded_writes,
                resizes + file.size_changes,
            )
            self._files[file.inode] = others
        else:
            self._files.pop(file.inode, None)
            self._ended.pop(file.inode, None)

    def sample(self, inode: Inode) -> Sample | None:
        """Say what this hub's files of an inode have done so far; None if it has none."""
        files = self._files.get(inode)
        if files is None:
            return None
        stores, calls, resizes = self._ended.get(inode, (0, 0, 0))
        return Sample(
            stores=stores + sum(file.mapping.sequence + file.touches for file in files),
            calls=calls + sum(file.offloaded_writes for file in files),
            resizes=resizes + sum(file.size_changes for file in files),
            storing=any(file.mapping.writable_leases or file.touching for file in files),
            calling=any(file.queued_bytes or file.durable_stores for file in files),
            resizing=any(file.size_changes % 2 for file in files),
            sizes=frozenset(file.mapping.size for file in files if file.size_changes),
        )


_NOTHING = Sample(0, 0, 0, storing=False, calling=False, resizing=False, sizes=frozenset())


def called(before: Sample | None, after: Sample | None) -> bool:
    """Tell whether we may have done something that the kernel tells watchers of."""
    if after is None:
        return before is not None  # closed meanwhile, with whatever that flushed
    before = before or _NOTHING
    moved = (before.calls, before.resizes) != (after.calls, after.resizes)
    return moved or before.calling or after.calling


def stored(before: Sample | None, after: Sample | None) -> bool:
    """Tell whether we may have stored through a mapping."""
    if after is None:
        return before is not None
    before = before or _NOTHING
    return before.stores != after.stores or before.storing or after.storing


def _left(old: int, new: int, before: Sample | None, after: Sample | None) -> int:
    """Say which size we left the file with; what it has now, where that is one of several."""
    if after is None:
        return new if before is not None and before.resizing else old
    if (before or _NOTHING).resizes == after.resizes or not after.sizes:
        return old
    return new if new in after.sizes else max(after.sizes)


def without_own(
    old: FileState, new: FileState, before: Sample | None, after: Sample | None, *, told: bool
) -> FileState:
    """Return the old state with what we did ourselves put in: equal to the new one if that is all.

    Args:
        told: whether an event of the kernel led here, and none that our own calls may have made.
    """
    size = _left(old.size, new.size, before, after)
    if not (called(before, after) or (not told and stored(before, after))):
        return replace(old, size=size)
    return replace(old, size=size, mtime_ns=new.mtime_ns, ctime_ns=new.ctime_ns)
