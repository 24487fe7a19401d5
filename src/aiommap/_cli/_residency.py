"""``aiommap residency``: a picture of which pages of which files are in memory."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import anyio
import anyio.to_thread

import aiommap
from aiommap.remote import RemoteResidency

from ._arguments import add_json_option, count, file_name, with_examples
from ._remote import add_cache_option, is_url, open_url
from ._screen import Screen
from ._system import HIDDEN, files_below, visible_residency
from ._text import format_bytes, format_share, plural, printable, shorten

_DESCRIPTION = """\
Show which pages of each file are in memory: the share in per cent, resident and total
pages and bytes (if there is room for them), and a chart from the start of the file to its
end. A blank cell means that no page of that part is in memory, a full block that all are.
Folders are searched. Nothing is read from the files, and a page may leave memory as soon
as it was counted.

For an object of a store, named by its URL, the chart shows which parts are in the cache on
this machine's disk, from which aiommap.remote reads it."""

_EPILOG = with_examples(
    "aiommap residency model.bin",
    "aiommap residency . | sort -n | tail",
    "aiommap residency s3://bucket/key",
)

# How many files are open at the same time: they share hops, and take few descriptors.
_TOGETHER = 64

_PIPE_CELLS = 40
_MAX_CELLS = 80

# Columns of a line besides chart and name: per cent, brackets and gaps; pages; bytes.
_FRAME, _PAGES, _BYTES = 13, 21, 23

# Terminals with fewer columns leave out pages, leave out bytes, or use two lines for a file.
_ROOM_FOR_PAGES, _ROOM_FOR_BYTES, _ROOM_FOR_ONE_LINE = 120, 60, 80


# Names in the JSON document, which have the unit.
_BYTES_OF = {
    "size": "bytes",
    "cached": "cached_bytes",
    "resident": "resident_bytes",
    "remote": "remote_bytes",
}


@dataclass(frozen=True, slots=True)
class _Picture:
    path: str
    size: int
    residency: aiommap.Residency | None
    #: For an object of a store; ``residency`` then has the parts that are cached.
    remote: RemoteResidency | None = None


@dataclass(frozen=True, slots=True)
class _Layout:
    """The layout of a line.

    Attributes:
        cells: width of the chart.
        pages: whether to show page counts.
        amount: whether to show byte counts.
        name: columns for the name behind the chart; 0 puts it on a line of its own, None has no
            limit.
    """

    cells: int
    pages: bool = True
    amount: bool = True
    name: int | None = None


def _layout(screen: Screen, width: int | None) -> _Layout:
    """Divide the columns of a line among the counts, the chart and the name."""
    if not screen.has_edge:
        return _Layout(width or _PIPE_CELLS)
    columns = screen.columns
    pages, amount = columns >= _ROOM_FOR_PAGES, columns >= _ROOM_FOR_BYTES
    left = max(columns - _FRAME - _PAGES * pages - _BYTES * amount, 1)
    if columns < _ROOM_FOR_ONE_LINE:
        return _Layout(min(width or _MAX_CELLS, left), pages, amount, name=0)
    cells = min(width or min(left // 2, _MAX_CELLS), left)
    name = left - cells
    return _Layout(cells, pages, amount, name if name > len("...") else 0)


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
        help="a file, a folder to search for files, or a URL",
    )
    parser.add_argument(
        "--width",
        type=count(1, 1000),
        metavar="CELLS",
        help=f"width of the chart (default: what fits; in a pipe {_PIPE_CELLS})",
    )
    add_cache_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, screen: Screen) -> None:
    """Draw every file, then the total."""
    paths = _all_files(options.paths, screen)
    layout = _layout(screen, options.width)
    pictures = anyio.run(_draw_all, paths, options.cache, layout, screen)
    files = [picture for picture in pictures if picture.remote is None]
    shown = [picture.residency for picture in files if picture.residency is not None]
    resident = sum(residency.resident for residency in shown)
    total = sum(residency.total for residency in shown)
    resident_bytes = sum(residency.resident_bytes for residency in shown)
    size = sum(residency.length for residency in shown)
    kept_out = _kept_out(len(screen.problems), len(files) - len(shown))
    if shown:
        counts = _counts(resident, total, resident_bytes, size, layout)
        screen.line(counts, f"  total of {plural(len(shown), 'file')}{kept_out}")
    elif files or not pictures:  # objects alone have no total
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
    """Return the text that says which files the total leaves out."""
    counts = ((failed, "could not be used"), (hidden, "hidden"))
    return "".join(f", {count:,} {why}" for count, why in counts if count)


