"""Ways to read a file from a coroutine: each is an async context manager that yields readers.

A contender yields one reader for each task, because some readers have a position. All of them are
awaited on the caller's loop and return bytes.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import aiommap

from ._stdlib import in_thread, stdlib_mapping

#: Reads ``length`` bytes at ``offset``.
Reader = Callable[[int, int], Awaitable[bytes]]

#: Opens a path for a number of tasks, and yields a reader for each.
Contender = Callable[[str, int], AbstractAsyncContextManager[Sequence[Reader]]]


@asynccontextmanager
async def aiommap_readers(path: str, tasks: int) -> AsyncIterator[Sequence[Reader]]:
    """Read through aiommap: one open file for all tasks."""
    async with aiommap.open(path) as file:
        yield [file.read] * tasks


@asynccontextmanager
async def mmap_readers(path: str, tasks: int) -> AsyncIterator[Sequence[Reader]]:
    """Slice a stdlib mmap in a thread: one mapping for all tasks."""
    async with stdlib_mapping(path) as mapping:

        async def read(offset: int, length: int) -> bytes:
            return await in_thread(lambda: mapping[offset : offset + length])

        yield [read] * tasks


@asynccontextmanager
async def pread_readers(path: str, tasks: int) -> AsyncIterator[Sequence[Reader]]:
    """Call pread in a thread: one descriptor for all tasks."""
    descriptor = await in_thread(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    async def read(offset: int, length: int) -> bytes:
        return await in_thread(lambda: os.pread(descriptor, length, offset))

    try:
        yield [read] * tasks
    finally:
        os.close(descriptor)


@asynccontextmanager
async def aiofiles_readers(path: str, tasks: int) -> AsyncIterator[Sequence[Reader]]:
    """Read through aiofiles: one handle for each task, because a handle has a position."""
    aiofiles = importlib.import_module("aiofiles")

    def reader(handle: Any) -> Reader:
        async def read(offset: int, length: int) -> bytes:
            await handle.seek(offset)
            data: bytes = await handle.read(length)
            return data

        return read

    async with AsyncExitStack() as stack:
        # Unbuffered: a buffer would read more than was asked for at each random offset.
        opened = [
            await stack.enter_async_context(aiofiles.open(path, "rb", buffering=0))
            for _ in range(tasks)
        ]
        yield [reader(handle) for handle in opened]


@asynccontextmanager
async def aiofile_readers(path: str, tasks: int) -> AsyncIterator[Sequence[Reader]]:
    """Read through aiofile, which hands requests to the kernel's or its own queue (caio)."""
    aiofile = importlib.import_module("aiofile")
    async with aiofile.AIOFile(path, "rb") as file:

        async def read(offset: int, length: int) -> bytes:
            data: bytes = await file.read_bytes(length, offset)
            return data

        yield [read] * tasks


def available_contenders() -> tuple[dict[str, Contender], list[str]]:
    """Return the contenders by name, ours first, and the names of those that are not installed.

    It imports the libraries of the contenders, so that no loop has to wait for an import later.
    """
    contenders: dict[str, Contender] = {
        "aiommap": aiommap_readers,
        "mmap in a thread": mmap_readers,
        "pread in a thread": pread_readers,
    }
    missing = []
    for name, contender in (("aiofiles", aiofiles_readers), ("aiofile", aiofile_readers)):
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
        else:
            contenders[name] = contender
    return contenders, missing
