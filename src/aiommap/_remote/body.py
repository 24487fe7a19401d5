"""``Body``: the bytes of an object that one response brought."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False, slots=True)  # not frozen: it would take three times as long to make
class Body:
    """Bytes of an object, as one response brought them; nobody changes it.

    Attributes:
        start: offset of the first byte in the object.
        data: the bytes.
        kept: whether all of them were stored in the cache.
    """

    start: int
    data: memoryview
    kept: bool = False

    @property
    def end(self) -> int:
        """Offset of the first byte behind them."""
        return self.start + len(self.data)

    def part(self, start: int, end: int) -> memoryview:
        """Return the bytes [start, end) of the object, which have to lie in this body."""
        return self.data[start - self.start : end - self.start]
