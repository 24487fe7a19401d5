"""Pointers: they name an object of their own store, and nothing else that this machine can read."""

from __future__ import annotations

import pytest
from fsspec.implementations.local import LocalFileSystem
from obstore.store import GCSStore, LocalStore, S3Store

from aiommap.remote import FsspecSource, ObstoreSource

pytestmark = pytest.mark.anyio

WAYS = ("url", "obstore", "fsspec")
REFUSED = "names an object of its own store"


class Tagged(LocalFileSystem):
    """A folder whose files have an ETag."""

    cachable = False

    def info(self, path, **options):
        found = super().info(path, **options)
        return {**found, "ETag": f"{found['mtime']}"}


@pytest.fixture
def folder(tmp_path):
    """A folder with objects, and a file beside it that is none of them."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d2").mkdir()
    for name in ("d/one", "d/e/two", "d2/secret", "secret"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.fixture(params=WAYS)
def pointer(request, folder):
    """Set the pointer in the folder, and return a source of it."""

    def make(text):
        path = folder / "d" / "LATEST"
        path.write_text(text.format(folder))
        if request.param == "url":
            return f"file://{path}"
        if request.param == "obstore":
            return ObstoreSource(LocalStore(folder / "d"), "LATEST")
        return FsspecSource(Tagged(), str(path))

    return make


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("one", b"d/one"),
        ("e/two\n", b"d/e/two"),
        ("/e/two", b"d/e/two"),
        ("file://{}/d/e/two", b"d/e/two"),
    ],
)
async def test_object_of_the_folder_is_served(make_cache, pointer, text, data):
    async with make_cache() as cache, cache.follow(pointer(text), pointer=True) as live:
        assert await live.current.read_exact(0, live.current.size) == data


@pytest.mark.parametrize(
    "text",
    [
        "file://{}/secret",
        "file://{}/d2/secret",
        "file://{}/d/../secret",
        "file://{}/d/%2E%2E/secret",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "../secret",
        "e/../../secret",
        "http://127.0.0.1:9/x",
        "s3://bucket/key",
    ],
)
async def test_file_outside_the_folder_is_refused(make_cache, pointer, text):
    async with make_cache() as cache:
        with pytest.raises(ValueError, match=REFUSED):
            await cache.follow(pointer(text), pointer=True)


@pytest.fixture(params=["LATEST", "LAT%20EST", "LATEST?x=1"], ids=["plain", "spelt", "query"])
def web(request, nginx):
    """Set a pointer on an HTTP server, and return its URL."""
    nginx.put("d/one", b"first")

    def make(text):
        nginx.put(f"d/{request.param.partition('?')[0].replace('%20', ' ')}", text.encode())
        return f"http://127.0.0.1:{nginx.port}/d/{request.param}"

    return make


@pytest.mark.parametrize(
    "text", ["one", "http://127.0.0.1:{}/d/one", "http://127.0.0.1:{}/d/one?y"]
)
async def test_object_of_the_host_is_served(make_cache, nginx, web, text):
    url = web(text.format(nginx.port))
    async with make_cache() as cache, cache.follow(url, pointer=True) as live:
        assert await live.current.read_exact(0, 5) == b"first"


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "http://127.0.0.1:9/d/one",
        "http://127.0.0.2:{}/d/one",
        "https://127.0.0.1:{}/d/one",
        "http://user@127.0.0.1:{}/d/one",
        "http://127.0.0.2:9\\@127.0.0.1:{}/d/one",
        "http://127.0.0.1:{}/d\none",
        "s3://bucket/key",
    ],
)
async def test_object_of_another_host_is_refused(make_cache, nginx, web, text):
    url = web(text.format(nginx.port))
    async with make_cache() as cache:
        with pytest.raises(ValueError, match=REFUSED):
            await cache.follow(url, pointer=True)


@pytest.mark.parametrize("text", ["//127.0.0.1:9/d/one", "file:/etc/passwd"])
async def test_name_that_leaves_the_host_is_refused_or_is_a_key(make_cache, web, text):
    async with make_cache() as cache:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            await cache.follow(web(text), pointer=True)
        assert "/d" in str(caught.value)


KEYS = {"access_key_id": "dummy", "secret_access_key": "dummy", "region": "x"}
ACCOUNT = '{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}'


@pytest.mark.parametrize(
    ("store", "scheme"),
    [
        (S3Store("b", **KEYS), "s3://b"),
        (S3Store("b", **KEYS, endpoint="https://h:1"), "s3://b"),
        (S3Store("b", **KEYS, endpoint="https://h:1"), "https://h:1/b"),
        (GCSStore("b", service_account_key=ACCOUNT), "gs://b"),
    ],
)
async def test_url_of_the_bucket_is_read_by_the_same_store(store, scheme):
    pointer = ObstoreSource(store, "d/LATEST")
    found = pointer.beside(f"{scheme}/e/a%20b")
    assert found.url == pointer.url.replace("d/LATEST", "e/a%20b")
    assert found._store is store
    for other in (f"{scheme}2/e", scheme, f"{scheme}/e?x", "file:///b/e", "https://h:1/b2/e"):
        with pytest.raises(ValueError, match=r"not of the store|no key"):
            pointer.beside(other)
