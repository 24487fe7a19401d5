"""Remote snapshots keep the contract of a ``StorageBackend``, with engines that need no server."""

from __future__ import annotations

import fsspec
import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from aiommap.remote import FsspecSource, ObstoreSource, RemoteCache
from aiommap.testing import StorageBackendSuite


class _Owned:
    """A snapshot that closes its cache when it is closed."""

    def __init__(self, cache, snapshot):
        self._cache, self._snapshot = cache, snapshot
        self.read_exact = snapshot.read_exact

    @property
    def size(self):
        return self._snapshot.size

    async def aclose(self):
        try:
            await self._snapshot.aclose()
        finally:
            await self._cache.aclose()


class _Suite(StorageBackendSuite):
    async def make_backend(self, content, folder):
        place = folder / str(len(list(folder.iterdir())))
        place.mkdir()
        source, options = self.source(content, place)
        cache = RemoteCache(place / "cache", block_size=4096, min_free=0.0)
        return _Owned(cache, await cache.open(source, **options))


class TestMemoryStoreBackend(_Suite):
    def source(self, content, place):
        store = MemoryStore()
        obstore.put(store, "key", content)
        return ObstoreSource(store, "key"), {}


class TestLocalStoreBackend(_Suite):
    def source(self, content, place):
        (place / "key").write_bytes(content)
        return ObstoreSource(LocalStore(str(place)), "key"), {}


class TestUrlBackend(_Suite):
    def source(self, content, place):
        (place / "key").write_bytes(content)
        return f"file://{place}/key", {}


class TestFsspecBackend(_Suite):
    def source(self, content, place):
        (place / "key").write_bytes(content)
        source = FsspecSource(fsspec.filesystem("file"), str(place / "key"))
        return source, {"validator": "modified"}


class TestUnstoredBackend(_Suite):
    """A cache without room stores nothing, and still reads."""

    async def make_backend(self, content, folder):
        place = folder / str(len(list(folder.iterdir())))
        place.mkdir()
        (place / "key").write_bytes(content)
        cache = RemoteCache(place / "cache", block_size=4096, max_bytes=0)
        return _Owned(cache, await cache.open(f"file://{place}/key"))


del _Suite
pytestmark = pytest.mark.anyio
