"""Helpers for tests of remote snapshots: contents, caches, and reads that compare every byte."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

from aiommap.remote import ObstoreSource, RemoteCache

BLOCK = 4096


def content(version, size=64 * BLOCK + 100):
    """Make the bytes of one version of an object; no block of one version is in another."""
    return random.Random(f"{version} of {size}").randbytes(size)


@asynccontextmanager
async def opened(folder, store, key="object", *, cache=None, **options):
    """Open an object in a cache of small blocks and requests."""
    settings = {"block_size": BLOCK, "request_size": 4 * BLOCK, **(cache or {})}
    async with (
        RemoteCache(folder, **settings) as made,
        made.open(ObstoreSource(store, key), **options) as snapshot,
    ):
        yield made, snapshot


async def read_all(snapshot, expected, step=3 * BLOCK + 7):
    """Read everything in steps that do not fit blocks, and compare."""
    assert snapshot.size == len(expected)
    for start in range(0, len(expected), step):
        length = min(step, len(expected) - start)
        assert await snapshot.read_exact(start, length) == expected[start : start + length], start


async def outcomes(snapshot, expected, errors, step=3 * BLOCK + 7):
    """Read everything in steps: each read gives the right bytes, or raises one of the errors."""
    found = []
    for start in range(0, len(expected), step):
        length = min(step, len(expected) - start)
        try:
            data = await snapshot.read_exact(start, length)
        except errors as error:
            found.append(error)
        else:
            assert data == expected[start : start + length], start
            found.append(None)
    return found


def asked(cache):
    """Return how many GETs and HEADs a cache has sent."""
    found = cache.statistics()
    return found.gets, found.heads
