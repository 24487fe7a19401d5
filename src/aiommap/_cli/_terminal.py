"""The screen of a terminal: rich's colours and tables, and our own progress bar.

We do not use rich's bar: to render one of its frames takes milliseconds of pure Python, on the loop
or beside it under the same interpreter lock. That would be the longest stall of the operation that
it shows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._screen import Progress, Screen, Span
from ._text import columns_of, format_bytes, format_rate, format_share, shorten

_MAX_BAR, _MIN_BAR = 40, 10
_FRAME_SECONDS = 0.05


class TerminalScreen(Screen):
    """Colours, tables with rules and a moving progress bar."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._console = Console(
            file=stream, width=self.columns, markup=False, highlight=False, emoji=False
        )

    def line(self, *spans: Span, indent: int = 4) -> None:
        """Write a line of data; if it does not fit, continue it behind an indent.

        The terminal breaks a word that is too long: then a user can still copy it as one path.
        """
        fitting = (
            self._fit(span) if isinstance(span, str) else (self._fit(span[0]), span[1])
            for span in spans
        )
        whole = Text.assemble(*fitting)
        end = 0
        for part in self._parts(whole.plain, indent):
            start = whole.plain.index(part, end)
            before = " " * indent if end else ""
            end = start + len(part)
            self._console.print(Text.assemble(before, whole[start:end]), soft_wrap=True)

    def heading(self, text: str) -> None:
        """Write a heading, in bold."""
        self.line()
        self.say(text, "bold cyan")

    def _grid(
        self, headers: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]
    ) -> None:
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
            header_style="bold",
        )
        for position, (header, width) in enumerate(zip(headers, widths, strict=True)):
            justify: Literal["left", "right"] = "right" if position else "left"
            table.add_column(header, justify=justify, min_width=width, no_wrap=True)
        for row in rows:
            table.add_row(*(Text(self._fit(cell)) for cell in row))
        self._console.print(table, crop=False)

    @contextmanager
    def progress(self, label: str) -> Iterator[Progress | None]:
        """Draw a bar while the block runs, then erase it."""
        bar = _Bar(self._stream, label, self.columns, ascii_only=self._ascii)
        try:
            yield bar.show
        finally:
            bar.clear()


class _Bar:
    """One line that is drawn over itself, at most every ``_FRAME_SECONDS``."""

    def __init__(self, stream: TextIO, label: str, columns: int, *, ascii_only: bool) -> None:
        self._stream = stream
        self._label = shorten(label, columns // 3)
        # Leave the last column free: some terminals go to the next line when it is written.
        self._columns = columns - 1
        self._full, self._empty = "#-" if ascii_only else "━┄"
        self._start = time.perf_counter()
        self._due = self._start

    def show(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now < self._due and done < total:
            return
        self._due = now + _FRAME_SECONDS
        share = f"{format_share(done, total):>7}"
        amount = f"  {format_bytes(done)} of {format_bytes(total)}"
        rate = f"  {format_rate(done, now - self._start)}"
        for details in (share + amount + rate, share + amount, share):
            cells = self._columns - columns_of(self._label) - len(details) - 2
            if cells >= _MIN_BAR:
                break
        cells = max(min(cells, _MAX_BAR), 0)
        filled = cells * done // total if total else cells
        bar = self._full * filled + self._empty * (cells - filled)
        self._write(f"{self._label} {bar} {details}")

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        # Go back to the first column and erase the line, so that no rest of a longer frame stays.
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
