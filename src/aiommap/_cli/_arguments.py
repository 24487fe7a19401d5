"""Parsing of arguments: a parser whose errors are one line, and the types of its options."""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ._help import HelpFormatter
from ._text import parse_bytes

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

EXIT_CODES = """\
exit codes:
  0    everything was done
  1    a file could not be opened or used; every other file was still done
       (completion: an extra is not installed)
  2    the command line is wrong; nothing was done
  130  stopped by Ctrl-C (demo: or by SIGTERM), cleaned up
  141  the reader of standard output went away (as in "| head")
"""


def with_examples(*lines: str) -> str:
    """Return the end of a command's help: examples, then the exit codes."""
    return "\n".join(("examples:", *(f"  {line}" for line in lines), "", EXIT_CODES))


class UsageError(Exception):
    """The command line is wrong; the message is one line."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ``UsageError`` instead of printing its usage and exiting."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        options.setdefault("epilog", EXIT_CODES)
        if sys.version_info >= (3, 14):
            options.setdefault("color", False)  # with FORCE_COLOR a pipe would get colour, too
        # A new option could make a prefix ambiguous that worked before.
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a usage error."""
        raise UsageError(f"{' '.join(message.split())} (see {self.prog} --help)")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help; unlike argparse, raise if it cannot be written."""
        (file or sys.stdout).write(self.format_help())


class ShowVersion(argparse.Action):
    """``--version``: looks up the version only when asked, because that reads several files."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and end the parser."""
        sys.stdout.write(f"aiommap {importlib.metadata.version('aiommap')}\n")
        parser.exit()


def file_name(text: str) -> str:
    """Refuse an empty path, which can mean the current folder or no file."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path names no file: is a variable unset?")
    return text


def size(minimum: int) -> Callable[[str], int]:
    """Return a parser of byte counts that are at least the minimum."""

    def parse(text: str) -> int:
        try:
            value = parse_bytes(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text} is too small: at least {minimum} bytes")
        return value

    return parse


def count(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers within the limits."""

    def parse(text: str) -> int:
        # str.isdecimal is also true of non-ASCII digits, which int() takes: "١٦" is a typing error.
        if not (text.isascii() and text.isdecimal() and minimum <= int(text) <= maximum):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {minimum} to {maximum}"
            )
        return int(text)

    return parse


def seconds(text: str) -> float:
    """Parse a duration in seconds, above zero and at most an hour."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds above 0 and at most 3600"
        )
    return value


def add_load_options(
    parser: argparse.ArgumentParser, *, tasks: int, what: str, duration: str
) -> None:
    """Give a command that measures its ``--tasks`` and ``--seconds``."""
    parser.add_argument(
        "--tasks",
        type=count(1, 512),
        default=tasks,
        metavar="N",
        help=f"tasks that {what} at once (default: {tasks})",
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=2.0,
        metavar="S",
        help=f"how long {duration} (default: 2)",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Give a command its ``--json`` option."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
