"""The objects that a scene works with, and the error that it raises."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import anyio.to_thread

import aiommap

from .outsider import Outsider

PAGE = aiommap.PAGE_SIZE
#: Longer than any slow operation takes; an operation that takes longer hangs.
PATIENCE_SECONDS = 30.0


class BrokenOracleError(AssertionError):
    """An oracle found something that must not be."""


def expect(truth: object, what: str) -> None:
    """Raise ``BrokenOracleError`` unless ``truth`` is true."""
    if not truth:
        raise BrokenOracleError(what)


@dataclass
class Scene:
    """The things that one actor works with in one scene."""

    folder: str
    hub: aiommap.Hub
    rng: random.Random
    outsider: Outsider
    #: What was done, for the progress lines.
    counts: Counter[str]
    #: What to break on purpose.
    sabotage: frozenset[str] = frozenset()

    def path(self, name: str = "file") -> str:
        """Return a path in the scene's own folder."""
        return os.path.join(self.folder, name)

    def acknowledged(self, count: int) -> None:
        """Count bytes that a verb reported as written."""
        self.counts["acknowledged bytes"] += count


async def make(path: str, content: bytes) -> None:
    """Write a file without the library, off the loop thread."""

    def write() -> None:
        with open(path, "wb") as file:
            file.write(content)

    await anyio.to_thread.run_sync(write)


async def look(path: str) -> bytes:
    """Read a file without the library, off the loop thread."""

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    return await anyio.to_thread.run_sync(read)


async def expect_content(path: str, expected: bytes | bytearray) -> None:
    """Compare a whole file with the expected bytes."""
    found = await look(path)
    if found == expected:
        return
    name = os.path.basename(path)
    expect(len(found) == len(expected), f"{name}: {len(found)} bytes, not {len(expected)}")
    wrong = [at for at, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
    raise BrokenOracleError(
        f"{name}: {len(wrong)} acknowledged bytes lost, the first at {wrong[0]}"
    )


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition that must become true by itself."""
    with anyio.move_on_after(PATIENCE_SECONDS):
        while not await condition():
            await anyio.sleep(0.002)
        return
    raise BrokenOracleError(f"waited {PATIENCE_SECONDS:g} s in vain: {what}")
