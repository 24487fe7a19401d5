"""Typed views: records and arrays laid over the memory of a view, without a copy.

Sizes are checked before the memory is asked for, as asking makes a writable view dirty.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from .._errors import UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


_NATIVE_ORDER = "<" if sys.byteorder == "little" else ">"


def _spellings() -> Iterator[tuple[str, str]]:
    """Yield NumPy's names of the types that a memoryview knows as well, each with its own code."""
    for word, codes in {"int": "bhiq", "uint": "BHIQ", "float": "fd", "bool": "?"}.items():
        for code in codes:
            size = struct.calcsize(code)
            yield word if word == "bool" else f"{word}{8 * size}", code
            orders = ("", "=", "|", "<", ">") if size == 1 else ("", "=", _NATIVE_ORDER)
            yield from ((f"{order}{word[0]}{size}", code) for order in orders)


_CODES = dict(_spellings())


class Records(Sequence[tuple[Any, ...]]):
    """Records of one ``struct`` format in the memory of a view; made by ``View.struct``.

    A sequence of tuples: ``records[i]`` unpacks one, ``records[i] = values`` packs one, iterating
    unpacks all, and a slice is the same records seen through another ``Records``. Nothing is
    copied but the record that is asked for.

    Concurrency: reading a record while another thread or process stores it may see a part of
        each; readers and writers of one record have to agree on turns.
    """

    __slots__ = ("_memory", "_places", "_struct")

    def __init__(
        self, record: struct.Struct, memory: memoryview, places: range | None = None
    ) -> None:
        self._struct = record
        self._memory = memory
        # Where each record begins. Slices of a range are ranges, so slices of slices come free.
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
        # Packed first and copied then: pack_into clears the record before it looks at the values,
        # so that others could see zeros, and values that do not fit would leave them there.
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
    """Compile a format once it is known that a view of so many bytes is whole records of it."""
    if not isinstance(layout, str | bytes):
        raise TypeError(f"layout is {layout!r}: give a format of struct, such as '<IH'")
    record = struct.Struct(layout)
    _check_whole(length, record.size, layout)
    return record


def check_array(dtype: DTypeLike, length: int) -> Callable[[memoryview], Any]:
    """Return what lays an array over memory of so many bytes, once it is known to fit."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        code = _native_code(dtype)
        _check_whole(length, struct.calcsize(code), dtype)
        return lambda memory: memory.cast(code)  # type: ignore[call-overload]
    element = numpy.dtype(dtype)
    _check_whole(length, element.itemsize, dtype)
    # Not numpy.ndarray, which takes the bytes for pointers if the elements are objects.
    return lambda memory: numpy.frombuffer(memory, element)


def _native_code(dtype: object) -> str:
    """Translate a NumPy name into the code of a memoryview, which knows native types alone."""
    code = _CODES.get(str(dtype))
    if code is None:
        raise UnsupportedError(
            f"lay an array of {dtype!r} over a view",
            "without NumPy it has to be one of i1 i2 i4 i8 u1 u2 u4 u8 f4 f8 b1, or like uint64, "
            f"in this machine's byte order ({_NATIVE_ORDER}): import numpy before, for all that "
            "numpy.dtype knows, or use struct()",
        )
    return code


def _check_whole(length: int, size: int, layout: object) -> None:
    if not size:
        raise ValueError(f"{layout!r} describes no bytes: name at least one field")
    if length % size:
        raise ValueError(
            f"a view of {length} bytes is no whole number of {layout!r}, {size} bytes each: "
            f"make a view of {length - length % size} or {length - length % size + size} bytes"
        )
