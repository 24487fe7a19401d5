"""How a coroutine would use the standard library to map and read a file without aiommap."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """Call a function in a worker thread of asyncio, whose hop costs half as much as anyio's."""
    return await asyncio.to_thread(call)


@asynccontextmanager
async def stdlib_mapping(path: str, *, writable: bool = False) -> AsyncIterator[mmap.mmap]:
    """Map a whole file; calls that may touch its pages belong in ``in_thread``."""
    mapping = await in_thread(lambda: _map(path, writable=writable))
    with mapping:
        yield mapping


def _map(path: str, *, writable: bool) -> mmap.mmap:
    # The mapping has its own descriptor.
    with open(path, "r+b" if writable else "rb") as file:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return mmap.mmap(file.fileno(), 0, access=access)
