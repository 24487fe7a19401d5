"""The standard library's ways, as one would use them from a coroutine without aiommap."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """Call something in a worker thread, by asyncio: its hop costs half of what anyio's does."""
    return await asyncio.to_thread(call)


@asynccontextmanager
async def stdlib_mapping(path: str, *, writable: bool = False) -> AsyncIterator[mmap.mmap]:
    """Map a whole file; calls that may touch its pages belong in ``in_thread``."""
    mapping = await in_thread(lambda: _map(path, writable=writable))
    with mapping:
        yield mapping


def _map(path: str, *, writable: bool) -> mmap.mmap:
    # The mapping keeps a descriptor of its own.
    with open(path, "r+b" if writable else "rb") as file:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return mmap.mmap(file.fileno(), 0, access=access)
