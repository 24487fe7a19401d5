"""Following a key: 300 overwrites under 16 readers; the bytes of each read are of one version."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

import aiommap
from aiommap.remote import ObstoreSource, RemoteCache
from tests.support.remote import BLOCK, content

pytestmark = pytest.mark.anyio

SIZE = 6 * BLOCK + 11


def version_of(data):
    """Return the version that bytes are of; fail if they are of several."""
    number = int.from_bytes(data[:4], "little")
    assert data == make(number), f"bytes of several versions, the first of {number}"
    return number


def make(number):
    return number.to_bytes(4, "little") + content(f"version {number}", SIZE - 4)


@pytest.mark.parametrize(
    "overwrites", [20, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
async def test_readers_see_whole_versions(tmp_path, nginx, overwrites):
    nginx.put("followed", make(0))
    source = ObstoreSource(nginx.store(), "followed")
    readers, seen = 16, set()
    async with (
        RemoteCache(tmp_path, block_size=BLOCK) as cache,
        cache.follow(source, poll_interval=0.01, prewarm="all") as live,
        anyio.create_task_group() as group,
    ):
        reads = 0

        async def read():
            nonlocal reads
            while True:
                snapshot = live.current
                try:
                    parts = [await snapshot.read_exact(0, BLOCK)]
                    parts += await snapshot.read_many([(BLOCK, 2 * BLOCK), (3 * BLOCK, BLOCK)])
                    parts.append(await snapshot.read_exact(4 * BLOCK, SIZE - 4 * BLOCK))
                except aiommap.StaleSnapshotError:
                    continue  # overwritten before all of it was fetched
                seen.add(version_of(b"".join(parts)))
                reads += 1
                # Without this each step of following would wait for sixteen time slices.
                await checkpoint()

        for _ in range(readers):
            group.start_soon(read)
        for number in range(1, overwrites + 1):
            await anyio.to_thread.run_sync(nginx.put, "followed", make(number))
            before = reads
            with anyio.fail_after(100):
                while reads < before + readers:
                    await anyio.sleep(0.001)
                # Most versions are overwritten while they are fetched; wait for every tenth.
                while not number % 10 and number not in seen:
                    await anyio.sleep(0.001)
        group.cancel_scope.cancel()
    assert len(seen) >= overwrites // 10


async def test_pointer_names_the_object(tmp_path, nginx):
    """A small object names the current key; overwriting it moves all readers on."""
    for number in range(3):
        nginx.put(f"data-{number}", make(number))
    nginx.put("latest", b"data-0\n")
    source = ObstoreSource(nginx.store(), "latest")
    async with (
        RemoteCache(tmp_path, block_size=BLOCK) as cache,
        cache.follow(source, poll_interval=0.01, pointer=True) as live,
    ):
        for number in range(3):
            nginx.put("latest", f"data-{number}\n".encode())
            with anyio.fail_after(100):
                while version_of(await live.current.read_exact(0, SIZE)) != number:
                    await anyio.sleep(0.005)


async def test_what_was_hot_is_fetched_first(tmp_path, nginx, proxy):
    nginx.put("hot", make(0))
    source = ObstoreSource(nginx.store(proxy.port), "hot")
    async with (
        RemoteCache(tmp_path, block_size=BLOCK) as cache,
        cache.follow(source, poll_interval=0.01, prewarm="hot") as live,
    ):
        await live.current.read_exact(2 * BLOCK, 2 * BLOCK)
        first = live.current
        nginx.put("hot", make(1))
        with anyio.fail_after(100):
            while live.current is first:
                await anyio.sleep(0.005)
        proxy.forget()
        assert await live.current.read_exact(2 * BLOCK, 2 * BLOCK) == make(1)[2 * BLOCK : 4 * BLOCK]
        assert proxy.reads == []


async def test_bad_object_stays_out_of_service(tmp_path, nginx):
    nginx.put("judged", make(0))
    source = ObstoreSource(nginx.store(), "judged")
    refused = []

    async def validate(snapshot):
        return (await snapshot.read_exact(0, 4)) != (1).to_bytes(4, "little")

    async with (
        RemoteCache(tmp_path, block_size=BLOCK) as cache,
        cache.follow(
            source,
            poll_interval=0.01,
            prewarm="all",
            validate=validate,
            on_error=refused.append,
        ) as live,
    ):
        nginx.put("judged", make(1))
        with anyio.fail_after(100):
            while not refused:
                await anyio.sleep(0.005)
        assert version_of(await live.current.read_exact(0, SIZE)) == 0
        nginx.delete("judged")
        assert version_of(await live.current.read_exact(0, SIZE)) == 0
        nginx.put("judged", make(2))
        with anyio.fail_after(100):
            while version_of(await live.current.read_exact(0, SIZE)) != 2:
                await anyio.sleep(0.005)
