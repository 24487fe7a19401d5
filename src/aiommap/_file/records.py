"""Typed views: records of a ``struct`` format laid over the memory of a view, without a copy.

The check of sizes comes before the request for memory, because that makes a writable view dirty.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex, overload


class Records(Sequence[tuple[Any, ...]]):
    """Records of one ``struct`` format in the memory of a view; made by ``View.struct``.

    This is a sequence of tuples. ``records[i]`` unpacks one record, ``records[i] = values`` packs
    one, and iterating unpacks all. A slice is another ``Records`` over the same memory. Only the
    record that you ask for is copied.

    Concurrency: a read while another thread or process stores the same record may see parts of
        the old and the new record; the program has to keep the two apart.
    """

    __slots__ = ("_memory", "_places", "_struct")

    def __init__(
        self, record: struct.Struct, memory: memoryview, places: range | None = None
    ) -> None:
        self._struct = record
        self._memory = memory
        # Where each record begins. A slice of a range is a range, so slices need no more code.
        self._places = range(0, len(memory), record.size) if places is None else places

    @property
    def layout(self) -> str:
        """The format of one record."""
        return self._struct.format

    @property
    def itemsize(self) -> int:
        """Bytes of one record."""
        return self._struct.size

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: SupportsIndex) -> tuple[Any, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: SupportsIndex | slice) -> tuple[Any, ...] | Records:
        if isinstance(index, slice):
            return Records(self._struct, self._memory, self._places[index])
        return self._struct.unpack_from(self._memory, self._place(index))

    def __setitem__(self, index: SupportsIndex, values: Iterable[Any]) -> None:
        place = self._place(index)
        # Pack first, then copy: pack_into clears the record before it looks at the values. Others
        # could see the zeros, and values that do not fit would leave them there.
        self._memory[place : place + self._struct.size] = self._struct.pack(*values)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        memory, places = self._memory, self._places
        if places.step == self._struct.size:
            return self._struct.iter_unpack(memory[places.start : places.stop])
        return (self._struct.unpack_from(memory, place) for place in places)

    def _place(self, index: SupportsIndex) -> int:
        try:
            return self._places[index]
        except IndexError:
            raise IndexError(f"record {index} of {self!r}: the first is number 0") from None

    def __repr__(self) -> str:
        return f"<{len(self)} records of {self.layout!r}, {self.itemsize} bytes each>"


def check_records(layout: str, length: int) -> struct.Struct:
    """Compile a format, and check that this number of bytes is a whole number of its records."""
    if not isinstance(layout, str | bytes):
        raise TypeError(f"layout is {layout!r}: give a format of struct, such as '<IH'")
    record = struct.Struct(layout)
    size = record.size
    if not size:
        raise ValueError(f"{layout!r} describes no bytes: name at least one field")
    if length % size:
        raise ValueError(
            f"a view of {length} bytes is no whole number of {layout!r}, {size} bytes each: "
            f"make a view of {length - length % size} or {length - length % size + size} bytes"
        )
    return record
