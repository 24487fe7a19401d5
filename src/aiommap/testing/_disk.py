"""The seam: a disk over the real disk of one open file, which fails or waits as faults tell it.

Theory of operation. Worker threads reach the disk through ``FileCore.disk``, which is the native
mapping. While a fault is in place, it is a ``FaultyDisk``, which asks the fault first and then
calls the mapping. Everything around the call is the library's own code: it handles the error, or
waits, as it does in production.

Invariants.
  1  A file has at most one faulty disk, with any number of faults, added and removed in any order.
     The removal of the last one puts the mapping back.
  2  If a fault has to see reads or stores, inline verbs decline, as for data that is not in memory,
     so that a worker runs the verb.
  3  A fault is for one file. Allocating blocks does not call the mapping, so there the descriptor
     identifies the file.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from aiommap import MappedFile, Snapshot
from aiommap._core.disk import Store
from aiommap._core.file_core import FileCore
from aiommap._native import Receipt
from aiommap._runtime.threads import Mutex
from aiommap._typing import Buffer

#: The kinds of calls that a worker makes to the disk: read, store, and make durable.
Call = Literal["read", "write", "flush"]


class InjectedFault:
    """A fault that is in place.

    Attributes:
        hits: how many calls have met it so far; a test should check that there was one.
    """

    #: Whether the fault has to see reads and stores (disk.2).
    _sees_inline_verbs = False

    def __init__(self) -> None:
        self.hits: int = 0
        self._changing = Mutex()

    # Worker threads only, from here on.

    def _count_hit(self) -> None:
        with self._changing:
            self.hits += 1

    def _meet(self, call: Call) -> None:
        """Wait or raise before a call."""

    def _has_room(self, offset: int, length: int) -> bool:  # noqa: ARG002  for those that look
        """Tell whether the disk takes a store."""
        return True


class FaultyDisk:
    """The disk of one file while there are faults."""

    def __init__(self, core: FileCore) -> None:
        self._core = core
        self._real = core.disk
        self._faults: list[InjectedFault] = []

    def add(self, fault: InjectedFault) -> None:
        """Add a fault; loop thread only."""
        self._faults.append(fault)
        self._lay()

    def remove(self, fault: InjectedFault) -> None:
        """Remove a fault; loop thread only."""
        self._faults.remove(fault)
        self._lay()

    def _lay(self) -> None:
        """Be the disk of the file if there are faults; put the mapping back if there are none."""
        seen = any(fault._sees_inline_verbs for fault in self._faults)  # noqa: SLF001  its other half
        self._core.use_disk(self if self._faults else None, declining=seen)

    # Worker threads only, from here on.

    def _meet(self, call: Call) -> None:
        for fault in tuple(self._faults):
            fault._meet(call)  # noqa: SLF001  its other half

    def read(self, offset: int, length: int, /) -> bytes:
        """Read as the mapping does."""
        self._meet("read")
        return self._real.read(offset, length)

    def read_into(self, offset: int, buffer: Buffer, /) -> int:
        """Fill a buffer as the mapping does."""
        self._meet("read")
        return self._real.read_into(offset, buffer)

    def populate(self, offset: int, length: int, write: bool, /) -> int:
        """Make pages present as the mapping does."""
        self._meet("read")
        return self._real.populate(offset, length, write)

    def sync(self, metadata: bool, /) -> None:
        """Flush everything as the mapping does."""
        self._meet("flush")
        self._real.sync(metadata)

    def sync_range(self, offset: int, length: int, /) -> None:
        """Flush a range as the mapping does."""
        self._meet("flush")
        self._real.sync_range(offset, length)

    def write_many(self, items: list[Store], /) -> list[Receipt | tuple[int, int]]:
        """Make the stores for which the disk has room; the others return the errno of a full disk.

        A store without room stores nothing: the mapping, too, makes all of its pages writable
        before it copies the first byte.
        """
        self._meet("write")
        taken = [self._has_room(offset, len(view)) for offset, view in items]
        stored = iter(self._real.write_many([*itertools.compress(items, taken)]))
        refused = (0, errno.ENOSPC)
        return [next(stored) if room else refused for room in taken]

    def append(self, pieces: list[bytes | memoryview], /) -> tuple[int, int, int]:
        """Append as the mapping does."""
        self._meet("write")
        return self._real.append(pieces)

    def _has_room(self, offset: int, length: int) -> bool:
        return all(fault._has_room(offset, length) for fault in tuple(self._faults))  # noqa: SLF001


def core_of(file: MappedFile | Snapshot) -> FileCore:
    """Return the core of an open file."""
    if not isinstance(file, MappedFile | Snapshot):
        raise TypeError(f"cannot make faults in {file!r}: give an open file or a snapshot")
    core = file._core  # noqa: SLF001  the seam is there
    core.check_usable()
    return core


@contextmanager
def in_place(core: FileCore, fault: InjectedFault) -> Iterator[None]:
    """Keep a fault in place for a block, however the block ends (disk.1)."""
    disk = core.disk if isinstance(core.disk, FaultyDisk) else FaultyDisk(core)
    disk.add(fault)
    try:
        yield
    finally:
        disk.remove(fault)
