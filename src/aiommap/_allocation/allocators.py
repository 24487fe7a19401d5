"""The allocators of one file, and the public functions that round offsets.

Invariants.
  1  The open allocators of one file have disjoint spans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex

from .._arguments import check_tail, integer
from .._core.file_core import FileCore
from .._errors import OverlapError, ReceiptError
from .._native import PAGE_SIZE, export_bytes
from .._ranges import align_down as _align_down
from .._ranges import align_up as _align_up
from .allocator import RangeAllocator
from .table import AllocatedRange, Layout, check_alignment

if TYPE_CHECKING:
    from .._typing import Buffer


def align_down(offset: SupportsIndex, alignment: SupportsIndex = PAGE_SIZE) -> int:
    """Round an offset down to a multiple of the alignment, by default of the page size.

    Raises:
        ValueError: if the alignment is not a power of two.
    """
    return _align_down(integer(offset, "offset"), _alignment(alignment))


def align_up(offset: SupportsIndex, alignment: SupportsIndex = PAGE_SIZE) -> int:
    """Round an offset up to a multiple of the alignment, by default of the page size.

    Raises:
        ValueError: if the alignment is not a power of two.
    """
    return _align_up(integer(offset, "offset"), _alignment(alignment))


def _alignment(alignment: SupportsIndex) -> int:
    number = integer(alignment, "alignment")
    check_alignment(number)
    return number


class Allocators:
    """The allocators of one file; used on the loop thread."""

    __slots__ = ("_core", "_fresh", "_open")

    def __init__(self, core: FileCore) -> None:
        self._core = core
        # Whether opening made the file: then it is zeros, and all of it is free.
        self._fresh = core.unsynced.resized
        self._open: list[RangeAllocator] = []

    def make(
        self,
        start: SupportsIndex | None,
        alignment: SupportsIndex | None,
        end: SupportsIndex | None,
        state: Buffer | None,
    ) -> RangeAllocator:
        """Make an allocator; arguments as for ``MappedFile.allocator``."""
        self._core.check_usable()
        if state is None:
            layout = self._new_layout(start, alignment, end)
        elif start is None and alignment is None and end is None:
            layout = self._saved_layout(state)
        else:
            raise ValueError("pass state alone: it has its own start, alignment and end")
        self._open = [other for other in self._open if not other.closed]
        for other in self._open:
            if max(layout.start, other.start) < min(layout.end, other.end):
                raise OverlapError((layout.start, layout.end), (other.start, other.end))
        made = RangeAllocator(self._core, layout)
        self._open.append(made)
        self._fresh = False
        return made

    def _new_layout(
        self,
        start: SupportsIndex | None,
        alignment: SupportsIndex | None,
        end: SupportsIndex | None,
    ) -> Layout:
        if start is None and not self._fresh:
            raise ValueError(
                f"{self._core.path} may hold ranges that were handed out before: pass state=, "
                "saved with RangeAllocator.state(), or start=, the first byte that is free"
            )
        low = 0 if start is None else integer(start, "start")
        length = None if end is None else integer(end, "end") - low
        low, count = check_tail(low, length, self._core.mapping.size)
        return Layout(low, low + count, 1 if alignment is None else _alignment(alignment))

    def _saved_layout(self, state: Buffer) -> Layout:
        layout = Layout.decode(bytes(export_bytes(state)))
        size = self._core.mapping.size
        if layout.end > size:
            raise ValueError(
                f"the saved state is of a file of at least {layout.end} bytes, and "
                f"{self._core.path} has {size}: use the state that was saved with it"
            )
        return layout

    def locate(self, allocated: AllocatedRange) -> tuple[int, int]:
        """Return offset and length of a range, after a check that it is valid and of this file."""
        if not isinstance(allocated, AllocatedRange):
            raise TypeError(f"{allocated!r} is no AllocatedRange: get one from an allocator")
        if allocated._owner not in self._open:  # noqa: SLF001  to check it is why it is there
            raise ReceiptError(f"{allocated!r} is of no open allocator of {self._core.path}")
        if not allocated.valid:
            raise ReceiptError(
                f"{allocated!r} was freed or split, or its allocator closed: allocate another one"
            )
        return allocated.offset, allocated.length

    def close(self) -> None:
        """Close the open allocators, because the file is being closed."""
        for allocator in self._open:
            allocator.close()
