"""URLs in commands: objects of stores, read through the cache that programs use."""

from __future__ import annotations

import argparse
import importlib.util
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread

import aiommap
from aiommap.remote import ObstoreSource, RemoteCache, RemoteError, RemoteSnapshot, RemoteState

from ._arguments import file_name
from ._contenders import Contender, Reader

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_url(text: str) -> bool:
    """Tell whether an argument names an object of a store; ``./s3://x`` is a file of that name."""
    return _URL.match(text) is not None


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Give a command its ``--cache`` option."""
    parser.add_argument(
        "--cache",
        type=file_name,
        metavar="DIR",
        help="where blocks of URLs are kept (default: aiommap in the user's folder of caches)",
    )


def check_engine() -> None:
    """Raise if URLs cannot be read; the error says what to install."""
    if importlib.util.find_spec("obstore") is None:
        raise OSError("reading URLs needs obstore: pip install 'aiommap[remote]'")


@asynccontextmanager
async def open_url(
    url: str, folder: str | None
) -> AsyncIterator[tuple[RemoteCache, RemoteSnapshot]]:
    """Open an object through a new cache, over the folder that programs share."""
    check_engine()
    async with RemoteCache(folder) as cache, cache.open(url, read_ahead=False) as snapshot:
        yield cache, snapshot


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """One change of an object of a store, with the attributes of a change of a file."""

    path: str
    kind: aiommap.ChangeKind
    old: RemoteState | None
    new: RemoteState | None
    detected_ns: int
    merged: int = 0
    source: str = "poll"


async def object_changes(
    source: ObstoreSource, old: RemoteState | RemoteError | None, interval: float
) -> AsyncIterator[ObjectChange | RemoteError]:
    """Poll the state of an object; yield its changes, and the first error of each outage.

    Args:
        source: the source of the object.
        old: the first state, as ``state_of`` returned it.
        interval: seconds between two requests.
    """
    failed = isinstance(old, RemoteError)
    while True:
        await anyio.sleep(interval)
        known = None if isinstance(old, RemoteError) else old
        found = await anyio.to_thread.run_sync(state_of, source, known)
        if isinstance(found, RemoteError):
            if not failed:
                yield found
            failed = True
            continue
        failed = False
        if not isinstance(old, RemoteError) and found != old:
            yield ObjectChange(source.url, _kind(old, found), old, found, time.time_ns())
        old = found


def state_of(source: ObstoreSource, known: RemoteState | None) -> RemoteState | RemoteError | None:
    """Ask for the state of an object now; None if there is no object. Worker threads only."""
    try:
        return source.stat(known) or known
    except FileNotFoundError:
        return None
    except RemoteError as error:
        return error


def _kind(old: RemoteState | None, new: RemoteState | None) -> aiommap.ChangeKind:
    if old is None:
        return aiommap.ChangeKind.CREATED
    return aiommap.ChangeKind.REMOVED if new is None else aiommap.ChangeKind.REPLACED


def url_contenders(folder: str | None) -> dict[str, Contender]:
    """Return ways to read an object of a store: through the cache, and by a GET for each read."""

    @asynccontextmanager
    async def cached(url: str, tasks: int) -> AsyncIterator[Sequence[Reader]]:
        async with open_url(url, folder) as (_, snapshot):
            yield [snapshot.read_exact] * tasks

    @asynccontextmanager
    async def plain(url: str, tasks: int) -> AsyncIterator[Sequence[Reader]]:
        source = await anyio.to_thread.run_sync(ObstoreSource.from_url, url)
        state = await anyio.to_thread.run_sync(source.stat, None)
        assert state is not None

        async def read(offset: int, length: int) -> bytes:
            data, _ = await anyio.to_thread.run_sync(source.fetch, offset, offset + length, state)
            return bytes(memoryview(data))

        yield [read] * tasks

    return {"aiommap": cached, "obstore in a thread": plain}


async def prepare_url(url: str, folder: str | None, *, cold: bool) -> float:
    """Fetch an object into the cache, or clear it; return the share that is cached."""
    async with open_url(url, folder) as (cache, snapshot):
        if cold:
            await snapshot.aclose()
            await cache.clear(url)
            return 0.0
        await snapshot.prewarm()
        found = await snapshot.residency()
        return found.cached / found.size if found.size else 1.0
