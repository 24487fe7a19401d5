"""The entry point: parse the arguments, run one command, and turn its outcome into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import aiommap

from . import _bench, _cache, _completion, _info, _log, _prewarm, _residency, _watch
from ._arguments import Parser, ShowVersion, UsageError
from ._help import HelpFormatter
from ._output import choose_screen
from ._screen import describe
from ._text import printable
from .demo import command as demo

_FAILED, _USAGE, _INTERRUPTED, _BROKEN_PIPE = 1, 2, 130, 141

# Listed by hand, because argparse lays out a list of commands differently in each Python version.
_DESCRIPTION = """\
Memory-mapped files for asyncio: look at what is in memory, bring it there, measure,
and see the library at work. No command writes to a file you name.

commands:
  demo [FILE]        see what the library does, on a real file: begin here
  info FILE...       what a file is, and what aiommap would use on it
  residency PATH...  draw which pages of files are in memory
  prewarm FILE...    bring files into memory
  bench FILE         measure reads of a file, beside other libraries
  watch PATH...      show changes of files as they happen
  cache COMMAND ...  inspect, verify or clear the cache of remote snapshots
  log COMMAND ...    inspect, print, follow or verify a durable log
  completion SHELL   print a script that completes this command line"""

_HINT = "aiommap COMMAND --help shows the options of one, and examples."


def build_parser() -> Parser:
    """Return the parser of the whole command line; each command sets ``run``."""
    parser = Parser(prog="aiommap", description=_DESCRIPTION)
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(
        metavar="COMMAND",
        dest="name",
        help="one of the above; each has its own --help",
    )
    for command in (demo, _info, _residency, _prewarm, _bench, _watch, _cache, _log):
        command.add_parser(commands)
    _completion.add_parser(commands, build_parser)
    return parser


def _overview() -> str:
    """Return the text that is shown if the command line names no command."""
    formatter = HelpFormatter("aiommap")
    formatter.add_text(f"{_DESCRIPTION}\n\n{_HINT}")
    return formatter.format_help()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; None takes those of this process.
    Returns:
        The exit code; ``aiommap --help`` lists them.
    """
    _open_closed_streams()
    try:
        return _run(argv)
    except UsageError as error:
        _complain(str(error))
        return _USAGE
    except BrokenPipeError:
        _abandon_output()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    except (OSError, aiommap.MappedFileError, MemoryError) as error:
        _complain(_with_path(error))
        return _FAILED


def _run(argv: Sequence[str] | None) -> int:
    try:
        options, unknown = build_parser().parse_known_args(argv)
    except SystemExit as stop:
        # --help and --version end the parser this way; flush, to find out if nobody can read them.
        sys.stdout.flush()
        return stop.code if isinstance(stop.code, int) else _USAGE
    if unknown:  # argparse itself would refer to the help of the whole command line
        words, program = " ".join(unknown), " ".join(filter(None, ("aiommap", options.name)))
        raise UsageError(f"unrecognized arguments: {words} (see {program} --help)")
    if options.name is None:
        sys.stdout.write(_overview())
        sys.stdout.flush()
        return 0
    screen = choose_screen(as_json=options.json)
    try:
        options.run(options, screen)
    except BaseException as error:
        # Tasks fail in groups. We report the first failure, which caused the others.
        failure = _first(error)
        if isinstance(failure, OSError) and _is_about(getattr(options, "file", None), failure):
            screen.problem(options.file, failure)
        elif failure is error:
            raise
        else:
            raise failure from error
    return _FAILED if screen.problems else 0


def _is_about(path: str | None, failure: OSError) -> bool:
    """Tell whether an error is about the one file of the command; errors have absolute paths."""
    if path is None:
        return False
    named: object = failure.filename
    if isinstance(failure, aiommap.UnsupportedError):
        named = failure.operation.removeprefix("map ")
    # Both paths are changed in the same way and only compared, so abspath is good enough.
    return isinstance(named, str) and os.path.abspath(named) == os.path.abspath(path)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _with_path(error: Exception) -> str:
    path = getattr(error, "filename", None)
    if isinstance(error, aiommap.MappedFileError) or not isinstance(path, (str, bytes)):
        return describe(error)
    return f"{printable(os.fsdecode(path))}: {describe(error)}"


def _complain(message: str) -> None:
    sys.stderr.write(f"aiommap: {message}\n")


def _open_closed_streams() -> None:
    """Replace standard streams that were closed before we began, as by ``>&-``: write nowhere."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  likewise


def _abandon_output() -> None:
    """Point standard output to the null device, so that the flush at exit does not fail again."""
    try:
        target = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, target)
    os.close(nowhere)
