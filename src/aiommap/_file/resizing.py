"""Resizing: in place within the capacity, by a second mapping beyond it; views stay valid.

Every change of size is an item of the commit queue (flusher.2). ``OpenFile.change_size`` submits
it, and ``Resizer`` does it in the worker thread.

Invariants.
  1  While there is a growable view, the file ends at a page boundary. A store into the rest of a
      last page would not fault, and would never reach the file. The resizer publishes the end, then
      checks for growable views. A view registers itself, then checks the published end. Whichever
      runs second sees the other.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from .._core.file_core import FileCore
from .._core.lengths import cannot_resize, too_long
from .._core.mapping_limit import mapping_limit_soon, naming_the_want
from .._core.opening import reserve, reserve_shared
from .._errors import (
    AlignmentError,
    OutOfBoundsError,
    UnsupportedError,
    name_file,
)
from .._ipc.futex import check_all_words
from .._native import PAGE_SIZE
from .._pages.pager import Pager
from .._ranges import align_up

Made = TypeVar("Made")

#: Bounds for the addresses that appending reserves ahead: as many bytes as the file has, within
#: these. Addresses cost next to nothing; to map the file again costs more the longer it is.
MIN_ROOM_BYTES = 16 << 20
MAX_ROOM_BYTES = 1 << 30

#: Trimming searches the end of the file for zeros in pieces of this number of bytes.
TRIM_BYTES = 1 << 20


class Resizer:
    """Changes the size of one file. Worker threads only; one change at a time, beside no flush.

    Shrinking fences the tail that the file gives up: live views read zeros there. Each change is
    one step of the mapping (mapping.3): it is done whole or not at all.
    """

    __slots__ = ("_core", "_ending", "_pager")

    def __init__(self, core: FileCore, pager: Pager) -> None:
        self._core = core
        self._pager = pager
        #: Where a change under way may end the file, if that is inside a page (resizing.1).
        self._ending: int | None = None

    @property
    def fenced(self) -> bool:
        """Whether live views have fenced pages, which have to be mapped again when it grows."""
        return self._core.mapping.fenced

    def _hides_loss(self, actual: int, size: int) -> bool:
        """Tell whether others cut the file to ``actual`` bytes, and so dirty bytes below ``size``.

        Whole pages are dirty: one that reaches beyond the end counts, as it does for a flush.
        """
        core = self._core
        if actual >= min(size, core.mapping.size) or not core.shared_writable:
            return False
        return any(start < size and stop > actual for start, stop in core.mapping.dirty_runs())

    def resize(self, size: int) -> bool:
        """Make the file ``size`` bytes long; on failure it has its old size.

        Return False, with nothing done, if others cut off stores: zeros would take their place.
        """
        mapping = self._core.mapping
        if self._hides_loss(os.fstat(mapping.fd).st_size, size):
            return False
        old = mapping.size
        with self._resizing(size):
            # Also shrink behind what verbs can address: stores behind an odd size, blocks ahead.
            if size < max(old, mapping.file_end) or size == old < mapping.reserved_end:
                self._shrink(size)
            elif size > old:
                self._grow(old, size, floor=size)
        return True

    @contextmanager
    def _resizing(self, size: int) -> Iterator[None]:
        """Name the file in errors of the block, and have the next flush sync the new size."""
        core = self._core
        try:
            with naming_the_want(core.path, size):
                yield
        except OSError as error:
            if error.errno == errno.EPROTO:  # native code found another length than it had set
                raise cannot_resize(core.path, size) from error
            if error.errno == errno.EFBIG:
                raise too_long(core.path, size) from error
            if error.filename is None:
                name_file(error, core.path)
            raise
        core.unsynced.note_resize()

    def _grow(self, old: int, size: int, *, floor: int, whole_pages: bool = False) -> None:
        mapping = self._core.mapping
        actual = os.fstat(mapping.fd).st_size
        self._make_room(size)
        with self._end_for(size, whole_pages=whole_pages) as end:
            if not self._core.options.sparse:
                reserve(mapping.fd, old, end - old, actual)
            try:
                with self._pager.remapping() if self.fenced else nullcontext():
                    mapping.extend(size, end, actual, floor)
            except BaseException:
                if mapping.size > old:  # pages could not be locked again
                    mapping.truncate(old)
                raise

    def _make_room(self, size: int) -> None:
        """Reserve addresses for this number of bytes, without changing the file."""
        if size > self._core.mapping.capacity:
            with self._pager.remapping():
                self._core.mapping.rebase(size)

    @contextmanager
    def _end_for(self, size: int, *, whole_pages: bool = False) -> Iterator[int]:
        """Yield where a file of ``size`` bytes has to end, and let it end there (resizing.1)."""
        self._ending = size if size % PAGE_SIZE and not whole_pages else None
        try:
            whole = whole_pages or self._core.mapping.growable_leases
            yield align_up(size, PAGE_SIZE) if whole else size
        finally:
            self._ending = None

    def follow(self) -> bool:
        """Let verbs address as many bytes as the file has, whoever changed its size.

        Return False as ``resize`` does.
        """
        mapping = self._core.mapping
        actual = os.fstat(mapping.fd).st_size
        if self._hides_loss(actual, mapping.size):
            return False
        with naming_the_want(self._core.path, actual):
            self._follow(actual)
        return True

    def _follow(self, size: int) -> None:
        mapping = self._core.mapping
        old = mapping.size
        self._make_room(size)
        with (
            self._end_for(size) as end,
            self._pager.remapping() if (self.fenced and size > old) else nullcontext(),
        ):
            # The size does not count as set by others if a growable view may be growing the file
            # at this moment, or if such a store made it what it is.
            growing = mapping.growable_leases or size == mapping.file_end
            mapping.adopt(size, end, size < old or not growing)
        if size < old:
            check_all_words()

    def follow_others(self) -> bool:
        """Take over a length that others changed; in "a+", where others append, only a cut.

        Return False as ``resize`` does.
        """
        mapping = self._core.mapping
        actual, _ = mapping.stat()
        if actual == mapping.file_end or (self._appends and actual > mapping.size):
            return True
        return self.follow()

    def make_room_behind(self, length: int) -> None:
        """Reserve addresses for this number of bytes behind the end, and more ahead if possible."""
        mapping = self._core.mapping
        wanted = max(mapping.size, mapping.file_end) + length
        if align_up(wanted, PAGE_SIZE) <= mapping.capacity:
            return
        ahead = min(max(wanted, MIN_ROOM_BYTES), MAX_ROOM_BYTES)
        with naming_the_want(self._core.path, wanted):
            try:
                self._make_room(wanted + ahead)
            except OSError:
                self._make_room(wanted)

    def reach(self, end: int) -> None:
        """Let verbs address the file up to the end of what was appended."""
        mapping = self._core.mapping
        with naming_the_want(self._core.path, end):
            self._make_room(end)
            with (
                self._pager.remapping() if self.fenced else nullcontext(),
                self._end_for(end) as last,
            ):
                mapping.extend(end, max(last, mapping.file_end), -1, end)

    def cut_to(self, start: int) -> bool:
        """Take over that others had cut the file to ``start`` when we appended.

        Return False, with nothing done, if that lost stores: the next flush reports it.
        """
        if self._hides_loss(start, self._core.mapping.size):
            return False
        with naming_the_want(self._core.path, start):
            self._follow(start)
        return True

    @property
    def _appends(self) -> bool:
        return self._core.options.mode.appends

    def _shrink(self, size: int) -> None:
        with self._end_for(size):
            self._core.mapping.truncate(size)
        check_all_words()

    def ensure(self, size: int) -> bool:
        """Make the file at least ``size`` bytes long, and end it at a page boundary.

        Return False as ``resize`` does.
        """
        mapping = self._core.mapping
        old = mapping.size
        if self._hides_loss(os.fstat(mapping.fd).st_size, max(old, size)):
            return False
        if self._appends:
            with self._resizing(size):
                reserve_shared(mapping.fd, size, sparse=self._core.options.sparse)
            return self.follow()
        with self._resizing(max(old, size)):
            # Only ``size`` is kept at close: bytes that stores added before may still be trimmed.
            self._grow(old, max(old, size), floor=size, whole_pages=True)
        return True

    def check_room(self, capacity: int | None) -> None:
        """Raise if the file was opened without capacity and has no room; on the loop thread.

        A file that has used up the capacity it was opened with raises nothing here.
        """
        mapping, path = self._core.mapping, self._core.path
        end, room = mapping.file_end, mapping.capacity
        if capacity is None and align_up(end, PAGE_SIZE) >= room:
            reason = (
                f"{path} was opened without capacity, so that stores cannot make it longer than "
                f"its {end} bytes: open it with capacity=, the most bytes that it may get"
            )
            raise OutOfBoundsError(end, 1, room, reason)

    def check_whole_pages(self) -> None:
        """Raise unless the file ends, and will end, at a page boundary; on the loop thread."""
        end = self._ending or self._core.mapping.file_end
        if end % PAGE_SIZE:
            reason = (
                f"{self._core.path} ends at byte {end}, or is being made to, and a file can only "
                f"grow from a page boundary: call ensure({end}) first"
            )
            raise AlignmentError(PAGE_SIZE, end, reason)

    def with_whole_pages(self, make: Callable[[], Made]) -> Made:
        """Make a growable view, or raise as ``check_whole_pages``; on the loop thread.

        See resizing.1.
        """
        self.check_whole_pages()
        try:
            with naming_the_want(self._core.path, self._core.mapping.capacity, mapping_limit_soon):
                made = make()
        except ValueError:
            self.check_whole_pages()
            raise
        except OSError as error:
            name_file(error, self._core.path)
            raise
        self.check_whole_pages()
        return made

    @property
    def wants_trim(self) -> bool:
        """Whether growth may have made the file longer than its used length."""
        mapping = self._core.mapping
        if self._appends:  # appending.3
            return False
        longest = max(mapping.size, mapping.file_end, mapping.reserved_end)
        return longest > mapping.min_kept_length

    def trim(self) -> None:
        """Stop growth, and cut the file to its used length."""
        core, mapping = self._core, self._core.mapping
        mapping.stop_growth()
        end = mapping.file_end
        if os.fstat(mapping.fd).st_size != end:  # somebody else made it longer, or shorter
            return
        used = self._used(mapping.min_kept_length, end)
        self._shrink(used)  # even to the same length: that gives back the blocks behind it
        core.unsynced.note_resize()

    def _used(self, floor: int, end: int) -> int:
        """Find the end of the last page behind ``floor`` that holds anything but zeros."""
        fd = self._core.mapping.fd
        while end > floor:
            start = max(floor, end - TRIM_BYTES)
            try:
                data = os.lseek(fd, start, os.SEEK_DATA) < end
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = False  # a hole up to the end of the file
            kept = os.pread(fd, end - start, start).rstrip(b"\0") if data else b""
            if kept:
                return min(end, align_up(start + len(kept), PAGE_SIZE))
            end = start
        return floor

    def punch_hole(self, offset: int, length: int) -> None:
        """Deallocate the blocks of a range."""
        core = self._core
        try:
            core.mapping.punch_hole(offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                name_file(error, core.path)
                raise
            reason = "this file system has no holes"
            raise UnsupportedError(f"punch a hole in {core.path}", reason, error.errno) from error
        core.unsynced.note_blocks()
