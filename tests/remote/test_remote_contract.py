"""A remote snapshot is a ``StorageBackend``, with every server that serves ranges."""

from __future__ import annotations

import uuid

import pytest

from aiommap.remote import ObstoreSource, RemoteCache
from aiommap.testing import StorageBackendSuite
from tests.support import remote_servers
from tests.support.remote import BLOCK


class _Backend:
    """A snapshot together with its cache."""

    def __init__(self, cache, snapshot):
        self.cache, self.snapshot = cache, snapshot

    @property
    def size(self):
        return self.snapshot.size

    async def read_exact(self, offset, length):
        return await self.snapshot.read_exact(offset, length)

    async def aclose(self):
        await self.snapshot.aclose()
        await self.cache.aclose()


class _Contract(StorageBackendSuite):
    kind: type[remote_servers.Server]
    readers = 16

    @pytest.fixture(autouse=True)
    def _server(self, started):
        self.server = started(self.kind)

    async def make_backend(self, content, folder):
        key = f"contract-{uuid.uuid4().hex}"
        self.server.put(key, content)
        cache = RemoteCache(folder / "cache", block_size=BLOCK, request_size=2 * BLOCK)
        source = ObstoreSource(self.server.store(), key)
        try:
            return _Backend(cache, await cache.open(source))
        except BaseException:
            await cache.aclose()
            raise


class TestMemory(_Contract):
    kind = remote_servers.Memory


class TestLocal(_Contract):
    kind = remote_servers.Local


@pytest.mark.slow
class TestNginx(_Contract):
    kind = remote_servers.Nginx


@pytest.mark.slow
class TestMoto(_Contract):
    kind = remote_servers.Moto


@pytest.mark.slow
class TestJuiceFS(_Contract):
    kind = remote_servers.JuiceFS


@pytest.mark.slow
class TestAzurite(_Contract):
    kind = remote_servers.Azurite


@pytest.mark.slow
class TestFakeGCS(_Contract):
    kind = remote_servers.FakeGCS


@pytest.mark.anyio
@pytest.mark.parametrize("server", remote_servers.KINDS, ids=lambda kind: kind.name, indirect=True)
async def test_every_server_is_read_right(tmp_path, server):
    """Reads from each server are right, or raise: rclone does not serve ranges."""
    import aiommap
    from aiommap.remote import RemoteError
    from tests.support.remote import content, opened, read_all

    expected, other = content("old"), content("new")
    server.put("read-right", expected)
    if server.name == "rclone":
        with pytest.raises((RemoteError, aiommap.UnsupportedError)):
            async with opened(tmp_path, server.store(), "read-right") as (_, snapshot):
                await read_all(snapshot, expected)
        return
    async with opened(tmp_path, server.store(), "read-right") as (_, snapshot):
        await snapshot.read_exact(0, BLOCK)
        server.put("read-right", other)
        assert await snapshot.read_exact(0, BLOCK) == expected[:BLOCK]
        if snapshot.version is None:
            with pytest.raises(aiommap.StaleSnapshotError):
                await snapshot.verify()
    async with opened(tmp_path, server.store(), "read-right") as (_, snapshot):
        await read_all(snapshot, other)
