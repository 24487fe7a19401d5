"""The least that a cache has to do for a first read, by hand, with nothing around it."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import mmap
import os
import struct
from functools import partial
from typing import Any

from tests.support.internals import crc32c

from ._remote_peers import BLOCK, READ
from ._remote_setting import Setting, Step, timed


def fetch_into(store: Any, folder: str, *, new: bool) -> None:
    """Fetch a block into the fewest files that a cache can have; if ``new``, make a folder."""
    import obstore

    if new:
        os.mkdir(folder)
        os.close(os.open(f"{folder}/marker", os.O_RDWR | os.O_CREAT))
    data, words = (os.open(f"{folder}/{name}", os.O_RDWR | os.O_CREAT) for name in "dw")
    os.ftruncate(data, 1 << 28)
    os.posix_fallocate(words, 0, 16 << 10)
    os.pwrite(data, obstore.get(store, "object", options={"range": (0, BLOCK)}).bytes(), 0)
    os.close(data)
    os.close(words)


class BareCache:
    """A cache that does for a first read what our invariants need, in one thread, and no more.

    Its folder has a marker, with a lease, the folder's lock and a count. An object has a file with
    holes, and a file with a header, and a word and a sum for each block. The word is written last.
    """

    def __init__(self, folder: str) -> None:
        os.mkdir(folder)
        self._folder = folder
        self._marker = os.open(f"{folder}/marker", os.O_RDWR | os.O_CREAT)
        self._lock(self._marker, fcntl.F_WRLCK, 4096)
        os.pwrite(self._marker, bytes(128), 0)

    @staticmethod
    def _lock(fd: int, kind: int, start: int = 0) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, start, 1, 0))

    def fetch_first(self, store: Any) -> mmap.mmap:
        """Fetch the first block of an object, and store it; return the mapped object."""
        import obstore

        response = obstore.get(store, "object", options={"range": (0, BLOCK)})
        size, etag = response.meta["size"], str(response.meta["e_tag"])
        path = f"{self._folder}/{hashlib.sha256(etag.encode()).hexdigest()}"
        flags, length = os.O_RDWR | os.O_CREAT | os.O_EXCL, 4096 + 12 * -(-size // BLOCK)
        self._lock(self._marker, fcntl.F_WRLCK)
        count = os.pread(self._marker, 128, 0)
        data = os.open(f"{path}.data", flags)
        os.ftruncate(data, size)
        words = os.open(f"{path}.map", flags)
        self._lock(words, fcntl.F_RDLCK)
        os.posix_fallocate(words, 0, length)
        os.pwrite(words, etag.encode().ljust(4096, b"\0"), 0)
        os.pwrite(self._marker, count, 0)
        self._lock(self._marker, fcntl.F_UNLCK)
        body = response.bytes()
        os.pwrite(data, body, 0)
        with mmap.mmap(words, length) as mapped:
            mapped[4100:4108] = struct.pack("<Q", crc32c(body))
            mapped[4096:4100] = struct.pack("<I", 2)
        view = mmap.mmap(data, size, prot=mmap.PROT_READ)
        os.close(words)
        os.close(data)
        return view

    def close(self) -> None:
        """Close the folder."""
        os.close(self._marker)


def first_bytes_of(store: Any, folder: str | BareCache) -> tuple[BareCache, mmap.mmap]:
    """Fetch the first block of an object through a bare cache; make the cache if it is missing."""
    cache = BareCache(folder) if isinstance(folder, str) else folder
    return cache, cache.fetch_first(store)


def steps_by_hand(setting: Setting, found: dict[str, list[float]]) -> list[Step]:
    """Make steps that read the first bytes by hand: with files that are made, or a folder, too."""

    async def by_hand(*, new: bool) -> None:
        """A GET by obstore and what a cache keeps of it, in files of its own; nothing else."""
        folder = setting.kept()
        if not new:
            os.mkdir(folder)
        with timed(found["by hand, new" if new else "by hand"]):
            await asyncio.to_thread(fetch_into, setting.store, folder, new=new)

    async def bare(*, new: bool) -> None:
        """The same, and what our invariants need besides."""
        folder = setting.kept()
        place = folder if new else BareCache(folder)
        with timed(found["bare, new" if new else "bare"]):
            cache, mapped = await asyncio.to_thread(first_bytes_of, setting.store, place)
            mapped[:READ]
        mapped.close()
        cache.close()

    return [partial(step, new=new) for step in (by_hand, bare) for new in (True, False)]
