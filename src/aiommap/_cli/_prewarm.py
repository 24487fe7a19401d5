"""``aiommap prewarm``: bring files into memory, then count the pages that are there."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import Any

import anyio
import anyio.to_thread

import aiommap

from ._arguments import add_json_option, file_name, with_examples
from ._each import for_each_file
from ._remote import add_cache_option, is_url, open_url
from ._screen import Screen
from ._system import HIDDEN, cache_state, visible_residency
from ._text import format_bytes, format_rate, format_seconds, format_share, plural, printable

_DESCRIPTION = """\
Bring whole files into memory, then count how many of their pages really are there. If
the files do not all fit, later ones evict earlier ones. Nothing keeps a page in memory
after the count, so the count is true only for the moment when it was made.

An object of a store, named by its URL, is fetched into the cache on this machine's disk,
from which aiommap.remote reads it."""

_EPILOG = with_examples("aiommap prewarm model.bin index.bin", "aiommap prewarm s3://bucket/key")


@dataclass(frozen=True, slots=True)
class _Outcome:
    path: str
    size: int
    seconds: float
    total_pages: int
    resident_pages_before: int | None
    resident_pages: int | None
    cached_pages: int | None


@dataclass(frozen=True, slots=True)
class _Fetched:
    path: str
    size: int
    seconds: float
    cached_bytes_before: int
    cached_bytes: int
    gets: int


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "prewarm", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "files", nargs="+", type=file_name, metavar="FILE", help="a regular file, or a URL"
    )
    add_cache_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, screen: Screen) -> None:
    """Prewarm one file after another, because they may share one disk."""
    anyio.run(_prewarm_all, options.files, options.cache, screen)


async def _prewarm_all(paths: list[str], folder: str | None, screen: Screen) -> None:
    def show(outcome: _Outcome | _Fetched) -> None:
        found = _summary(outcome) if isinstance(outcome, _Outcome) else _summary_of_url(outcome)
        screen.line((printable(outcome.path), "bold"), f": {found}", indent=2)

    async def step(hub: aiommap.Hub, path: str) -> _Outcome | _Fetched:
        return await (_fetch(screen, folder, path) if is_url(path) else _prewarm(screen, hub, path))

    outcomes = await for_each_file(paths, screen, step, show)
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


async def _fetch(screen: Screen, folder: str | None, url: str) -> _Fetched:
    async with open_url(url, folder) as (cache, snapshot):
        before = await snapshot.residency()
        start = time.perf_counter()
        with screen.progress(printable(snapshot.url)) as progress:
            await snapshot.prewarm(progress=progress)
        seconds = time.perf_counter() - start
        after = await snapshot.residency()
        return _Fetched(
            path=snapshot.url,
            size=snapshot.size,
            seconds=seconds,
            cached_bytes_before=before.cached,
            cached_bytes=after.cached,
            gets=cache.statistics().gets,
        )


def _summary_of_url(fetched: _Fetched) -> str:
    if not fetched.size:
        return "empty: nothing to fetch"
    came = fetched.cached_bytes - fetched.cached_bytes_before
    return (
        f"{format_seconds(fetched.seconds)}, {format_rate(max(came, 0), fetched.seconds)}, "
        f"{plural(fetched.gets, 'GET')}; {format_bytes(fetched.cached_bytes)} of "
        f"{format_bytes(fetched.size)} cached "
        f"({format_share(fetched.cached_bytes, fetched.size)}), "
        f"{format_share(fetched.cached_bytes_before, fetched.size)} before"
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
