"""Resizing: in place within the capacity, by a second mapping beyond it; views stay valid."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext

from ._core import Core
from ._errors import UnsupportedError
from ._native import PAGE_SIZE
from ._opening import reserve
from ._paging import Pager
from ._ranges import align_up


class Resizer:
    """Changes the size of one file. Worker threads only; one change at a time, and no flush then.

    Shrinking fences the tail before the file gives it up: live views read zeros there, and no
    page of ours is left that could fault.
    """

    __slots__ = ("_core", "_pager", "fenced")

    def __init__(self, core: Core, pager: Pager) -> None:
        self._core = core
        self._pager = pager
        self.fenced = False

    def resize(self, size: int) -> None:
        """Make the file ``size`` bytes long; on failure it has its old size."""
        core = self._core
        old = core.mapping.size
        try:
            if size > old:
                self._grow(old, size)
            elif size < old:
                self._shrink(old, size)
        except OSError as error:
            if error.filename is None:
                error.filename = core.path
            raise
        core.size_changed = core.resized = True

    def _grow(self, old: int, size: int) -> None:
        mapping = self._core.mapping
        actual = os.fstat(mapping.fd).st_size
        if not self._core.sparse:
            reserve(mapping.fd, old, size - old, actual)
        elif actual < size:
            os.ftruncate(mapping.fd, size)
        try:
            self._address(old, size)
        except BaseException:
            mapping.set_size(old)
            os.ftruncate(mapping.fd, actual)
            raise

    def follow(self, size: int) -> None:
        """Address as many bytes as the file has, since somebody else changed that."""
        mapping = self._core.mapping
        old = mapping.size
        if size < old:
            mapping.set_size(size)
            mapping.fence(align_up(size, PAGE_SIZE))
            self.fenced = True
            return
        try:
            self._address(old, size)
        except BaseException:
            mapping.set_size(old)
            raise

    def _address(self, old: int, size: int) -> None:
        mapping = self._core.mapping
        moved = size > mapping.capacity
        with self._pager.mapping_anew() if moved or self.fenced else nullcontext():
            if moved:
                mapping.rebase(size)
            if self.fenced:
                mapping.unfence(align_up(old, PAGE_SIZE), align_up(size, PAGE_SIZE))
            mapping.set_size(size)

    def _shrink(self, old: int, size: int) -> None:
        mapping = self._core.mapping
        mapping.set_size(size)
        tail = align_up(size, PAGE_SIZE)
        try:
            mapping.fence(tail)
            self.fenced = True
            os.ftruncate(mapping.fd, size)
        except OSError:
            mapping.unfence(tail, align_up(old, PAGE_SIZE))
            mapping.set_size(old)
            raise

    def punch_hole(self, offset: int, length: int) -> None:
        """Deallocate the blocks of a range."""
        core = self._core
        try:
            core.mapping.punch_hole(offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            reason = "this file system has no holes"
            raise UnsupportedError(f"punch a hole in {core.path}", reason, error.errno) from error
        core.size_changed = True  # metadata: fdatasync(2) need not cover it
