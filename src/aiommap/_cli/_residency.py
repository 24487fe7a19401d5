"""``aiommap residency``: a picture of which pages of which files are in memory."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread

import aiommap

from ._arguments import add_json_option, count, file_name, with_examples
from ._screen import Screen
from ._system import HIDDEN, files_below, visible_residency
from ._text import format_bytes, format_share, plural, printable

_DESCRIPTION = """\
Draw which pages of each file are in memory, one line per file: a chart from the start
of the file to its end (a blank cell is empty, a full block is all in memory), resident
and total pages and bytes, per cent. Folders are searched. Nothing is read from the
files, and nothing keeps a page in memory after it was counted."""

_EPILOG = with_examples("aiommap residency model.bin", "aiommap residency . | sort -n | tail")

# Files that are looked at together: their opens share thread hops, their descriptors stay few.
_TOGETHER = 64

_DEFAULT_CELLS = 40


@dataclass(frozen=True, slots=True)
class _Picture:
    path: str
    size: int
    residency: aiommap.Residency | None


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "residency", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=file_name,
        metavar="PATH",
        help="a file, or a folder to search for files",
    )
    parser.add_argument(
        "--width",
        type=count(1, 1000),
        default=_DEFAULT_CELLS,
        metavar="CELLS",
        help=f"width of the chart (default: {_DEFAULT_CELLS})",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, screen: Screen) -> None:
    """Draw every file, then the total."""
    paths = _all_files(options.paths, screen)
    pictures = anyio.run(_draw_all, paths, options.width, screen)
    shown = [picture.residency for picture in pictures if picture.residency is not None]
    resident = sum(residency.resident for residency in shown)
    total = sum(residency.total for residency in shown)
    resident_bytes = sum(residency.resident_bytes for residency in shown)
    size = sum(residency.length for residency in shown)
    kept_out = _kept_out(len(screen.problems), len(pictures) - len(shown))
    if shown:
        counts = _counts(resident, total, resident_bytes, size)
        screen.line(counts, f"  total of {plural(len(shown), 'file')}{kept_out}")
    else:
        screen.line(f"no file was looked at{kept_out}")
    screen.document(
        "residency",
        page_size=aiommap.PAGE_SIZE,
        files=[_as_json(picture) for picture in pictures],
        total={
            "files": len(shown),
            "resident_pages": resident,
            "total_pages": total,
            "resident_bytes": resident_bytes,
            "bytes": size,
        },
    )


def _kept_out(failed: int, hidden: int) -> str:
    """Say which files the total leaves out."""
    counts = ((failed, "could not be used"), (hidden, "hidden"))
    return "".join(f", {count:,} {why}" for count, why in counts if count)


def _all_files(paths: Iterable[str], screen: Screen) -> Iterator[str]:
    for path in paths:
        failures: list[OSError] = []
        yield from files_below(path, failures)
        for failure in failures:
            screen.problem(str(failure.filename), failure)


async def _draw_all(paths: Iterator[str], width: int, screen: Screen) -> list[_Picture]:
    pictures: list[_Picture] = []
    async with aiommap.Hub() as hub:
        while batch := await anyio.to_thread.run_sync(_take, paths):
            for path, outcome in zip(batch, await _look_at(hub, batch), strict=True):
                if isinstance(outcome, Exception):
                    screen.problem(path, outcome)
                else:
                    pictures.append(outcome)
                    _show(outcome, width, screen)
    return pictures


def _take(paths: Iterator[str]) -> list[str]:
    return list(itertools.islice(paths, _TOGETHER))


async def _look_at(hub: aiommap.Hub, paths: list[str]) -> list[_Picture | Exception]:
    """Look at some files together; the outcomes are in the order of the paths."""
    outcomes: dict[str, _Picture | Exception] = {}

    async def look(path: str) -> None:
        try:
            async with hub.open(path) as file:
                outcomes[path] = _Picture(path, file.size, await visible_residency(file))
        except (OSError, ValueError) as error:
            outcomes[path] = error

    async with anyio.create_task_group() as tasks:
        for path in set(paths):
            tasks.start_soon(look, path)
    return [outcomes[path] for path in paths]


def _show(picture: _Picture, width: int, screen: Screen) -> None:
    residency = picture.residency
    name = printable(picture.path)
    if residency is None:
        screen.line(f"{name}: {HIDDEN}")
        return
    counts = _counts(
        residency.resident, residency.total, residency.resident_bytes, residency.length
    )
    chart = screen.chart(residency, width) if residency.length else " " * width
    screen.line(counts, "  [", (chart, "green"), "]  ", name)


def _counts(resident: int, total: int, resident_bytes: int, size: int) -> str:
    pages = f"{resident}/{total} pages"
    amount = f"{format_bytes(resident_bytes)}/{format_bytes(size)}"
    share = format_share(resident_bytes, size) if size else "empty"
    return f"{share:>7}  {pages:>19}  {amount:>21}"


def _as_json(picture: _Picture) -> dict[str, object]:
    residency = picture.residency
    document: dict[str, object] = {
        "path": picture.path,
        "bytes": picture.size,
        "hidden": residency is None,
    }
    if residency is not None:
        document |= {
            "total_pages": residency.total,
            "resident_pages": residency.resident,
            "resident_bytes": residency.resident_bytes,
            "fraction": residency.fraction,
            "runs": residency.runs,
        }
    return document
