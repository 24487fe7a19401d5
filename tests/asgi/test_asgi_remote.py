"""MappedFileResponse of objects of a store: ranges, the store's entity tag, honest failures."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

import aiommap
from aiommap.asgi import MappedFileResponse
from aiommap.remote import ObstoreSource, RemoteCache, RemoteError
from tests.support.asgi import CONTENT, ask
from tests.support.objects import Objects

MemoryStore = pytest.importorskip("obstore.store").MemoryStore
pytestmark = pytest.mark.anyio


@pytest.fixture
def store():
    made = MemoryStore()
    made.put("data.html", CONTENT)
    return made


@pytest.fixture
async def cache(tmp_path):
    async with RemoteCache(tmp_path / "cache", block_size=64 << 10, min_free=0.0) as made:
        yield made


def serving(source):
    """Return an application that answers every request with a source."""

    async def app(scope, receive, send):
        await MappedFileResponse(source)(scope, receive, send)

    return app


async def test_remote_snapshot_is_sent(cache, store):
    async with cache.open(ObstoreSource(store, "data.html")) as snapshot:
        app = serving(snapshot)
        whole = await ask(app, "/")
        assert (whole.status, whole.body) == (200, CONTENT)
        assert whole.headers["content-type"] == "text/html; charset=utf-8"
        head = await ask(app, "/", method="HEAD")
        assert head.headers["content-length"] == str(len(CONTENT))
        tag = whole.headers["etag"]
        part = await ask(app, "/", headers={"range": "bytes=-7", "if-range": tag})
        assert (part.status, part.body) == (206, CONTENT[-7:])
        assert (await ask(app, "/", headers={"if-none-match": tag})).status == 304
        assert (await ask(app, "/", headers={"if-match": '"other"'})).status == 412


async def test_overwritten_object_has_another_tag(cache, store):
    source, tags = ObstoreSource(store, "data.html"), []
    for content in (CONTENT, CONTENT[::-1]):
        store.put("data.html", content)
        async with cache.open(source) as snapshot:
            answer = await ask(serving(snapshot), "/")
        assert answer.body == content
        tags.append(answer.headers["etag"])
    assert tags[0] != tags[1]


async def test_object_without_a_tag(cache, store):
    async with cache.open(ObstoreSource(store, "data.html"), validator="none") as snapshot:
        answer = await ask(serving(snapshot), "/")
    assert answer.body == CONTENT
    assert "etag" not in answer.headers


async def test_snapshot_closed_meanwhile_is_sent_to_its_end(cache, store):
    async with (
        cache.open(ObstoreSource(store, "data.html")) as snapshot,
        anyio.create_task_group() as group,
    ):

        async def on_send(message):
            if message["type"] == "http.response.start":
                group.start_soon(snapshot.aclose)
            await checkpoint()
            assert not snapshot.closed

        answer = await ask(serving(snapshot), "/", on_send=on_send)
    assert answer.body == CONTENT
    assert snapshot.closed


async def test_object_overwritten_before_it_was_read_is_no_answer(cache, store):
    async with cache.open(ObstoreSource(store, "data.html")) as snapshot:
        store.put("data.html", CONTENT[::-1])
        with pytest.raises(aiommap.StaleSnapshotError):
            await ask(serving(snapshot), "/")


async def test_store_that_cannot_be_asked_is_no_answer(cache):
    """What is cached is still sent."""
    objects = Objects(CONTENT)
    async with cache.open(objects, read_ahead=False) as snapshot:
        app = serving(snapshot)
        first = await ask(app, "/", headers={"range": "bytes=0-9"})
        assert (first.body, first.headers["etag"]) == (CONTENT[:10], objects.etag)
        objects.down = RemoteError(objects.url, "no answer")
        assert (await ask(app, "/", headers={"range": "bytes=10-19"})).body == CONTENT[10:20]
        with pytest.raises(RemoteError, match="no answer"):
            await ask(app, "/", headers={"range": "bytes=-10"})
