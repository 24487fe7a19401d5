"""The operations of a mapping that wait for the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .._native import Receipt

if TYPE_CHECKING:
    from .._typing import Buffer


#: A checked write: an offset, and the bytes to store there.
Store = tuple[int, bytes | memoryview]
#: How many stores native code gets at a time: they take about half a millisecond of the GIL.
STORES_A_CALL = 2048


class Disk(Protocol):
    """The operations of a mapping that wait for the disk and fail with it, named as in ``Mapping``.

    For worker threads. They read ``FileCore.disk`` each time and keep no reference to it, because
    ``aiommap.testing`` replaces it, while a file is open, by a disk that fails or waits.
    """

    def read(self, offset: int, length: int, /) -> bytes: ...
    def read_into(self, offset: int, buffer: Buffer, /) -> int: ...
    def write_many(self, items: list[Store], /) -> list[Receipt | tuple[int, int]]: ...
    def append(self, pieces: list[bytes | memoryview], /) -> tuple[int, int, int]: ...
    def populate(self, offset: int, length: int, write: bool, /) -> int: ...
    def sync(self, metadata: bool, /) -> None: ...
    def sync_range(self, offset: int, length: int, /) -> None: ...


def write_in_parts(disk: Disk, stores: Sequence[Store]) -> list[Receipt | tuple[int, int]]:
    """Store in order, in parts: native code reads the items and makes the outcomes with the GIL."""
    outcomes: list[Receipt | tuple[int, int]] = []
    for at in range(0, len(stores), STORES_A_CALL):
        outcomes += disk.write_many(list(stores[at : at + STORES_A_CALL]))
    return outcomes


def find_hole(fd: int, start: int, end: int) -> int:
    """Find the first hole in a range; return the end of the range if there is none.

    The end of the file counts as a hole. On a file system without holes it is the only one.
    """
    if start == end:
        return end
    try:
        return min(os.lseek(fd, start, os.SEEK_HOLE), end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return start  # the file ends before the range
