"""NumPy arrays laid over mapped bytes, without a copy.

The check of the arguments comes before the request for memory, because that makes a writable range
dirty.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from .._arguments import check_range, check_tail, integer
from .._errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    #: Shapes as NumPy takes them.
    Shape = SupportsIndex | Sequence[SupportsIndex]

Order = Literal["C", "F"]


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """The layout of an array that was checked to fit its range.

    Attributes:
        dtype: the type of its elements; not Python objects.
        shape: the number of elements in each dimension.
        order: which index varies fastest: the last one, "C", or the first, "F".
        offset, length: the bytes of the array, from the start of the range.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Order
    offset: int
    length: int

    @classmethod
    def check(
        cls,
        dtype: DTypeLike,
        shape: Shape | None,
        order: Order,
        offset: SupportsIndex,
        limit: int,
    ) -> ArrayLayout:
        """Check an array that begins at an offset in a range of ``limit`` bytes."""
        numpy = _imported_numpy(dtype)
        if dtype is None:
            raise TypeError('dtype is None: name one, such as "<f8"')
        if order not in ("C", "F"):
            raise ValueError(f'order is {reprlib.repr(order)}: use "C" or "F"')
        element: np.dtype[Any] = numpy.dtype(dtype)
        if element.hasobject:
            raise UnsupportedError(
                f"lay an array of {dtype!r} over a file",
                "its bytes would be taken for the addresses of Python objects; name a dtype of "
                "numbers, strings of fixed length, or records of those",
            )
        if not element.itemsize:
            raise ValueError(f"{dtype!r} describes no bytes: name a type that has some")
        lengths = (-1,) if shape is None else _lengths(shape)
        if -1 in lengths:
            rest = check_tail(offset, None, limit)
            lengths = _with_rest(lengths, dtype, element.itemsize, *rest)
        span = check_range(offset, math.prod(lengths) * element.itemsize, limit)
        try:  # with strides of zero, one byte of memory serves any shape that NumPy accepts
            numpy.ndarray(lengths, "u1", b"0", strides=(0,) * len(lengths))
        except ValueError as error:
            raise ValueError(f"shape is {reprlib.repr(lengths)}: {error}") from error
        if math.prod(filter(None, lengths)) * element.itemsize > sys.maxsize:
            raise ValueError(
                f"shape is {reprlib.repr(lengths)}: no process can address so much of {dtype!r}"
            )
        return cls(element, lengths, order, *span)

    def lay(self, memory: memoryview) -> NDArray[Any]:
        """Lay the array over memory of its length."""
        numpy = sys.modules["numpy"]
        laid: NDArray[Any] = numpy.ndarray(self.shape, self.dtype, memory, order=self.order)
        return laid


def _imported_numpy(dtype: object) -> ModuleType:
    """Return NumPy if the program imported it: an import here would read files on the loop (I1)."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        raise UnsupportedError(
            f"lay an array of {dtype!r} over a file",
            'the program has not imported NumPy: write "import aiommap.numpy", or "import numpy", '
            "at its head; without NumPy use View.struct() or View.memory",
        )
    return numpy


def _lengths(shape: Shape) -> tuple[int, ...]:
    """Check a shape: a number of elements, or one for each dimension, of which one may be -1."""
    if isinstance(shape, SupportsIndex) and not isinstance(shape, bool):
        lengths: tuple[int, ...] = (integer(shape, "shape"),)
    elif isinstance(shape, str | bytes) or not isinstance(shape, Iterable):
        raise TypeError(
            f"shape is {reprlib.repr(shape)}: give a number of elements, or a tuple of them"
        )
    else:
        lengths = tuple(_length(each, f"shape[{at}]") for at, each in enumerate(shape))
    if any(each < -1 for each in lengths) or lengths.count(-1) > 1:
        raise ValueError(
            f"shape is {lengths}: give numbers from 0, at most one of them -1, for what there is"
        )
    return lengths


def _length(value: object, name: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value}: give an integer")
    return integer(value, name)


def _with_rest(
    lengths: tuple[int, ...], dtype: object, size: int, offset: int, room: int
) -> tuple[int, ...]:
    """Replace -1 by the number with which the array fills the bytes that there are."""
    row = size * math.prod(each for each in lengths if each != -1)
    what = f"{dtype!r}" if lengths == (-1,) else f"{dtype!r} in the shape {lengths}"
    if not row:
        raise ValueError(f"shape is {lengths}: -1 stands for any number where another is 0")
    count, rest = divmod(room, row)
    if rest:
        raise ValueError(
            f"what there is from offset {offset} on, {room} bytes, is no whole number of {what}, "
            f"{row} bytes each: say how many in shape=, or make a view of {room - rest} bytes"
        )
    return tuple(count if each == -1 else each for each in lengths)
