"""The screen of a terminal: rich's colours and tables, and a progress bar of our own.

The bar is not rich's: rendering a frame of rich's takes milliseconds of pure Python, on the loop
or beside it under the same interpreter lock, and would be the worst stall of what it shows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._screen import Progress, Screen, Span
from ._text import format_bytes, format_rate, format_share

_BAR_CELLS = 40
_FRAME_SECONDS = 0.05


class TerminalScreen(Screen):
    """Colours, tables with rules and a moving progress bar."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._console = Console(file=stream, markup=False, highlight=False, emoji=False)
        self.columns = self._console.width

    def line(self, *spans: Span) -> None:
        """Write one line, wrapped by the terminal and never by us: it may be a path to copy."""
        fitting = (
            self._fit(span) if isinstance(span, str) else (self._fit(span[0]), span[1])
            for span in spans
        )
        self._console.print(Text.assemble(*fitting), soft_wrap=True)

    def heading(self, text: str) -> None:
        """Write a bold line that opens a part."""
        self.line()
        self.line((text, "bold cyan"))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Draw a table with a rule under its headers."""
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
            header_style="bold",
        )
        for position, column in enumerate(zip(headers, *rows, strict=True)):
            # Without a floor, a narrow terminal would cut digits off.
            table.add_column(
                column[0],
                justify="right" if position else "left",
                min_width=max(map(len, column)),
                no_wrap=True,
            )
        for row in rows:
            table.add_row(*(Text(self._fit(cell)) for cell in row))
        self._console.print(table, crop=False)

    @contextmanager
    def progress(self, label: str) -> Iterator[Progress | None]:
        """Draw a bar in place while the block runs, then take it away."""
        bar = _Bar(self._stream, label, ascii_only=self._ascii)
        try:
            yield bar.show
        finally:
            bar.clear()


class _Bar:
    """One line that is drawn over itself, at most every ``_FRAME_SECONDS``."""

    def __init__(self, stream: TextIO, label: str, *, ascii_only: bool) -> None:
        self._stream = stream
        self._label = label
        self._full, self._empty = "#-" if ascii_only else "━┄"
        self._start = time.perf_counter()
        self._due = self._start

    def show(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now < self._due and done < total:
            return
        self._due = now + _FRAME_SECONDS
        filled = _BAR_CELLS * done // total if total else _BAR_CELLS
        bar = self._full * filled + self._empty * (_BAR_CELLS - filled)
        self._write(
            f"{self._label} {bar} {format_share(done, total)}  "
            f"{format_bytes(done)} of {format_bytes(total)}  {format_rate(done, now - self._start)}"
        )

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        # Back to the first column and erase: a shorter frame leaves nothing of the one before.
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
