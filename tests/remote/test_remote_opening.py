"""Opening an object of which nothing is cached: its state and first block come in one response."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap.remote import ObstoreSource, RemoteCache, RemoteError
from tests.support.fault_proxy import Fault, always, cut, etag, nothing, once
from tests.support.internals import CACHE_MARKER, forget_address
from tests.support.objects import BLOCK, DATA, BegunObjects, Objects
from tests.support.remote import asked, content, opened, outcomes, read_all

pytestmark = pytest.mark.anyio


@pytest.fixture
def objects():
    return BegunObjects(DATA)


async def test_first_block_comes_with_the_state(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(5, 10) == DATA[5:15]
        assert (objects.begun, objects.gets, objects.stats) == ([BLOCK], [], 0)
        found = cache.statistics()
        assert (found.gets, found.heads, found.fetched_bytes) == (1, 0, BLOCK)
        assert await s.read_exact(0, len(DATA)) == DATA
        assert objects.fetched == len(DATA) - BLOCK


async def test_small_object_is_one_request(make_cache, objects):
    objects.put(b"small")
    async with make_cache() as cache, cache.open(objects, prewarm=True) as s:
        assert await s.read_exact(0, 5) == b"small"
        assert (await s.residency()).cached == 5
        assert asked(cache) == (1, 0)


async def test_empty_object_has_no_first_block(make_cache, objects):
    objects.put(b"")
    async with make_cache() as cache, cache.open(objects) as s:
        assert (s.size, await s.read_exact(0, 0)) == (0, b"")
        assert asked(cache) == (1, 0)


async def test_opening_does_not_wait_for_the_block(make_cache, objects):
    objects.gate.clear()
    async with make_cache() as cache, cache.open(objects) as s:
        found = []

        async def read():
            found.append(await s.read_exact(0, 10))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            group.start_soon(read)
            await anyio.to_thread.run_sync(objects.asked.acquire)
            assert not found
            objects.gate.set()
        assert found == [DATA[:10]] * 2
        assert (objects.gets, asked(cache)) == ([], (1, 0))


async def test_what_is_cached_is_asked_for_its_state(make_cache, objects):
    for expected in ((1, 0), (0, 1), (0, 1)):
        async with make_cache() as cache, cache.open(objects) as s:
            assert await s.read_exact(0, 10) == DATA[:10]
            assert asked(cache) == expected
    assert objects.begun == [BLOCK]


async def test_second_opening_asks_for_the_state(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as one, cache.open(objects) as two:
        assert await one.read_exact(0, 10) == await two.read_exact(0, 10) == DATA[:10]
        assert (len(objects.begun), objects.stats, objects.gets) == (1, 1, [])


async def test_no_read_ahead_asks_for_the_state(make_cache, objects):
    async with make_cache() as cache, cache.open(objects, read_ahead=False) as s:
        assert (await s.residency()).cached == 0
        assert (objects.begun, asked(cache)) == ([], (0, 1))


@pytest.mark.parametrize("clear", ["all", "object"])
async def test_cleared_object_is_asked_for_its_first_block(make_cache, objects, clear):
    async with make_cache() as cache:
        for _ in range(2):
            async with cache.open(objects) as s:
                assert await s.read_exact(0, 10) == DATA[:10]
            assert await cache.clear(objects if clear == "object" else None)
        assert objects.begun == [BLOCK, BLOCK]


async def test_clearing_an_object_in_use_forgets_its_address(make_cache, objects):
    async with make_cache() as cache, cache.open(objects, prewarm=True):
        assert await cache.clear()
        async with cache.open(objects) as s:
            assert await s.read_exact(0, 10) == DATA[:10]
        assert objects.begun == [BLOCK, BLOCK]


async def test_overwritten_object_is_read_right(make_cache, objects):
    """The hint is about an address, whatever lies there."""
    async with make_cache() as cache, cache.open(objects, prewarm=True) as old:
        objects.put(DATA[::-1])
        async with cache.open(objects) as new:
            assert await new.read_exact(0, len(DATA)) == DATA[::-1]
        assert await old.read_exact(0, len(DATA)) == DATA
    assert objects.begun == [BLOCK]


def forget(path, url):
    with open(path, "r+b") as file:
        forget_address(file.fileno(), url)


async def test_forgotten_address_costs_a_request_and_no_more(make_cache, objects):
    """Another address took its place in the table: what is cached stays, and is right."""
    async with make_cache() as cache, cache.open(objects, prewarm=True):
        folder = cache.folder
    await anyio.to_thread.run_sync(forget, f"{folder}/{CACHE_MARKER}", objects.url)
    objects.gets.clear()
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        found = cache.statistics()
        assert (found.gets, found.heads, found.fetched_bytes) == (1, 0, 0)
        assert objects.gets == []


async def test_forgotten_address_is_found_without_room(make_cache, objects):
    """What is cached needs no room, although the table says that nothing is."""
    async with make_cache() as cache, cache.open(objects, prewarm=True):
        folder = cache.folder
    await anyio.to_thread.run_sync(forget, f"{folder}/{CACHE_MARKER}", objects.url)
    objects.gets.clear()
    async with make_cache(min_free=0.999) as cache, cache.open(objects) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        assert (objects.begun, objects.gets, cache.statistics().evicted_bytes) == (
            [BLOCK] * 2,
            [],
            0,
        )


async def test_blocks_of_another_size_do_not_take_it(make_cache, objects):
    async with make_cache(block_size=2 * BLOCK) as cache, cache.open(objects, read_ahead=False):
        folder = cache.folder
    await anyio.to_thread.run_sync(forget, f"{folder}/{CACHE_MARKER}", objects.url)
    async with make_cache(workers=1) as cache, cache.open(objects) as s:
        async with cache.open(Objects(b"other", url="test://host/other")):
            pass  # the only thread has ended the first opening
        assert (objects.begun, objects.gets, (await s.residency()).cached) == ([BLOCK], [], 0)
        assert await s.read_exact(0, len(DATA)) == DATA


@pytest.mark.parametrize("got", [0, BLOCK - 1, BLOCK + 1])
async def test_block_of_another_length_is_asked_for_again(make_cache, objects, got):
    objects.tear = lambda data: bytes(got)
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        assert asked(cache)[0] == 1 + len(objects.gets)


async def test_block_that_fails_is_an_error_once(make_cache, objects):
    def tear(data):
        raise RemoteError(objects.url, "reset")

    objects.tear = tear
    objects.gate.clear()
    async with make_cache() as cache, cache.open(objects) as s:
        async with anyio.create_task_group() as group:

            async def read():
                with pytest.raises(RemoteError, match="reset") as caught:
                    await s.read_exact(0, 10)
                assert (caught.value.offset, caught.value.length) == (0, BLOCK)

            group.start_soon(read)
            await anyio.to_thread.run_sync(objects.asked.acquire)
            objects.gate.set()
        assert await s.read_exact(0, 10) == DATA[:10]


async def test_object_that_is_not_there(make_cache, objects):
    objects.gone = True
    async with make_cache() as cache:
        with pytest.raises(FileNotFoundError):
            await cache.open(objects)
        objects.gone = False
        async with cache.open(objects) as s:
            assert await s.read_exact(0, 10) == DATA[:10]
        assert (objects.begun, objects.stats, asked(cache)) == ([BLOCK] * 2, 0, (2, 0))


async def test_store_that_is_down(make_cache, objects):
    objects.down = RemoteError(objects.url, "no route")
    async with make_cache() as cache:
        with pytest.raises(RemoteError, match="no route"):
            await cache.open(objects)
        assert objects.stats == 0


async def test_no_validator_is_refused(make_cache, objects):
    objects.etag = None
    async with make_cache() as cache:
        with pytest.raises(aiommap.UnsupportedError, match="ETag"):
            await cache.open(objects)
        async with cache.open(objects, validator="none") as s:
            assert await s.read_exact(0, 10) == DATA[:10]


async def test_closing_does_not_wait_for_the_block(make_cache, objects):
    objects.gate.clear()
    async with make_cache() as cache:
        s = await cache.open(objects)
        await anyio.to_thread.run_sync(objects.asked.acquire)
        await s.aclose()
    objects.gate.set()
    objects.stats = 0
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(0, 10) == DATA[:10]


async def test_servers_tell_both_at_once(tmp_path, server):
    """Servers that give no range are asked for the state instead."""
    ranges = server.name not in ("rclone", "fake-gcs")
    expected = content("first")
    for key, data in (("first-block", expected), ("short", b"short"), ("empty", b"")):
        server.put(key, data)
        async with opened(tmp_path / key, server.store(), key) as (cache, s):
            assert s.size == len(data)
            if ranges:
                assert await s.read_exact(0, min(10, s.size)) == data[:10]
                assert asked(cache) == (1, int(not data))
    with pytest.raises(FileNotFoundError):
        async with opened(tmp_path / "none", server.store(), "none"):
            pass


FAULTS = {
    "reset": (once(cut(1000), times=2), True),
    "fin": (once(cut(1000, reset=False), times=2), True),
    "storm": (once(Fault(status=503), times=3), True),
    "range-ignored": (once(Fault(ignore=("range",))), True),
    "no-range": (once(Fault(headers={"content-range": None})), True),
    "lasting-reset": (always(cut(1000)), False),
    "lasting-storm": (always(Fault(status=503)), False),
    "no-etag": (always(etag(None)), False),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if "lasting" in name else ()) for name in FAULTS],
)
async def test_faults_of_the_first_response(tmp_path, nginx, proxy, name):
    """Opening and reading succeed or raise; and both succeed once the fault is over."""
    rule, passes = FAULTS[name]
    expected = content("faults")
    nginx.put("first-faults", expected)
    errors = (RemoteError, aiommap.StaleSnapshotError, aiommap.UnsupportedError)
    proxy.rule = rule
    try:
        async with opened(tmp_path, nginx.store(proxy.port), "first-faults") as (_, s):
            found = await outcomes(s, expected, errors)
            assert passes == (not any(found))
    except errors:
        assert not passes
    proxy.rule = nothing
    async with opened(tmp_path, nginx.store(proxy.port), "first-faults") as (_, s):
        await read_all(s, expected)


async def test_size_that_no_process_can_map(tmp_path, nginx, proxy):
    """A server lies about the size: the error says so, and the next opening is right."""
    expected = content("huge")
    nginx.put("huge", expected)
    proxy.rule = always(Fault(headers={"content-range": f"bytes 0-{BLOCK - 1}/{1 << 62}"}))
    with pytest.raises(RemoteError, match=rf"has {1 << 62} bytes.*Content-Range"):
        async with opened(tmp_path, nginx.store(proxy.port), "huge"):
            pass
    proxy.rule = nothing
    async with opened(tmp_path, nginx.store(proxy.port), "huge") as (_, s):
        await read_all(s, expected)


def refuse(status, *methods):
    return lambda request: Fault(status=status) if request.method in methods else None


def methods_seen(proxy):
    """Return the methods of the requests since the last call."""
    seen = [request.method for request in proxy.seen]
    proxy.forget()
    return seen


@pytest.mark.parametrize("status", [403, 405, 501])
async def test_object_opens_where_its_state_alone_is_refused(tmp_path, nginx, proxy, status):
    """It opens a second time, too, and if all of it is cached: then nothing is fetched twice."""
    expected = content("no HEAD")
    nginx.put("no-head", expected)
    store = nginx.store(proxy.port)
    proxy.rule = refuse(status, "HEAD")
    async with opened(tmp_path, store, "no-head") as (cache, s):
        await read_all(s, expected)
        assert asked(cache)[1] == 0
    for _ in range(2):
        proxy.forget()
        async with opened(tmp_path, store, "no-head") as (cache, s):
            await read_all(s, expected)
            found = cache.statistics()
            assert (found.gets, found.heads, found.fetched_bytes) == (1, 1, 0)
            assert proxy.ranges == [(0, BLOCK)]
    nginx.put("no-head", expected[::-1])
    async with opened(tmp_path, store, "no-head") as (_, s):
        await read_all(s, expected[::-1])


async def test_refused_state_without_read_ahead(tmp_path, nginx, proxy):
    expected = content("no HEAD")
    nginx.put("no-head-2", expected)
    proxy.rule = refuse(405, "HEAD")
    store = nginx.store(proxy.port)
    async with opened(tmp_path, store, "no-head-2", read_ahead=False) as (cache, s):
        assert asked(cache) == (1, 1)
        await read_all(s, expected)


@pytest.mark.parametrize("status", [403, 404, 405, 410])
async def test_object_that_is_refused_altogether(tmp_path, nginx, proxy, status):
    """Only a 404 says that there is no object; and no method is tried twice."""
    expected = content("refused")
    nginx.put("refused", expected)
    store = nginx.store(proxy.port)
    error = {403: PermissionError, 404: FileNotFoundError}.get(status, RemoteError)
    proxy.rule = refuse(status, "GET", "HEAD")
    async with RemoteCache(tmp_path, block_size=BLOCK) as cache:
        source = ObstoreSource(store, "refused")
        with pytest.raises(error, match=str(status)) as caught:
            await cache.open(source)
        assert getattr(caught.value, "status", status) == status
        assert "no such object" not in str(caught.value) or status == 404
        assert methods_seen(proxy) == ["GET"] + ["HEAD"] * (error is RemoteError)
        proxy.rule = nothing
        async with cache.open(source) as s:
            await read_all(s, expected)
        proxy.rule = refuse(status, "GET", "HEAD")
        proxy.forget()
        with pytest.raises(error):
            await cache.open(source)
        assert methods_seen(proxy) == ["HEAD"] + ["GET"] * (status in (403, 405))


@pytest.mark.slow
async def test_lasting_storm_is_outlasted_once(tmp_path, nginx, proxy):
    """If the server could not be asked for the block, it is not asked for the state."""
    nginx.put("first-storm", content("storm"))
    proxy.rule = always(Fault(status=503))
    async with RemoteCache(tmp_path) as cache:
        with pytest.raises(RemoteError, match="503"):
            await cache.open(ObstoreSource(nginx.store(proxy.port), "first-storm"))
        assert asked(cache) == (1, 0)


async def test_version_is_that_of_the_first_response(tmp_path, moto):
    """What is overwritten between opening and reading is still read."""
    old, new = content("old"), content("new")
    moto.put("pinned", old)
    async with opened(tmp_path, moto.store(), "pinned") as (_, s):
        moto.put("pinned", new)
        assert (s.version is None) or await s.read_exact(0, len(old)) == old
