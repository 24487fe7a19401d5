"""Residency: which pages of a file are in memory, as runs, totals and a chart of fixed width.

Pure: the bitmap comes from the kernel elsewhere; this module only does the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Chart cells from empty to full; the same eight steps a terminal sparkline has.
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
        """
        if width < 1:
            raise ValueError(f"asked for a chart of {width} cells: it needs at least 1")
        if not self.length:
            return (1.0,) * width
        edges = [self.offset + self.length * i // width for i in range(width + 1)]
        covered = [0] * width
        cell = 0
        for offset, end in self.runs:
            while cell < width and edges[cell + 1] <= offset:
                cell += 1
            at = cell
            while at < width and edges[at] < end:
                covered[at] += max(0, min(end, edges[at + 1]) - max(offset, edges[at]))
                at += 1
        return tuple(
            covered[i] / (edges[i + 1] - edges[i]) if edges[i + 1] > edges[i] else 1.0
            for i in range(width)
        )

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
