"""``aiommap info``: what a file is, and what aiommap would use on it."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

import aiommap

from ._arguments import UsageError, add_json_option, file_name, with_examples
from ._each import for_each_file
from ._remote import is_url
from ._screen import Screen
from ._system import HIDDEN, CacheState, cache_state, file_system, visible_residency
from ._text import format_bytes, format_share, plural, printable

_DESCRIPTION = """\
Tell what a file is and what aiommap would use on it. Reads one byte of the file, to
learn whether the kernel serves reads of cached data without waiting."""

_EPILOG = with_examples(
    "aiommap info model.bin", "aiommap info --json *.npy | jq .files[].file_system"
)


@dataclass(frozen=True, slots=True)
class _Facts:
    path: str
    size: int
    file_system: str
    page_size: int
    pages: int
    resident_pages: int | None
    residency_visible: bool
    inline_reads: bool | None
    cache: CacheState | None


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("files", nargs="+", type=file_name, metavar="FILE", help="a regular file")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, screen: Screen) -> None:
    """Describe every file."""
    if any(map(is_url, options.files)):
        raise UsageError(
            "info takes files, not URLs: aiommap residency URL tells which parts of an object are "
            "cached"
        )
    anyio.run(_describe_all, options.files, screen)


async def _describe_all(paths: list[str], screen: Screen) -> None:
    found = await for_each_file(paths, screen, _describe, partial(_show, screen))
    screen.document("info", files=[asdict(facts) for facts in found])


async def _describe(hub: aiommap.Hub, path: str) -> _Facts:
    # RANDOM: reading one byte must not make the kernel read ahead.
    async with hub.open(path, advice=aiommap.Advice.RANDOM) as file:
        residency = await visible_residency(file)
        cache = await anyio.to_thread.run_sync(cache_state, path)
        return _Facts(
            path=path,
            size=file.size,
            file_system=await anyio.to_thread.run_sync(file_system, path),
            page_size=aiommap.PAGE_SIZE,
            pages=-(-file.size // aiommap.PAGE_SIZE),
            resident_pages=residency.resident if residency else None,
            residency_visible=residency is not None,
            inline_reads=await _reads_inline(file, residency),
            cache=cache,
        )


async def _reads_inline(
    file: aiommap.MappedFile, residency: aiommap.Residency | None
) -> bool | None:
    """Tell whether a byte that is in memory is read inline; None for an empty file."""
    if not file.size:
        return None
    offset = residency.runs[0][0] if residency and residency.runs else 0
    # The first read brings the byte into memory, and may wait for the disk.
    await file.read(offset, 1)
    before = file.statistics().inline_reads
    await file.read(offset, 1)
    return file.statistics().inline_reads > before


def _show(screen: Screen, facts: _Facts) -> None:
    screen.line((printable(facts.path), "bold"))
    screen.facts(
        [
            ("size", f"{format_bytes(facts.size)} ({plural(facts.size, 'byte')})"),
            ("file system", facts.file_system),
            ("pages", f"{facts.pages:,} of {facts.page_size} bytes"),
            ("resident", _resident_text(facts)),
            ("mapping", "shared" if facts.size else "none: there is nothing to map"),
            ("reads", _reads_text(facts.inline_reads)),
            ("cachestat", _cache_text(facts.cache)),
        ]
    )


def _resident_text(facts: _Facts) -> str:
    if not facts.pages:
        return "0 pages"
    if facts.resident_pages is None:
        return HIDDEN
    return f"{facts.resident_pages:,} pages ({format_share(facts.resident_pages, facts.pages)})"


def _reads_text(inline: bool | None) -> str:
    if inline is None:
        return "nothing to read"
    if inline:
        return "inline where the data is in memory, else in a worker thread"
    return "in a worker thread: the kernel offers no read that never waits here"


def _cache_text(cache: CacheState | None) -> str:
    if cache is None:
        return "not available"
    return (
        f"available: {cache.cached:,} cached, {cache.dirty:,} dirty, "
        f"{cache.writeback:,} being written"
    )
