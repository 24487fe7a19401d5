"""What a mapping does that waits for the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .._native import Receipt

if TYPE_CHECKING:
    from .._typing import Buffer


#: A write that was checked: an offset, and the bytes to store there.
Store = tuple[int, bytes | memoryview]
#: So many stores are handed to native code at a time, about half a millisecond of the GIL.
STORES_A_CALL = 2048


class Disk(Protocol):
    """What a mapping does that waits for the disk and fails with it; the words are ``Mapping``'s.

    For worker threads. They read ``FileCore.disk`` each time and keep no reference to it, because
    ``aiommap.testing`` lays a disk that fails or waits over it while a file is open.
    """

    def read(self, offset: int, length: int, /) -> bytes: ...
    def read_into(self, offset: int, buffer: Buffer, /) -> int: ...
    def write_many(self, items: list[Store], /) -> list[Receipt | tuple[int, int]]: ...
    def append(self, pieces: list[bytes | memoryview], /) -> tuple[int, int, int]: ...
    def populate(self, offset: int, length: int, write: bool, /) -> int: ...
    def sync(self, metadata: bool, /) -> None: ...
    def sync_range(self, offset: int, length: int, /) -> None: ...


def write_in_parts(disk: Disk, stores: Sequence[Store]) -> list[Receipt | tuple[int, int]]:
    """Store in order, in parts: native code takes them in, and makes the outcomes, with the GIL."""
    outcomes: list[Receipt | tuple[int, int]] = []
    for at in range(0, len(stores), STORES_A_CALL):
        outcomes += disk.write_many(list(stores[at : at + STORES_A_CALL]))
    return outcomes


def find_hole(fd: int, start: int, end: int) -> int:
    """Tell where the first hole in a range is, which the end of the file is too; its end if none.

    A file system without holes has only the one at the end.
    """
    if start == end:
        return end
    try:
        return min(os.lseek(fd, start, os.SEEK_HOLE), end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return start  # the file ends before it
