"""The verbs of a mapped file that speak of allocated ranges, and the allocators of one file.

Invariants.
  1  The open allocators of one file have disjoint spans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex

from .._arguments import check_tail, integer
from .._core.file_core import FileCore
from .._core.receipt import WriteReceipt
from .._errors import OutOfBoundsError, OverlapError, ReceiptError
from .._native import PAGE_SIZE, export_bytes
from .._ranges import align_down as _align_down
from .._ranges import align_up as _align_up
from .allocator import RangeAllocator
from .table import AllocatedRange, Layout, check_alignment

if TYPE_CHECKING:
    from .._typing import Buffer


def align_down(offset: SupportsIndex, alignment: SupportsIndex = PAGE_SIZE) -> int:
    """Round an offset down to a multiple of the alignment, by default of a page of memory.

    Raises:
        ValueError: if the alignment is no power of two.
    """
    return _align_down(integer(offset, "offset"), _alignment(alignment))


def align_up(offset: SupportsIndex, alignment: SupportsIndex = PAGE_SIZE) -> int:
    """Round an offset up to a multiple of the alignment, by default of a page of memory.

    Raises:
        ValueError: if the alignment is no power of two.
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
        # Opening made it, of zeros, all of them free; ``reopen`` makes nothing.
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
        """Return offset and length of a range once it is known to be valid, and of this file."""
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
        """Close what is still open, when the file is."""
        for allocator in self._open:
            allocator.close()


class RangedVerbs:
    """What ``MappedFile`` does with allocators and their ranges."""

    __slots__ = ()

    if TYPE_CHECKING:
        _core: FileCore
        _allocators: Allocators

        async def read(self, offset: SupportsIndex, length: SupportsIndex) -> bytes: ...
        async def write(self, offset: SupportsIndex, data: Buffer) -> WriteReceipt: ...

    def allocator(
        self,
        start: SupportsIndex | None = None,
        alignment: SupportsIndex | None = None,
        *,
        end: SupportsIndex | None = None,
        state: Buffer | None = None,
    ) -> RangeAllocator:
        """Make an allocator for a span of the file.

        Args:
            start: first byte of the span, from the start of the file, all of it free. May be left
                out for the first allocator of a file opened with "w+" or "x+", and is then 0; any
                other file may hold ranges handed out before, so nothing is assumed.
            alignment: what offsets of ranges are a multiple of; a power of two, often
                ``aiommap.PAGE_SIZE``. None means 1.
            end: first byte behind the span; None means the size of the file at this moment. What
                the file grows by later can have an allocator of its own.
            state: what ``RangeAllocator.state`` returned; it stands for the other three.
        Raises:
            ValueError: if neither start nor state is given where one is needed, if both are, or if
                the state is damaged or of a longer file.
            OutOfBoundsError: if the span leaves the file.
            OverlapError: if the span shares bytes with that of another open allocator of the file.
        """
        return self._allocators.make(start, alignment, end, state)

    async def write_range(self, allocated: AllocatedRange, data: Buffer) -> WriteReceipt:
        """Write an allocated range, all of it; otherwise as ``write``.

        Args:
            allocated: a valid range of this file. It has to stay so until this returns.
            data: any C-contiguous buffer of exactly ``allocated.length`` bytes.
        Returns:
            The receipt for exactly the bytes of the range.
        Raises:
            ReceiptError: if the range was freed or split, or is another file's.
            OutOfBoundsError: if the data has another length than the range, or if the file was cut
                off below its end. Nothing was written then, nor after a ReceiptError.
            As ``write``.
        Cancellation: as ``write``.
        """
        self._core.check_writable("write to")
        offset, length = self._allocators.locate(allocated)
        view = export_bytes(data)
        count = len(view)
        if count != length:
            raise OutOfBoundsError(
                offset,
                count,
                length,
                f"{count} bytes for {allocated!r}: exactly {length} are needed",
            )
        return await self.write(offset, view)

    async def read_range(self, allocated: AllocatedRange) -> bytes:
        """Read an allocated range, all of it; otherwise as ``read``.

        Args:
            allocated: a valid range of this file.
        Raises:
            ReceiptError: if the range was freed or split, or is another file's.
            As ``read``.
        Cancellation: as ``read``.
        """
        self._core.check_usable()
        return await self.read(*self._allocators.locate(allocated))
