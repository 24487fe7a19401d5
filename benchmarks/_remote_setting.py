"""Helpers of the questions about remote objects: the object, its server, folders and turns."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aiommap.remote import ObstoreSource, RemoteCache, RemoteSnapshot, RemoteSource

from ._harness import MIB
from ._remote_peers import READ

Step = Callable[[], Awaitable[object]]


@dataclass
class Setting:
    """The object, its server, a folder, and the number of rounds, for all questions."""

    url: str
    store: Any
    path: str
    size: int
    folder: Path
    rounds: int

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """Name a folder that does not exist yet, and remove it afterwards.

        So later rounds use the same memory again. Memory that a virtual machine touches for the
        first time is slow, whoever touches it.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as made:
            yield f"{made}/cache"

    def kept(self) -> str:
        """Name a folder that does not exist yet, and keep it until all questions are answered.

        For some seconds ext4 does not reuse the inode of a deleted file, and each new file has to
        step over all such inodes. With the folders of earlier rounds deleted, a file took 160
        microseconds; with them kept, 31.
        """
        return f"{tempfile.mkdtemp(dir=self.folder)}/cache"

    def touch_memory(self) -> None:
        """Leave free pages that the machine has touched before, for the folders that are kept."""
        path = self.folder / "touched"
        path.write_bytes(bytes(256 * MIB))
        path.unlink()

    @cached_property
    def etag(self) -> str | None:
        """The ETag of the object."""
        import obstore

        return obstore.head(self.store, "object").get("e_tag")

    def source(self) -> ObstoreSource:
        return ObstoreSource(self.store, "object")

    @asynccontextmanager
    async def opened(
        self, source: RemoteSource | None = None, workers: int = 16, **options: Any
    ) -> AsyncIterator[tuple[RemoteCache, RemoteSnapshot]]:
        """Open the object in a cache of its own that holds nothing."""
        with self.fresh() as folder:
            async with (
                RemoteCache(folder, workers=workers) as cache,
                cache.open(source or self.source(), **options) as snapshot,
            ):
                yield cache, snapshot

    def offsets(self, count: int) -> list[int]:
        return [random.randrange(self.size // READ) * READ for _ in range(count)]


@contextmanager
def timed(found: list[float]) -> Iterator[None]:
    """Keep how many seconds a block took."""
    start = time.perf_counter()
    yield
    found.append(time.perf_counter() - start)


def turns(rounds: int, steps: Sequence[Step]) -> Iterator[Step]:
    """Yield each step once a round, in an order that is drawn anew for each round.

    Work that a step leaves to the disk and the kernel slows the next step down.
    """
    drawn = random.Random(1)
    for _ in range(rounds):
        yield from drawn.sample(steps, len(steps))
