"""The output of a command: plain lines, a terminal, or one JSON document.

Commands write lines, tables and progress to a screen, and never ask how it shows them. Every kind
of screen writes problems to standard error, one line each.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import aiommap

from ._help import MAX_COLUMNS
from ._text import columns_of, fold, printable, wrap

#: A piece of a line: text, or text with the name of a colour or style.
Span = str | tuple[str, str]

#: Called with bytes done and bytes in total.
Progress = Callable[[int, int], None]

#: A pipe has no width; prose is wrapped as for a usual terminal.
_PIPE_COLUMNS = 80

#: Text between the columns of a table.
_GAP = "  "

_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*%#"


class Screen:
    """Plain lines without colour, for a pipe, or for a terminal if rich is not installed.

    Attributes:
        problems: ``(path, message)`` of every file that failed, in order.
        columns: how long a line of prose may be; in a pipe, lines of data may be longer.
        has_edge: whether longer lines do not fit, as on a terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self.problems: list[tuple[str, str]] = []
        self.has_edge = stream.isatty()
        self.columns = shutil.get_terminal_size().columns if self.has_edge else _PIPE_COLUMNS
        self._stream = stream
        self._ascii = not _can_write(stream, _BLOCKS)

    def line(self, *spans: Span, indent: int = 4) -> None:
        """Write a line of data; if it does not fit, continue it behind an indent."""
        text = "".join(span if isinstance(span, str) else span[0] for span in spans)
        for number, part in enumerate(self._parts(self._fit(text), indent)):
            self._stream.write(f"{' ' * indent if number else ''}{part}\n")
        # A reader of a pipe gets each line at once, and not when the buffer is full.
        self._stream.flush()

    def _parts(self, text: str, indent: int) -> list[str]:
        return fold(text, self.columns, indent) if self.has_edge else [text]

    def _fit(self, text: str) -> str:
        """Escape what the stream's encoding cannot carry."""
        return text.encode("ascii", "backslashreplace").decode() if self._ascii else text

    def say(self, text: str, style: str = "") -> None:
        """Write prose, wrapped to fit; each line has the indent of the text."""
        for line in wrap(text, min(self.columns, MAX_COLUMNS)).splitlines():
            self.line((line, style) if style else line)

    def heading(self, text: str) -> None:
        """Write a heading."""
        self.line()
        self.say(f"== {text}")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write aligned columns: the first to the left, the others to the right.

        If they do not fit, write each row as a list of names and values.
        """
        widths = [max(map(columns_of, column)) for column in zip(headers, *rows, strict=True)]
        if self.has_edge and sum(widths) + len(_GAP) * (len(widths) - 1) > self.columns:
            self._lists(headers, rows)
        else:
            self._grid(headers, rows, widths)

    def _lists(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        name, *others = headers
        for first, *cells in rows:
            self.line((f"{name} {first}".strip(), "bold"))
            self.facts([pair for pair in zip(others, cells, strict=True) if pair[1]])

    def _grid(
        self, headers: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]
    ) -> None:
        for row in (headers, *rows):
            first = row[0].ljust(widths[0])
            rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            self.line(_GAP.join((first, *rest)).rstrip())

    def facts(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Write names and values, one pair on a line."""
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            self.line("  ", (name.ljust(width), "bold"), "  ", value, indent=width + 4)

    @contextmanager
    def progress(self, label: str) -> Iterator[Progress | None]:  # noqa: ARG002
        """Show progress while a block runs; yields None if the screen does not show any."""
        yield None

    def document(self, command: str, **content: object) -> None:
        """Write the outcome of a command as JSON; this screen has shown it line by line."""

    def record(self, **content: object) -> None:
        """Write one of many JSON documents, each on a line; this screen has shown it already."""

    def chart(self, residency: aiommap.Residency, width: int) -> str:
        """Draw residency as one line of characters that the stream can carry."""
        drawn = residency.chart(width)
        return drawn.translate(str.maketrans(_BLOCKS, _ASCII)) if self._ascii else drawn

    def problem(self, path: str, error: Exception) -> None:
        """Report that a file failed: one line on standard error."""
        message = describe(error)
        self.problems.append((path, message))
        sys.stderr.write(f"aiommap: {printable(path)}: {message}\n")


class JsonScreen(Screen):
    """Writes JSON documents, and nothing else."""

    def line(self, *spans: Span, indent: int = 4) -> None:
        """Write nothing."""

    def document(self, command: str, **content: object) -> None:
        """Write the document; ``errors`` has the problems that also went to standard error."""
        errors = [{"path": path, "error": message} for path, message in self.problems]
        whole = {"command": command, **content, "errors": errors}
        # ASCII with escapes: a name that is not UTF-8 keeps its bytes, as Python writes them.
        json.dump(whole, self._stream, indent=2, allow_nan=False)
        self._stream.write("\n")
        self._stream.flush()

    def record(self, **content: object) -> None:
        """Write a document on one line, at once."""
        self._stream.write(json.dumps(content, allow_nan=False) + "\n")
        self._stream.flush()


def describe(error: Exception) -> str:
    """Describe an error on one line; leave out the path, which the caller writes before it."""
    if isinstance(error, OSError) and not isinstance(error, aiommap.MappedFileError):
        text = error.strerror or str(error)
    else:
        text = str(error)
        if isinstance(error, aiommap.UnsupportedError) and error.operation.startswith("map "):
            text = f"cannot be mapped: {error.reason}"
    return printable(" ".join(text.split())) or type(error).__name__


def _can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
