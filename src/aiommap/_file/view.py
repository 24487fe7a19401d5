"""Views: sub-ranges that share one mapping and keep its pages mapped."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn, Self, SupportsIndex

import anyio

from .._arguments import Name, check_disjoint, check_range, check_tail
from .._errors import ForkedError, not_copied
from .._native import Lease
from .open_file import OpenFile
from .range_verbs import RangeVerbs
from .read_verbs import ReadVerbs
from .records import Records, check_records
from .statistics import caller_outside


class Carving(ReadVerbs):
    """The verb that makes many views at once; of files, views and snapshots."""

    __slots__ = ()

    def _part(self, offset: int, length: int) -> View:
        """Make a view of a part that is known to lie in the range."""
        raise NotImplementedError

    def carve(self, parts: Mapping[Name, tuple[SupportsIndex, SupportsIndex]]) -> dict[Name, View]:
        """Make named views of disjoint parts, all of them or none.

        This is one synchronous call of about 2 µs a part, and nothing else runs on the loop
        meanwhile: carve more than some thousands of parts in several calls.

        Args:
            parts: (offset, length) by name, in any order, with gaps or without, in bytes from the
                start of the file or the view. Parts may begin and end at any byte; ``flush``,
                ``prewarm`` and the like round to pages.
        Returns:
            One view per part, under the same names in the same order.
        Raises:
            OutOfBoundsError: if a part leaves the file or the view.
            OverlapError: if two parts share a byte; the message names both parts.
            TypeError: if a part is not a pair of integers; the message names the part.
        """
        self._check()
        checked = check_disjoint(parts, len(self))
        return {name: self._part(*part) for name, part in checked.items()}


class View(Carving, RangeVerbs):
    """A range of a mapped file: the same verbs, with offsets relative to the view.

    The pages that a view covers stay mapped until the view is released, also after the file was
    resized within its capacity or closed. A view is released by ``release``, at the end of a
    ``with`` block, or when the view and everything made from its ``memory`` are garbage.

    A view belongs to the file that was mapped when it was made. After a ``reopen`` that moved, its
    ``memory`` remains usable, and its verbs raise ``anyio.ClosedResourceError``.

    Concurrency: as for the file. Several views may cover the same bytes.
    """

    __slots__ = (
        "__weakref__",
        "_anchor",
        "_growable",
        "_keeps",
        "_lease",
        "_length",
        "_memory",
        "_offset",
    )

    def __init__(
        self,
        opened: OpenFile,
        offset: int,
        length: int,
        *,
        growable: bool = False,
        keeps: object = None,
        anchor: object = None,
    ) -> None:
        super().__init__(opened)
        #: An object that lives as long as the lease, in the view or in memory made from it.
        self._anchor = anchor
        self._offset = offset
        self._length = length
        self._growable = growable
        self._lease: Lease | None = self._take_lease(writable=growable)
        self._memory: memoryview | None = None
        #: An object that lives as long as the view.
        self._keeps = keeps

    @property
    def offset(self) -> int:
        """First byte of the view, from the start of the file."""
        return self._offset

    @property
    def length(self) -> int:
        """Length of the view in bytes."""
        return self._length

    def __len__(self) -> int:
        return self._length

    @property
    def memory(self) -> memoryview:
        """The bytes themselves, without a copy: shape (length,), format 'B'.

        It is read-only in mode "r", and if you first ask for it after the file was closed. The
        range counts as dirty for as long as there is writable memory of it. Touching a page that
        is not resident blocks the calling thread: prewarm first. Touching a page that the file has
        lost reads zeros, or stores nothing, and poisons the file: every later verb raises. See
        docs/safety.

        Raises:
            MappingFaultError: if the file is poisoned.
            anyio.ClosedResourceError: if the view was released.
            OutOfBoundsError: if the file was resized to end before the view does.
            ForkedError: if another process opened the file.
        """
        if self._memory is None:
            self._check_memory()
            lease = self._held()
            if self._core.mode != "r" and not self._core.mapping.closed:
                lease = self._take_lease(writable=True)
            self._lease = lease
            self._memory = memoryview(lease)
            self._open.background.plan()
        return self._memory

    def _take_lease(self, *, writable: bool) -> Lease:
        mapping, place = self._core.mapping, caller_outside()
        if self._growable:
            return mapping.lease_growable(self._offset, self._length, place)
        return mapping.lease(self._offset, self._length, writable, place, self._anchor)

    def release(self) -> None:
        """Give up the pages; objects made from ``memory`` keep them mapped until they are gone."""
        self._memory = None
        self._lease = None
        self._keeps = None
        self._anchor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def view(self, offset: SupportsIndex = 0, length: SupportsIndex | None = None) -> View:
        """Make a view of a part of this view.

        Raises:
            OutOfBoundsError: if the part leaves this view.
            anyio.ClosedResourceError: if the file is closed or this view was released.
        """
        self._check()
        return self._part(*check_tail(offset, length, self._length))

    def _part(self, offset: int, length: int) -> View:
        start, growable = self._offset + offset, self._growable
        keeps, anchor = self._keeps, self._anchor
        return View(self._open, start, length, growable=growable, keeps=keeps, anchor=anchor)

    def split_at(self, position: SupportsIndex) -> tuple[View, View]:
        """Replace this view by two that meet at a position and cover the same bytes.

        Args:
            position: where the second view starts, in bytes from the start of this one;
                0 <= position <= length.
        Raises:
            OutOfBoundsError: if the position is outside the view, which then stays as it is.
        """
        low, _ = check_range(position, 0, self._length)
        parts = self.view(0, low), self.view(low, self._length - low)
        self.release()
        return parts

    def struct(self, layout: str) -> Records:
        """Lay records of a ``struct`` format over the memory of the view, without a copy.

        The records follow the rules of ``memory``: in writable modes the view counts as dirty for
        as long as you hold them, and they keep its pages mapped after ``release``.

        Args:
            layout: the format of one record, as for ``struct``. Any byte order, any alignment.
        Raises:
            ValueError: if the view is not a whole number of records, or a record has no bytes.
            struct.error: if the format is not valid.
            As ``memory``.
        """
        record = check_records(layout, self._length)
        return Records(record, self.memory)

    async def flush(self) -> None:
        """Make the bytes of the view durable; see ``flush_range``."""
        await self.flush_range(0, self._length)

    def _check_memory(self) -> None:
        self._held()
        if self._core.mapping.forked:
            raise ForkedError(self._core.path)
        self._core.check_whole()
        self._core.check_mapped()

    def _memory_of(self, offset: int, length: int) -> memoryview:
        return self.memory[offset : offset + length]

    @property
    def _first(self) -> int:
        return self._offset

    def _held(self) -> Lease:
        if self._lease is None:
            raise anyio.ClosedResourceError("the view was released: make a new one to go on")
        return self._lease

    def _place(self, offset: SupportsIndex, length: SupportsIndex) -> tuple[int, int]:
        self._check_range()
        start, count = check_range(offset, length, self._length)
        return self._offset + start, count

    def _check_range(self) -> None:
        """Raise if the file was reopened: verbs would reach other bytes than the memory shows."""
        self._held()
        if self._core.lifecycle.retired:
            raise self._core.lifecycle.ended()

    def __reduce__(self) -> NoReturn:
        remedy = "pass the file, and the offset and length of the view, and make another one"
        raise not_copied(self, remedy)

    def __repr__(self) -> str:
        state = "released" if self._lease is None else "held"
        end = self._offset + self._length
        return f"<View of {self._core.path} [{self._offset}, {end}) {state}>"
