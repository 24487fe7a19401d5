"""Residency: which pages of a file are in memory, as runs, totals and a chart of fixed width.

Pure: other modules ask the kernel for the runs, and this one only does the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Chart cells from empty to full: a blank, then the eight steps of a terminal sparkline.
_CELLS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Residency:
    """Which pages of a range were resident (in the page cache) at one moment.

    Nothing keeps a page resident afterwards: the kernel may drop it before this object is read.

    Attributes:
        resident: number of resident pages.
        total: number of pages the range touches.
        runs: resident byte ranges ``(offset, end)`` in file order, rounded outward to pages and
            clipped to the range that was asked for.
        offset: first byte of the range asked for.
        length: its length in bytes.
    """

    resident: int
    total: int
    runs: tuple[tuple[int, int], ...]
    offset: int
    length: int

    @property
    def resident_bytes(self) -> int:
        """Bytes of the range that were resident."""
        return sum(end - offset for offset, end in self.runs)

    @property
    def fraction(self) -> float:
        """Share of the range that was resident, 0.0 to 1.0; an empty range counts as 1.0."""
        return self.resident_bytes / self.length if self.length else 1.0

    def cells(self, width: int) -> tuple[float, ...]:
        """Divide the range into equal cells and return the resident share of each.

        Args:
            width: number of cells; at least 1.
        Returns:
            One share (0.0 to 1.0) per cell, shape (width,); all 1.0 for an empty range.
        Raises:
            ValueError: if the width is not positive.
        """
        if width < 1:
            raise ValueError(f"asked for a chart of {width} cells: it needs at least 1")
        if not self.length:
            return (1.0,) * width
        # Count in units of 1/width byte: then every cell is ``length`` units wide, even if the
        # range has fewer bytes than cells.
        size = self.length
        covered = [0] * width
        for offset, end in self.runs:
            low, high = (offset - self.offset) * width, (end - self.offset) * width
            for cell in range(low // size, min(width, -(-high // size))):
                covered[cell] += min(high, (cell + 1) * size) - max(low, cell * size)
        return tuple(part / size for part in covered)

    def chart(self, width: int = 60) -> str:
        """Draw the range as one line of block characters, one per cell; a blank is empty."""
        return "".join(_cell(share) for share in self.cells(width))


def _cell(share: float) -> str:
    """Pick a block so that only an empty cell is blank and only a full one is full."""
    if share <= 0.0:
        return _CELLS[0]
    if share >= 1.0:
        return _CELLS[-1]
    return _CELLS[min(max(1, round(share * (len(_CELLS) - 1))), len(_CELLS) - 2)]
