"""Where a command writes: plain lines, a terminal, or one JSON document.

Commands say what they have (a line, a table, progress) and never ask how it is shown. Problems go
to standard error, one line each, in every form.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import aiommap

from ._text import printable

#: A piece of a line: text, or text with the name of a colour or style.
Span = str | tuple[str, str]

#: Called with bytes done and bytes in all.
Progress = Callable[[int, int], None]

_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*%#"


class Screen:
    """Plain lines without colour: what a pipe gets, and a terminal where rich is missing.

    Attributes:
        problems: ``(path, message)`` of every file that failed, in order.
        columns: width of a line that should fit; pipes have no edge, 100 is a readable one.
    """

    columns = 100

    def __init__(self, stream: TextIO) -> None:
        self.problems: list[tuple[str, str]] = []
        self._stream = stream
        self._ascii = not _can_write(stream, _BLOCKS)

    def line(self, *spans: Span) -> None:
        """Write one line."""
        text = "".join(span if isinstance(span, str) else span[0] for span in spans)
        self._stream.write(self._fit(text) + "\n")
        # A reader of the pipe sees each line when it is true, not when the buffer is full.
        self._stream.flush()

    def _fit(self, text: str) -> str:
        """Escape what the stream's encoding cannot carry."""
        return text.encode("ascii", "backslashreplace").decode() if self._ascii else text

    def heading(self, text: str) -> None:
        """Write a line that opens a part."""
        self.line()
        self.line(f"== {text}")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write aligned columns: the first to the left, the others to the right."""
        widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
        for row in (headers, *rows):
            first = row[0].ljust(widths[0])
            rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            self.line("  ".join((first, *rest)).rstrip())

    def facts(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Write names and values, one pair on a line."""
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            self.line("  ", (name.ljust(width), "bold"), "  ", value)

    @contextmanager
    def progress(self, label: str) -> Iterator[Progress | None]:  # noqa: ARG002
        """Show how far something is; gives None where nobody would see it move."""
        yield None

    def document(self, command: str, **content: object) -> None:
        """Write a command's whole outcome; nothing here, it has been written line by line."""

    def record(self, **content: object) -> None:
        """Write one of many documents, each on a line; nothing here, as for ``document``."""

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
    """One JSON document at the end, and nothing else."""

    def line(self, *spans: Span) -> None:
        """Write nothing."""

    def document(self, command: str, **content: object) -> None:
        """Write the document; ``errors`` holds what also went to standard error."""
        errors = [{"path": path, "error": message} for path, message in self.problems]
        whole = {"command": command, **content, "errors": errors}
        # ASCII with escapes: a name that is not UTF-8 keeps its bytes, as Python writes them.
        json.dump(whole, self._stream, indent=2, allow_nan=False)
        self._stream.write("\n")
        self._stream.flush()

    def record(self, **content: object) -> None:
        """Write a document on one line, as soon as it is true."""
        self._stream.write(json.dumps(content, allow_nan=False) + "\n")
        self._stream.flush()


def describe(error: Exception) -> str:
    """Say on one line what went wrong, without repeating the path that stands before it."""
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
