"""Readers of remote objects through a cache, power cuts of its folder, and what a cut broke.

A cache promises only that it never serves wrong bytes. So a test judges each cut by reading every
object through what the cut left, twice: the second time from what the first one stored.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread

from aiommap.remote import RemoteCache
from tests.powercut.mount import RecordingMount
from tests.powercut.records import Record, SyncBegin, SyncEnd
from tests.powercut.replay import Choose, Disk, nothing_survives
from tests.support.internals import Header, cache_folder, crc32c
from tests.support.objects import Objects
from tests.support.remote import BLOCK, content

BLOCKS = 24
READERS = 4
READS_EACH = 30
ANOTHER_BOOT = b"another boot of."


def objects() -> list[Objects]:
    """Make the objects: two, and two versions of a third, which have one address."""
    made = [Objects(content(n, BLOCKS * BLOCK - 9 * n), f"test://host/{n}") for n in range(3)]
    newer = Objects(content(3, len(made[2].data)), made[2].url, etag='"2"')
    return [*made, newer]


def cache_in(folder: Path, **options: object) -> RemoteCache:
    """Make a cache of small blocks."""
    options = {"block_size": BLOCK, "request_size": 4 * BLOCK, "min_free": 0.0, **options}
    return RemoteCache(folder, **options)


async def record_readers(mount: RecordingMount, rng: random.Random, room: int) -> list[Record]:
    """Record readers of all objects in a cache that has room for some of their blocks.

    Now and then they sync its files, so that stores to its mapped words are recorded: a kernel
    writes them back whenever it likes. The recording leaves the syncs themselves out, as no cache
    asks for one.
    """
    folder = mount.path / "cache"

    async def reader(cache: RemoteCache, seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(READS_EACH // 3):
            source = mine.choice(sources)
            async with cache.open(source, read_ahead=mine.random() < 0.5) as snapshot:
                for _ in range(3):
                    start = mine.randrange(len(source.data))
                    length = min(mine.randrange(1, 5 * BLOCK), len(source.data) - start)
                    data = await snapshot.read_exact(start, length)
                    assert data == source.data[start : start + length]
            await anyio.to_thread.run_sync(_write_back, folder)

    sources = objects()
    for _ in range(2):  # the second one finds a cache that is there
        async with cache_in(folder, max_bytes=room) as cache:
            async with anyio.create_task_group() as group:
                for _ in range(READERS):
                    group.start_soon(reader, cache, rng.randrange(1 << 30))
            await cache.verify()
    return [record for record in mount.log() if not isinstance(record, SyncBegin | SyncEnd)]


def _write_back(folder: Path) -> None:
    for path in folder.glob("*.map"):
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # given up meanwhile
            continue
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@dataclass
class Outcome:
    """What a cache found in what one cut left.

    Attributes:
        position: of the cut in the recording.
        kept: blocks of an earlier boot that were served.
        bad: blocks of an earlier boot whose sum was wrong.
        fault: what is wrong, if anything.
    """

    position: int
    kept: int = 0
    bad: int = 0
    fault: str | None = field(default=None)


@contextmanager
def booted(boot: bytes) -> Iterator[None]:
    """Pretend for a block that this is another boot of the machine."""
    before = cache_folder.boot_id
    cache_folder.boot_id = lambda: boot
    try:
        yield
    finally:
        cache_folder.boot_id = before


async def recover_each(
    log: Sequence[Record],
    positions: Iterable[int],
    folder: Path,
    choose: Choose = nothing_survives,
    boot: bytes = ANOTHER_BOOT,
) -> list[Outcome]:
    """Cut the power at each position, and read everything through what is left."""
    outcomes, disk = [], Disk()
    for position in sorted(positions):
        await anyio.to_thread.run_sync(disk.follow, log[disk.position : position])
        left = await anyio.to_thread.run_sync(disk.power_cut, choose)
        await anyio.to_thread.run_sync(lay_down, folder, left)
        with booted(boot):
            outcomes.append(await read_everything(position, folder / "cache"))
    return outcomes


async def read_everything(position: int, folder: Path) -> Outcome:
    """Read all objects twice through a cache, and compare every byte."""
    outcome, sources = Outcome(position), objects()
    errors: list[Exception] = []
    for _ in range(2):
        async with cache_in(folder, on_error=errors.append) as cache:
            for source in sources:
                async with cache.open(source) as snapshot:
                    found = await snapshot.read_exact(0, len(source.data))
                if found != source.data:
                    outcome.fault = f"wrong bytes of {source.url} {source.etag}"
            outcome.kept += cache.statistics().verified_blocks
            outcome.bad += cache.statistics().bad_blocks
            report = await cache.verify()
            if report.bad_blocks:
                outcome.fault = f"{report.bad_blocks} blocks are wrong, and would have been served"
    if errors:
        outcome.fault = f"the cache failed: {errors}"
    return outcome


def lay_down(folder: Path, left: dict[str, bytes]) -> None:
    """Make a folder out of what a cut left, as if every file had kept its inode."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, bytes_left in left.items():
        path = folder / name
        if path.name.startswith(".fuse_hidden"):  # it was unlinked
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes_left)
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    for path in folder.glob("cache/*.map"):
        adopt(path)


def adopt(path: Path) -> None:
    """Have a map say that the data beside it is the file that it was made for, if it is whole."""
    data = path.with_suffix(".data")
    with path.open("r+b") as file:
        try:
            header, found = Header.unpack(file.read(4096), crc32c), data.stat()
        except (ValueError, FileNotFoundError):
            return
        header.device, header.inode = found.st_dev, found.st_ino
        file.seek(0)
        file.write(header.pack(crc32c))
