"""What a mapping does that waits for the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .._native import Receipt

if TYPE_CHECKING:
    from .._typing import Buffer


#: A write that was checked: an offset, and the bytes to store there.
Store = tuple[int, bytes | memoryview]


class Disk(Protocol):
    """What a mapping does that waits for the disk and fails with it; the words are ``Mapping``'s.

    For worker threads. They read ``FileCore.disk`` each time and keep no reference to it, because
    ``aiommap.testing`` lays a disk that fails or waits over it while a file is open.
    """

    def read(self, offset: int, length: int, /) -> bytes: ...
    def read_into(self, offset: int, buffer: Buffer, /) -> int: ...
    def write_many(self, items: list[Store], /) -> list[Receipt | tuple[int, int]]: ...
    def populate(self, offset: int, length: int, write: bool, /) -> int: ...
    def sync(self, metadata: bool, /) -> None: ...
    def sync_range(self, offset: int, length: int, /) -> None: ...
