"""``aiommap cache``: look at the cache of remote snapshots, clear it, check every block of it."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from aiommap.remote import CacheEntry, RemoteCache

from ._arguments import EXIT_CODES, add_json_option, with_examples
from ._remote import add_cache_option
from ._screen import Screen
from ._text import format_bytes, format_share, plural, printable

_DESCRIPTION = """\
Inspect the folder in which aiommap.remote keeps blocks of remote objects. Programs may use
the folder at the same time.

commands:
  info         how much it holds
  list         the objects of which it holds blocks
  clear [URL]  give up what is cached, of one object or of all
  verify       compare every block with its checksum"""

_INFO = """\
Tell how much a cache holds, and how much of it is in use."""
_LIST = """\
List the objects of which a cache holds blocks: how much of each is cached, its size, its
ETag, and its URL. The object that was opened last comes first. An object that was
overwritten is listed once for each state that was opened."""
_CLEAR = """\
Give up the blocks of one object, or of all. Programs that read an object can go on: they
fetch blocks again when they need them."""
_VERIFY = """\
Read every cached block and compare it with its checksum. Blocks that are wrong are given
up; the next read of them fetches them again."""

Run = Callable[[argparse.Namespace, Screen, RemoteCache], Awaitable[None]]


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "cache", description=_DESCRIPTION, epilog=EXIT_CODES
    )
    verbs = parser.add_subparsers(
        metavar="COMMAND", dest="verb", required=True, help="one of the above"
    )
    _add(verbs, "info", _INFO, _info, "aiommap cache info")
    _add(verbs, "list", _LIST, _list, "aiommap cache list --json | jq .objects[].url")
    clear = _add(verbs, "clear", _CLEAR, _clear, "aiommap cache clear s3://bucket/key")
    clear.add_argument("url", nargs="?", metavar="URL", help="the object; all of them by default")
    _add(verbs, "verify", _VERIFY, _verify, "aiommap cache verify")


def _add(
    verbs: Any, name: str, description: str, run: Run, example: str
) -> argparse.ArgumentParser:
    epilog = with_examples(example)
    parser: argparse.ArgumentParser = verbs.add_parser(name, description=description, epilog=epilog)
    add_cache_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=partial(_run, run))
    return parser


def _run(run: Run, options: argparse.Namespace, screen: Screen) -> None:
    anyio.run(_run_in, run, options, screen)


async def _run_in(run: Run, options: argparse.Namespace, screen: Screen) -> None:
    """Run a command on a folder that exists: a command must not make one."""
    async with RemoteCache(options.cache) as cache:
        if not await anyio.to_thread.run_sync(os.path.isdir, cache.folder):
            missing = FileNotFoundError("there is no such folder: nothing was cached in it yet")
            screen.problem(cache.folder, missing)
            return
        await run(options, screen, cache)


async def _info(_: argparse.Namespace, screen: Screen, cache: RemoteCache) -> None:
    entries = await cache.entries()
    used = cache.statistics().used_bytes
    disk = await anyio.to_thread.run_sync(shutil.disk_usage, cache.folder)
    in_use = sum(entry.in_use for entry in entries)
    cached = sum(entry.cached_bytes for entry in entries)
    sizes = sum(entry.state.size for entry in entries)
    screen.line((printable(cache.folder), "bold"))
    screen.facts(
        [
            ("objects", f"{len(entries):,}, of which {in_use:,} in use"),
            ("cached", f"{format_bytes(cached)} of {format_bytes(sizes)}"),
            ("reserved", format_bytes(used)),
            ("disk", f"{format_bytes(disk.free)} free of {format_bytes(disk.total)}"),
        ]
    )
    screen.document(
        "cache info",
        folder=cache.folder,
        objects=len(entries),
        objects_in_use=in_use,
        cached_bytes=cached,
        object_bytes=sizes,
        used_bytes=used,
        disk_free_bytes=disk.free,
        disk_bytes=disk.total,
    )


async def _list(_: argparse.Namespace, screen: Screen, cache: RemoteCache) -> None:
    entries = await cache.entries()
    if entries:
        headers = ("cached", "of", "share", "in use", "ETag", "URL")
        screen.table(headers, [_row(entry) for entry in entries])
    else:
        screen.line("nothing is cached")
    objects = [asdict(entry) for entry in entries]
    screen.document("cache list", folder=cache.folder, objects=objects)


def _row(entry: CacheEntry) -> tuple[str, ...]:
    size = entry.state.size
    return (
        format_bytes(entry.cached_bytes),
        format_bytes(size),
        format_share(entry.cached_bytes, size) if size else "empty",
        "yes" if entry.in_use else "no",
        printable(entry.state.etag or "-"),
        printable(entry.url),
    )


async def _clear(options: argparse.Namespace, screen: Screen, cache: RemoteCache) -> None:
    freed = await cache.clear(options.url)
    screen.line(f"{format_bytes(freed)} given up")
    screen.document("cache clear", folder=cache.folder, url=options.url, freed_bytes=freed)


async def _verify(_: argparse.Namespace, screen: Screen, cache: RemoteCache) -> None:
    report = await cache.verify()
    screen.line(
        f"{plural(report.blocks, 'block')} of {plural(report.objects, 'object')} compared, "
        f"{format_bytes(report.bytes)}: {report.bad_blocks:,} were wrong and given up"
    )
    for count, what in ((report.bad_blocks, "block"), (report.removed, "object")):
        if count:
            found = ValueError(f"{plural(count, what)} did not have the right bytes")
            screen.problem(cache.folder, found)
    screen.document("cache verify", folder=cache.folder, **asdict(report))
