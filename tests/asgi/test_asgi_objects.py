"""MappedFiles over objects of a store: answers, how often the store is asked, outages."""

from __future__ import annotations

import math

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aiommap import Hub
from aiommap.asgi import MappedFiles
from aiommap.remote import ObstoreSource, RemoteCache, RemoteError, RemoteFolder
from tests.support.asgi import CONTENT, SIZE, Answer, ask
from tests.support.objects import Objects

pytestmark = pytest.mark.anyio

BLOCK = 64 << 10


@pytest.fixture
async def cache(tmp_path):
    async with RemoteCache(tmp_path / "cache", block_size=BLOCK, min_free=0.0) as made:
        yield made


@pytest.fixture
def objects():
    return Objects(CONTENT)


def serving(cache, objects, max_age=math.inf, **options):
    """Serve one object under every name."""
    folder = RemoteFolder(cache, lambda _: objects, max_age=max_age)
    return MappedFiles(folder, **options)


async def test_objects_are_served_by_name(cache):
    store = pytest.importorskip("obstore.store").MemoryStore()
    names = {
        "/data.bin": "data.bin",
        "/a/b%20c/%C3%A9.txt": "a/b c/é.txt",
        "//a/./x/../b": "a/b",
        "/": "index.html",
        "/a/": "a/index.html",
    }
    for name in names.values():
        store.put(name, name.encode())
    async with MappedFiles(RemoteFolder(cache, lambda name: ObstoreSource(store, name))) as app:
        for path, name in names.items():
            for _ in range(2):
                answer = await ask(app, path)
                assert (answer.status, answer.body) == (200, name.encode())
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert (await ask(app, "/missing")).status == 404
        assert (await ask(app, "/a/../../data.bin")).status == 400
        assert (await ask(app, "/data.bin", "PUT")).status == 405


async def test_ranges_and_conditions(cache, objects):
    async with serving(cache, objects) as app:
        whole = await ask(app, "/x")
        assert (whole.status, whole.body) == (200, CONTENT)
        assert whole.headers["etag"] == objects.etag
        part = await ask(app, "/x", headers={"range": "bytes=-7", "if-range": objects.etag})
        assert (part.status, part.body) == (206, CONTENT[-7:])
        head = await ask(app, "/x", "HEAD")
        assert (head.body, head.headers) == (b"", whole.headers)
        assert (await ask(app, "/x", headers={"if-none-match": objects.etag})).status == 304
        assert (await ask(app, "/x", headers={"if-match": '"other"'})).status == 412


async def test_store_is_asked_once_while_an_object_is_fresh(cache, objects):
    async with serving(cache, objects) as app, anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(ask, app, "/x")
    assert objects.stats == 1
    assert objects.fetched == SIZE


async def test_store_is_asked_each_time_without_an_age(cache, objects):
    async with serving(cache, objects, max_age=0) as app:
        for _ in range(3):
            assert (await ask(app, "/x")).body == CONTENT
    assert objects.stats == 3
    assert objects.fetched == SIZE


async def test_overwritten_object_is_served_once_the_store_is_asked(cache, objects):
    async with serving(cache, objects, max_age=0) as app:
        first = await ask(app, "/x")
        objects.put(CONTENT[::-1])
        second = await ask(app, "/x", headers={"if-none-match": first.headers["etag"]})
        assert (second.status, second.body) == (200, CONTENT[::-1])


async def test_overwritten_object_whose_blocks_are_gone_is_opened_again(cache, objects):
    """What is cached is not too old yet, but the store has no more of that version."""
    async with serving(cache, objects) as app:
        await ask(app, "/x", headers={"range": "bytes=0-9"})
        objects.put(CONTENT[::-1])
        answer = await ask(app, "/x", headers={"range": "bytes=-9"})
        assert (answer.status, answer.body) == (206, CONTENT[::-1][-9:])
        assert answer.headers["etag"] == objects.etag


async def test_request_under_way_gets_the_object_that_it_began_with(cache, objects):
    answer, newer = Answer(), []
    async with serving(cache, objects, max_age=0) as app:
        await ask(app, "/x")  # caches all of it

        async def on_send(message):
            if not newer:
                objects.put(CONTENT[::-1])
                newer.append(await ask(app, "/x"))

        await ask(app, "/x", on_send=on_send, answer=answer)
    assert (answer.body, newer[0].body) == (CONTENT, CONTENT[::-1])


async def test_what_is_cached_is_served_while_the_store_is_down(cache, objects):
    async with serving(cache, objects, max_age=0) as app:
        await ask(app, "/x", headers={"range": "bytes=0-9"})
        objects.down = RemoteError(objects.url, "no answer")
        answer = await ask(app, "/x", headers={"range": "bytes=10-19"})
        assert (answer.status, answer.body) == (206, CONTENT[10:20])
        assert (await ask(app, "/x", headers={"range": "bytes=-9"})).status == 502
        assert (await ask(app, "/y")).status == 502
        objects.down = None
        assert (await ask(app, "/x")).body == CONTENT


async def test_object_that_may_not_be_read(cache, objects):
    async with serving(cache, objects, max_age=0) as app:
        await ask(app, "/x")
        objects.down = PermissionError(13, "no", objects.url)
        assert (await ask(app, "/x")).status == 403
        objects.down = None
        objects.gone = True
        assert (await ask(app, "/x")).status == 404


async def test_objects_given_up_are_closed(cache):
    def source_of(name):
        return Objects(name.encode(), url=f"test://host/{name}")

    folder = RemoteFolder(cache, source_of, max_age=math.inf)
    async with MappedFiles(folder, cache=2) as app:
        for number in range(10):
            assert (await ask(app, f"/{number}")).body == b"%d" % number
        with anyio.fail_after(100):
            while cache.statistics().open_objects > 2:
                await checkpoint()
        assert (await ask(app, "/9")).body == b"9"
    assert cache.statistics().heads == 10


async def test_leaving_the_hub_that_was_passed_ends_serving(cache, objects):
    async with Hub() as hub:
        app = serving(cache, objects, hub=hub)
        assert (await ask(app, "/x")).body == CONTENT
    with pytest.raises(anyio.ClosedResourceError):
        await ask(app, "/x")
