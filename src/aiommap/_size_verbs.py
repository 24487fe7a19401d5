"""The verbs of a mapped file that change its size, or which blocks it has."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, SupportsIndex

from ._arguments import byte_count
from ._core import Core
from ._errors import AccessModeError
from ._flush import Flusher
from ._ranges import check_range
from ._resizing import Resizer, change_size


class SizedVerbs:
    """What ``MappedFile`` does about its size."""

    __slots__ = ()

    if TYPE_CHECKING:
        _core: Core
        _flusher: Flusher
        _resizer: Resizer

        @property
        def size(self) -> int: ...
        @property
        def capacity(self) -> int: ...

    async def resize(self, new_size: SupportsIndex) -> None:
        """Change the size of the file.

        Up to ``capacity`` nothing moves. Beyond it the file is mapped anew, and views made before
        keep the old mapping of the same bytes. Views of a part that is cut off read zeros there.

        Args:
            new_size: bytes that the file is to have.
        Raises:
            AccessModeError: in modes "r" and "c".
            ValueError: if the size is negative, or more than a process can map.
            FlushError: if a flush failed earlier, or others cut off what was written here and
                not flushed; it latches.
            OSError: ENOSPC if the disk is full; the file then has its old size.
        Cancellation: one that has begun is waited out.
        Durability: visible; the size is durable with the next ``flush``, of whatever range.
        """
        self._core.check_growable("resize")
        size = byte_count(new_size, "new_size")
        await change_size(self._core, self._flusher, partial(self._resizer.resize, size))

    async def ensure(self, size: SupportsIndex) -> None:
        """Make sure that bytes up to ``size`` are there, with blocks reserved unless sparse.

        The way to let a system call (``recv_into``, ``readinto``) store beyond the end through a
        growable view: the kernel grows no file for those, they fail with EFAULT. Nothing moves, and
        nothing is ever cut off. While it is open the file ends at a page boundary from then on.

        Args:
            size: bytes; at most ``capacity``.
        Raises:
            AccessModeError: in modes "r" and "c".
            OutOfBoundsError: if it is more than ``capacity``.
            FlushError: as ``resize``.
            OSError: ENOSPC if the disk is full; the file then has its old size.
        Cancellation: one that has begun is waited out.
        Durability: as ``resize``.
        """
        self._core.check_growable("grow")
        wanted, _ = check_range(size, 0, self.capacity)
        await change_size(self._core, self._flusher, partial(self._resizer.ensure, wanted))

    async def punch_hole(self, offset: SupportsIndex, length: SupportsIndex) -> None:
        """Give the blocks of a range back to the file system; the bytes then read as zeros.

        Args:
            offset: first byte, from the start of the file.
            length: number of bytes.
        Raises:
            AccessModeError: in modes "r" and "c".
            OutOfBoundsError: if the range leaves the file.
            UnsupportedError: if the file system has no holes.
        Cancellation: one that has begun is waited out.
        Durability: visible; durable with the next ``flush``, of whatever range.
        Source: fallocate(2) with FALLOC_FL_PUNCH_HOLE.
        """
        self._core.check_writable("punch a hole in", 'open it with "r+"')
        if self._core.mode == "c":
            raise AccessModeError("punch a hole in", "c", 'private changes are not files: use "r+"')
        start, count = check_range(offset, length, self.size)
        with self._core.activity():
            await self._core.lanes.wait_stored()
            await self._flusher.change(partial(self._resizer.punch_hole, start, count))
