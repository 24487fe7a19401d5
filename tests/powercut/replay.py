"""What a power cut leaves on the disk, worked out from a log. Pure.

The disk keeps all that a successful sync covered. Of the rest it keeps what it likes, as a disk
with a volatile cache does:

  R1  Each sector of 512 bytes holds any one of the contents it has had since the newest one that
      is certain, whatever the other sectors hold: writes are torn and reordered.
  R2  The size of a file is any one that it has had since, whatever the sectors hold.
  R3  Of the changes of the directory any may be lost, each as a whole: a rename never loses both
      names. Only a sync of the directory makes them certain. That is stricter than ext4, where
      syncing a new file happens to keep its name, too.
  R4  A sync covers what was done before it was asked for, and nothing that was done meanwhile.
  R5  A later sync that succeeds does not cover what a failed one was to cover: the kernel has
      marked the pages clean and does not write them again. Only writing them again helps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Generic, TypeVar

from tests.powercut.records import (
    DIRECTORY,
    Create,
    Record,
    Rename,
    Resize,
    SyncBegin,
    SyncEnd,
    Unlink,
    Write,
)

SECTOR = 512

#: Given a number n, picks one of 0 to n - 1; 0 is the choice where nothing unsynced survives.
Choose = Callable[[int], int]

T = TypeVar("T")


def nothing_survives(choices: int) -> int:
    """Choose the worst for whatever was not synced: all of it is lost."""
    return 0


def mostly_survives(rng: Random, share: float) -> Choose:
    """Choose the newest for this share of it: what lies behind a torn part is often whole."""
    return lambda choices: choices - 1 if rng.random() < share else rng.randrange(choices)


class _History(Generic[T]):
    """The values something had, oldest first; the first is certain to be on the disk."""

    def __init__(self, value: T) -> None:
        self._values = [(-1, value)]

    def add(self, position: int, value: T) -> None:
        self._values.append((position, value))

    def settle(self, failed: int, begun: int) -> None:
        """Make the newest value certain that was set after ``failed`` and before ``begun``."""
        covered = [i for i, (at, _) in enumerate(self._values) if failed < at < begun]
        if covered:
            del self._values[: covered[-1]]

    def pick(self, choose: Choose) -> T:
        return self._values[choose(len(self._values))][1]


class _File:
    """One file: what the page cache holds, and the histories of its size and sectors."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._size = _History(0)
        self._sectors: dict[int, _History[bytes]] = {}
        self._failed = -1

    def write(self, position: int, offset: int, data: bytes) -> None:
        old, end = len(self._content), offset + len(data)
        self._content.extend(bytes(max(0, end - old)))
        self._content[offset:end] = data
        self._note(position, offset, end)
        if end > old:
            self._size.add(position, end)

    def resize(self, position: int, size: int) -> None:
        old = len(self._content)
        del self._content[size:]
        self._content.extend(bytes(size - len(self._content)))
        self._note(position, size, old)  # what was cut off reads as zeros should it come back
        self._size.add(position, size)

    def _note(self, position: int, start: int, end: int) -> None:
        for number in range(start // SECTOR, -(-end // SECTOR)):
            content = bytes(self._content[number * SECTOR : (number + 1) * SECTOR])
            history = self._sectors.setdefault(number, _History(bytes(SECTOR)))
            history.add(position, content.ljust(SECTOR, b"\0"))

    def synced(self, begun: int, *, ok: bool) -> None:
        if not ok:
            self._failed = begun  # R5
            return
        for history in (self._size, *self._sectors.values()):
            history.settle(self._failed, begun)

    def image(self, choose: Choose) -> bytes:
        size = self._size.pick(choose)
        image = bytearray(size)
        for number, history in self._sectors.items():
            start = number * SECTOR
            content = history.pick(choose)[: max(0, size - start)]
            image[start : start + len(content)] = content
        return bytes(image)


class _Directory:
    """The names: what is certain, and the changes that are not."""

    def __init__(self) -> None:
        self._entries: dict[str, int | None] = {}
        self._changes: list[tuple[int, dict[str, int | None]]] = []
        self._failed = -1

    def change(self, position: int, entries: dict[str, int | None]) -> None:
        self._changes.append((position, entries))

    def synced(self, begun: int, *, ok: bool) -> None:
        if not ok:
            self._failed = begun  # R5
            return
        waiting, self._changes = self._changes, []
        for position, entries in waiting:
            if self._failed < position < begun:
                self._entries.update(entries)
            else:
                self._changes.append((position, entries))

    def image(self, choose: Choose) -> dict[str, int]:
        entries = dict(self._entries)
        for _, change in self._changes:
            if choose(2):
                entries.update(change)
        return {name: inode for name, inode in entries.items() if inode is not None}


class Disk:
    """Follows a log record by record and tells at any point what a power cut would leave.

    Attributes:
        position: how many records it has followed.
    """

    def __init__(self) -> None:
        self.position = 0
        self._directory = _Directory()
        self._files: dict[int, _File] = {}
        self._syncs: dict[int, tuple[int, int]] = {}

    def follow(self, records: Sequence[Record]) -> None:
        """Take the next records of the log."""
        for record in records:
            self._apply(record)
            self.position += 1

    def power_cut(self, choose: Choose) -> dict[str, bytes]:
        """Tell what is on the disk if the power is cut here: the content of each file by name."""
        entries = self._directory.image(choose)
        return {name: self._files[inode].image(choose) for name, inode in entries.items()}

    def _apply(self, record: Record) -> None:
        match record:
            case Create(name, inode):
                self._files[inode] = _File()
                self._directory.change(self.position, {name: inode})
            case Rename(old, new, inode):
                self._directory.change(self.position, {old: None, new: inode})
            case Unlink(name):
                self._directory.change(self.position, {name: None})
            case Write(inode, offset, data):
                self._files[inode].write(self.position, offset, data)
            case Resize(inode, size):
                self._files[inode].resize(self.position, size)
            case SyncBegin(ticket, inode):
                self._syncs[ticket] = self.position, inode
            case SyncEnd(ticket, ok):
                begun, inode = self._syncs.pop(ticket)
                target = self._directory if inode == DIRECTORY else self._files[inode]
                target.synced(begun, ok=ok)