def _all_files(paths: Iterable[str], screen: Screen) -> Iterator[str]:
    for path in paths:
        if is_url(path):
            yield path
            continue
        failures: list[OSError] = []
        yield from files_below(path, failures)
        for failure in failures:
            screen.problem(str(failure.filename), failure)


async def _draw_all(
    paths: Iterator[str], folder: str | None, layout: _Layout, screen: Screen
) -> list[_Picture]:
    pictures: list[_Picture] = []
    async with aiommap.Hub() as hub:
        while batch := await anyio.to_thread.run_sync(_take, paths):
            for path, outcome in zip(batch, await _look_at(hub, folder, batch), strict=True):
                if isinstance(outcome, Exception):
                    screen.problem(path, outcome)
                else:
                    pictures.append(outcome)
                    _show(outcome, layout, screen)
    return pictures


def _take(paths: Iterator[str]) -> list[str]:
    return list(itertools.islice(paths, _TOGETHER))


async def _look_at(
    hub: aiommap.Hub, folder: str | None, paths: list[str]
) -> list[_Picture | Exception]:
    """Find the residency of some files concurrently; return outcomes in the order of the paths."""
    outcomes: dict[str, _Picture | Exception] = {}

    async def look(path: str) -> None:
        try:
            if is_url(path):
                outcomes[path] = await _look_at_url(path, folder)
                return
            async with hub.open(path) as file:
                outcomes[path] = _Picture(path, file.size, await visible_residency(file))
        except (OSError, ValueError) as error:
            outcomes[path] = error

    async with anyio.create_task_group() as tasks:
        for path in set(paths):
            tasks.start_soon(look, path)
    return [outcomes[path] for path in paths]


async def _look_at_url(url: str, folder: str | None) -> _Picture:
    async with open_url(url, folder) as (_, snapshot):
        found = await snapshot.residency()
        pages, total = (-(-n // aiommap.PAGE_SIZE) for n in (found.cached, found.size))
        cached = aiommap.Residency(pages, total, found.runs, 0, found.size)
        return _Picture(snapshot.url, found.size, cached, found)


def _show(picture: _Picture, layout: _Layout, screen: Screen) -> None:
    residency = picture.residency
    name = printable(picture.path)
    if residency is None:
        screen.line(f"{name}: {HIDDEN}")
        return
    counts = _counts(
        residency.resident, residency.total, residency.resident_bytes, residency.length, layout
    )
    blank = " " * layout.cells
    chart = screen.chart(residency, layout.cells) if residency.length else blank
    if layout.name == 0:
        screen.line(name)
        screen.line(counts, "  [", (chart, "green"), "]")
        return
    if layout.name is not None:
        name = shorten(name, layout.name)
    screen.line(counts, "  [", (chart, "green"), "]  ", name)


def _counts(resident: int, total: int, resident_bytes: int, size: int, layout: _Layout) -> str:
    share = format_share(resident_bytes, size) if size else "empty"
    text = f"{share:>7}"
    if layout.pages:
        pages = f"{resident}/{total} pages"
        text += f"  {pages:>19}"
    if layout.amount:
        amount = f"{format_bytes(resident_bytes)}/{format_bytes(size)}"
        text += f"  {amount:>21}"
    return text


def _as_json(picture: _Picture) -> dict[str, object]:
    if picture.remote is not None:
        found = asdict(picture.remote)
        return {"path": picture.path, **{_BYTES_OF.get(key, key): n for key, n in found.items()}}
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
