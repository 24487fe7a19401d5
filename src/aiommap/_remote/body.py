"""What a response brought of an object."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes of the object, as a response brought them.

    Attributes:
        start: first byte.
        data: the bytes.
    """

    start: int
    data: memoryview

    @property
    def end(self) -> int:
        """First byte behind them."""
        return self.start + len(self.data)

    def part(self, start: int, end: int) -> memoryview:
        """Return a range of the object that lies in it."""
        return self.data[start - self.start : end - self.start]
