"""The layout of help: paragraphs, lists and example commands are wrapped to fit the terminal."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap

#: Longer lines are hard to read, however wide the terminal.
MAX_COLUMNS = 100

#: If an explanation has less room than this beside its name, it goes below the name.
_MIN_EXPLANATION = 20

_ITEM = re.compile(r"  (?P<name>\S.*?)(?:\s{2,}(?P<explanation>\S.*))?")


class HelpFormatter(argparse.HelpFormatter):
    """Fits descriptions to the terminal.

    In a description, an empty line ends a paragraph. A line that begins with two blanks is an item
    of a list: a name, two blanks or more, and its explanation, which goes on in lines that are
    indented deeper. An item without an explanation is a command to type.
    """

    def __init__(self, prog: str, **options: object) -> None:
        columns = min(shutil.get_terminal_size().columns, MAX_COLUMNS)
        super().__init__(prog, width=columns - 2, **options)  # type: ignore[arg-type]

    def _fill_text(self, text: str, width: int, indent: str) -> str:  # noqa: ARG002
        blocks = text.strip("\n").split("\n\n")
        return "\n\n".join(
            "\n".join(_fill(part, width) for part in _parts(block)) for block in blocks
        )


def _parts(block: str) -> list[str]:
    """Join the lines of each paragraph and of each item."""
    parts: list[str] = []
    for line in block.splitlines():
        begins = line.startswith("  ") and not line.startswith("   ")
        goes_on = line.startswith("   ") or (parts and not parts[-1].startswith("  "))
        if parts and goes_on and not begins:
            parts[-1] += f" {line.strip()}"
        else:
            parts.append(line)
    return parts


def _fill(part: str, width: int) -> str:
    item = _ITEM.fullmatch(part)
    if item is None:
        return _wrap(part, width)
    name, explanation = f"  {item['name']}", item["explanation"]
    if explanation is None:
        return _fill_command(name, width)
    column = item.start("explanation")
    if column + _MIN_EXPLANATION > width:
        return f"{name}\n{_wrap(explanation, width, ' ' * 6, ' ' * 6)}"
    return _wrap(explanation, width, name.ljust(column), " " * column)


def _fill_command(command: str, width: int) -> str:
    """Break a command so that it can still be copied: its lines end in a backslash."""
    if len(command) <= width:
        return command
    return _wrap(command, width - 2, "", " " * 6).replace("\n", " \\\n")


def _wrap(text: str, width: int, first: str = "", others: str = "") -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
