"""``aiommap prewarm``: bring files into memory, then look what is really there."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

import aiommap

from ._arguments import add_json_option, file_name, with_examples
from ._each import for_each_file
from ._screen import Screen
from ._system import HIDDEN, cache_state, visible_residency
from ._text import format_rate, format_seconds, format_share, plural, printable

_DESCRIPTION = """\
Bring whole files into memory, then count which of their pages really are there. Files
that do not fit push each other out again, and nothing keeps a page in memory once the
command has ended: the count says what was true when it was taken."""

_EPILOG = with_examples("aiommap prewarm model.bin index.bin")


@dataclass(frozen=True, slots=True)
class _Outcome:
    path: str
    size: int
    seconds: float
    total_pages: int
    resident_pages_before: int | None
    resident_pages: int | None
    cached_pages: int | None


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "prewarm", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("files", nargs="+", type=file_name, metavar="FILE", help="a regular file")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, screen: Screen) -> None:
    """Prewarm every file, one after the other: together they would share one disk."""
    anyio.run(_prewarm_all, options.files, screen)


async def _prewarm_all(paths: list[str], screen: Screen) -> None:
    def show(outcome: _Outcome) -> None:
        screen.line((printable(outcome.path), "bold"), f": {_summary(outcome)}", indent=2)

    outcomes = await for_each_file(paths, screen, partial(_prewarm, screen), show)
    screen.document("prewarm", files=[asdict(outcome) for outcome in outcomes])


async def _prewarm(screen: Screen, hub: aiommap.Hub, path: str) -> _Outcome:
    async with hub.open(path) as file:
        before = await visible_residency(file)
        start = time.perf_counter()
        with screen.progress(printable(path)) as progress:
            await file.prewarm(progress=progress)
        seconds = time.perf_counter() - start
        after = await visible_residency(file)
        cache = await anyio.to_thread.run_sync(cache_state, path)
        return _Outcome(
            path=path,
            size=file.size,
            seconds=seconds,
            total_pages=-(-file.size // aiommap.PAGE_SIZE),
            resident_pages_before=before.resident if before else None,
            resident_pages=after.resident if after else None,
            cached_pages=cache.cached if cache else None,
        )


def _summary(outcome: _Outcome) -> str:
    if not outcome.size:
        return "empty: nothing to bring into memory"
    work = f"{format_seconds(outcome.seconds)}, {format_rate(outcome.size, outcome.seconds)}"
    if outcome.resident_pages is None or outcome.resident_pages_before is None:
        return f"{work}; what is resident is {HIDDEN}"
    total = outcome.total_pages
    return (
        f"{work}; {outcome.resident_pages:,} of {plural(total, 'page')} resident "
        f"({format_share(outcome.resident_pages, total)}), "
        f"{format_share(outcome.resident_pages_before, total)} before"
    )
