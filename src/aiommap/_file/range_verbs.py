"""The verbs that a file and a view share: a file is a view of all of itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, SupportsIndex, cast, overload

from .._arguments import integer, items_of
from .._core.receipt import WriteReceipt
from .._flush.requests import Request
from .._ipc.atomics import (
    U32_BYTES,
    U64_BYTES,
    AtomicU32,
    AtomicU32Array,
    AtomicU64,
    AtomicU64Array,
)
from .._native import export_bytes
from .read_verbs import ReadVerbs

if TYPE_CHECKING:
    from .._typing import Buffer


class RangeVerbs(ReadVerbs):
    """All verbs of a range of a file; those that change no byte are in ``read_verbs``."""

    __slots__ = ()

    def _placed_items(self, items: Iterable[tuple[int, Buffer]]) -> Iterable[tuple[int, Buffer]]:
        """Do as ``_place`` with each piece of data."""
        exported = ((offset, export_bytes(data)) for offset, data in items_of(items))
        return ((self._place(offset, len(memory))[0], memory) for offset, memory in exported)

    async def write(self, offset: SupportsIndex, data: Buffer) -> WriteReceipt:
        """Write bytes within the file or the view.

        When it returns, the bytes are visible to every mapper and reader of the file (in mode
        "c": to this object only). How durable they are is the flush policy's and the receipt's
        matter.

        Args:
            offset: first byte, from the start of the file or the view.
            data: any C-contiguous memory but Python objects, whatever its elements; a view of this
                same file must not overlap the range.
        Raises:
            OutOfBoundsError: if the range leaves the file or the view; see ``resize``.
            AccessModeError: in mode "r".
            FlushError: if a flush failed, now or earlier.
            MappingFaultError: if the file was truncated below the range.
            TypeError: if the data is no buffer, or one of Python objects.
            BufferError: if it is not C-contiguous.
            OSError: ENOSPC if the disk is full behind a sparse file. Nothing was stored then, or
                the first pages, if only later ones had no blocks.
        Cancellation: a write not yet begun is withdrawn and never applied; one that has begun is
            applied whole before the cancellation is delivered.
        Durability: visible; durable on return under ``FlushPolicy.always()``.
        """
        memory = export_bytes(data)
        start, _ = self._place(offset, len(memory))
        receipt = self._core.mapping.write_inline(start, memory)
        if receipt is None:
            return await self._open.writer.write(start, memory)
        return cast("WriteReceipt", receipt)

    async def write_many(self, items: Iterable[tuple[int, Buffer]]) -> WriteReceipt:
        """Write several pieces in order, in one hop to a worker at most.

        Args:
            items: (offset, data) pairs, as for ``write``.
        Returns:
            One receipt for all: it spans from the lowest offset to the highest end.
        Raises:
            As ``write``; every range is checked before any is written. A ``resize`` under way
                that cuts later items off may let the first ones be stored.
        Cancellation: withdrawn whole if nothing was stored yet; once a part was, the rest is
            applied before the cancellation is delivered.
        Durability: as ``write``.
        """
        self._core.check_loop()
        return await self._open.writer.write_many(self._placed_items(items))

    @overload
    async def flush_range(self, offset: WriteReceipt, /) -> None: ...
    @overload
    async def flush_range(self, offset: SupportsIndex, length: SupportsIndex) -> None: ...
    async def flush_range(
        self, offset: SupportsIndex | WriteReceipt, length: SupportsIndex | None = None
    ) -> None:
        """Make a range, or the bytes of one receipt, durable.

        The range is rounded outward to pages. Others stay dirty, unless the size was changed.

        Args:
            offset: a receipt of this file; or the first byte, from the start of the file or the
                view.
            length: number of bytes, if the offset is no receipt.
        Raises:
            ReceiptError: if the receipt is another file's.
            OutOfBoundsError: if the range leaves the file or the view.
            FlushError: as ``flush``.
        Cancellation: as ``flush``.
        Durability: durable for the range; metadata as far as reading the range back needs it.
        Source: msync(2) with MS_SYNC; as ``flush`` where nothing else is dirty.
        """
        self._check()
        if isinstance(offset, WriteReceipt):
            await self._open.flush_receipt(offset)
            return
        if length is None:
            raise TypeError("flush_range takes a receipt, or an offset and a length")
        start, count = self._range(offset, length)
        if self._core.flushable:
            await self._open.flusher.submit(Request(start, start + count))

    async def start_writeback(
        self, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> None:
        """Begin to write dirty pages back, without waiting and without any promise.

        Args:
            offset: first byte, from the start of the file or the view.
            length: number of bytes; None means to the end of the file or the view.
        Raises:
            OutOfBoundsError: if the range leaves the file or the view.
            UnsupportedError: if the platform lacks the call.
        Cancellation: one that has begun is waited out.
        Durability: none; it only makes a later ``flush`` shorter.
        Source: sync_file_range(2) with SYNC_FILE_RANGE_WRITE.
        """
        start, count = self._tail(offset, length)
        if self._core.flushable:
            await self._open.pager.start_writeback(start, count)

    def atomic_u32(self, offset: SupportsIndex) -> AtomicU32:
        """Make an object for the unsigned 32-bit word at an offset; nothing is touched.

        Raises:
            OutOfBoundsError: if the word leaves the file, or the view.
            AlignmentError: if it does not begin at a multiple of 4 bytes of the file.
        """
        return AtomicU32(self._open.words, self._range(offset, U32_BYTES)[0])

    def atomic_u64(self, offset: SupportsIndex) -> AtomicU64:
        """Make an object for the unsigned 64-bit word at an offset; nothing is touched.

        Raises:
            OutOfBoundsError: if the word leaves the file, or the view.
            AlignmentError: if it does not begin at a multiple of 8 bytes of the file.
        """
        return AtomicU64(self._open.words, self._range(offset, U64_BYTES)[0])

    def atomic_u32_array(self, offset: SupportsIndex, count: SupportsIndex) -> AtomicU32Array:
        """Make an object for ``count`` 32-bit words in a row; errors as ``atomic_u32``."""
        start = self._range(offset, integer(count, "count") * U32_BYTES)[0]
        return AtomicU32Array(self._open.words, start, count)

    def atomic_u64_array(self, offset: SupportsIndex, count: SupportsIndex) -> AtomicU64Array:
        """Make an object for ``count`` 64-bit words in a row; errors as ``atomic_u64``."""
        start = self._range(offset, integer(count, "count") * U64_BYTES)[0]
        return AtomicU64Array(self._open.words, start, count)
