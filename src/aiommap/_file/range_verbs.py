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
    """All verbs of a range of a file; ``read_verbs`` has those that change no byte."""

    __slots__ = ()

    def _placed_items(self, items: Iterable[tuple[int, Buffer]]) -> Iterable[tuple[int, Buffer]]:
        """Do as ``_place`` with each piece of data."""
        exported = ((offset, export_bytes(data)) for offset, data in items_of(items))
        return ((self._place(offset, len(memory))[0], memory) for offset, memory in exported)

    async def write(self, offset: SupportsIndex, data: Buffer) -> WriteReceipt:
        """Write bytes within the file or the view.

        When it returns, every mapper and reader of the file sees the bytes (in mode "c": only this
        object does). The flush policy decides when they become durable; the receipt tells whether
        they are.

        Args:
            offset: first byte, from the start of the file or the view.
            data: any C-contiguous memory but Python objects, whatever its elements; a view of this
                same file must not overlap the range.
        Raises:
            OutOfBoundsError: if the range leaves the file or the view; see ``resize``.
            AccessModeError: in mode "r".
            FlushError: if a flush failed, now or earlier.
            MappingFaultError: if the file was truncated below the range.
            TypeError: if the data is not a buffer, or is a buffer of Python objects.
            BufferError: if the data is not C-contiguous.
            OSError: ENOSPC if the disk is full behind a sparse file. Then nothing was stored; or
                only the first pages, if later ones had no blocks.
        Cancellation: a write that has not begun is withdrawn and never applied; one that has begun
            is applied whole before the cancellation is delivered.
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
            As ``write``; every range is checked before any is written. If a ``resize`` under way
                cuts off later items, the first ones may have been stored.
        Cancellation: withdrawn whole if nothing was stored; once a part was stored, the rest is
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

        The range is rounded outward to pages. Other pages stay dirty, unless the size was changed.

        Args:
            offset: a receipt of this file; or the first byte, from the start of the file or the
                view.
            length: number of bytes; left out if the first argument is a receipt.
        Raises:
            ReceiptError: if the receipt belongs to another file.
            OutOfBoundsError: if the range leaves the file or the view.
            FlushError: as ``flush``.
        Cancellation: as ``flush``.
        Durability: durable for the range, with the metadata that reading it back needs.
        Source: msync(2) with MS_SYNC; as ``flush`` if nothing else is dirty.
        """
        self._check()
        if isinstance(offset, WriteReceipt):
            if length is not None:
                raise TypeError(f"flush_range got a receipt and length={length}: leave one out")
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
        """Begin to write dirty pages back, without waiting for the disk and without any promise.

        Args:
            offset: first byte, from the start of the file or the view.
            length: number of bytes; None means to the end of the file or the view.
        Raises:
            OutOfBoundsError: if the range leaves the file or the view.
            UnsupportedError: if the platform lacks the call.
        Cancellation: waits for a call that has begun.
        Durability: none; it only makes a later ``flush`` shorter.
        Source: sync_file_range(2) with SYNC_FILE_RANGE_WRITE.
        """
        start, count = self._tail(offset, length)
        if self._core.flushable:
            await self._open.pager.start_writeback(start, count)

    def atomic_u32(self, offset: SupportsIndex) -> AtomicU32:
        """Make an object for the unsigned 32-bit word at an offset, without touching the word.

        Raises:
            OutOfBoundsError: if the word leaves the file or the view.
            AlignmentError: if its offset in the file is not a multiple of 4.
        """
        return AtomicU32(self._open.words, self._range(offset, U32_BYTES)[0])

    def atomic_u64(self, offset: SupportsIndex) -> AtomicU64:
        """Make an object for the unsigned 64-bit word at an offset, without touching the word.

        Raises:
            OutOfBoundsError: if the word leaves the file or the view.
            AlignmentError: if its offset in the file is not a multiple of 8.
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
