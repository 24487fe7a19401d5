"""Sources: the states and errors that they make of the answers of engines."""

from __future__ import annotations

import fsspec
import obstore
import pytest
from obstore.store import HTTPStore, LocalStore, MemoryStore, S3Store

from aiommap import StaleSnapshotError, UnsupportedError
from aiommap.remote import FsspecSource, ObstoreSource, RemoteError, RemoteSource, RemoteState
from tests.support.internals import ObjectIdentity, source_of_url, without_secrets

DATA = bytes(range(256)) * 16


@pytest.fixture
def memory():
    store = MemoryStore()
    obstore.put(store, "folder/key", DATA)
    return store


def test_fetch_returns_bytes_and_state_of_response(memory):
    source = ObstoreSource(memory, "folder/key")
    assert isinstance(source, RemoteSource)
    state = source.stat(None)
    assert (state.size, state.version) == (len(DATA), None)
    body, found = source.fetch(10, 300, state)
    assert (bytes(body), found) == (DATA[10:300], state)


def test_stat_of_what_is_known_is_none(memory):
    source = ObstoreSource(memory, "folder/key")
    known = source.stat(None)
    assert source.stat(known) is None
    obstore.put(memory, "folder/key", b"new")
    assert source.stat(known).size == 3


def test_fetch_of_changed_object_is_stale(memory):
    source = ObstoreSource(memory, "folder/key")
    state = source.stat(None)
    obstore.put(memory, "folder/key", DATA)
    with pytest.raises(StaleSnapshotError, match="was changed"):
        source.fetch(0, 10, state)


def test_missing_object_is_not_found(memory, tmp_path):
    for store in (memory, LocalStore(str(tmp_path))):
        with pytest.raises(FileNotFoundError) as caught:
            ObstoreSource(store, "other").stat(None)
        assert caught.value.filename.endswith("/other")


def test_address_names_endpoint_and_no_secret():
    store = S3Store(
        "bucket",
        prefix="a",
        endpoint="http://127.0.0.1:9",
        access_key_id="id",
        secret_access_key="secret",
        region="x",
        client_options={"allow_http": True},
    )
    assert ObstoreSource(store, "b/c d").url == "http://127.0.0.1:9/bucket/a/b/c%20d"
    http = HTTPStore(
        "http://user:word@127.0.0.1:9/dir?sig=hunter2", client_options={"allow_http": True}
    )
    source = ObstoreSource(http, "k")
    assert source.url.partition(";query=")[0] == "http://127.0.0.1:9/dir/k"
    assert "word" not in repr(source)
    assert "hunter2" not in repr(source)


def test_memory_stores_have_addresses_of_their_own(memory):
    other = MemoryStore()
    assert ObstoreSource(memory, "k").url == ObstoreSource(memory, "k").url
    assert ObstoreSource(memory, "k").url != ObstoreSource(other, "k").url


def test_unreachable_store_is_a_remote_error_without_secrets():
    store = HTTPStore(
        "http://user:word@127.0.0.1:9/dir?sig=1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(RemoteError) as caught:
        ObstoreSource(store, "k").stat(None)
    text = f"{caught.value} {caught.value!r} {caught.value.args}"
    assert "word" not in text
    assert "sig" not in text


def test_url_of_a_file(tmp_path):
    (tmp_path / "a b").write_bytes(DATA)
    source = source_of_url(f"file://{tmp_path}/a%20b")
    state = source.stat(None)
    assert bytes(source.fetch(0, 5, state)[0]) == DATA[:5]
    assert source.url == f"file://{tmp_path}/a%20b"


@pytest.mark.parametrize("url", ["bucket/key", "s3://bucket", "file:///", "memory://k"])
def test_url_that_names_no_object_is_refused(url):
    with pytest.raises(ValueError, match=r"key|URL"):
        source_of_url(url)


def test_fsspec_tells_state_before_and_after(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    source = FsspecSource(fsspec.filesystem("file"), str(path))
    state = source.stat(None)
    assert (state.size, state.etag) == (len(DATA), None)
    assert state.modified is not None
    body, found = source.fetch(3, 9, state)
    assert (bytes(body), found) == (DATA[3:9], state)
    path.write_bytes(b"other")
    assert source.fetch(0, 3, state)[1] != state
    path.unlink()
    with pytest.raises(FileNotFoundError):
        source.stat(None)


def test_identity_needs_its_validator():
    with pytest.raises(UnsupportedError, match="no ETag"):
        ObjectIdentity.of("u", RemoteState(1), "etag")
    for etag in ('W/"a"', 'w/"a"'):
        with pytest.raises(UnsupportedError, match="weak"):
            ObjectIdentity.of("u", RemoteState(1, etag), "etag")
    for etag in ("", '""', '"', "*"):
        with pytest.raises(UnsupportedError, match="tells nothing apart"):
            ObjectIdentity.of("u", RemoteState(1, etag), "etag")
    with pytest.raises(UnsupportedError, match="modified"):
        ObjectIdentity.of("u", RemoteState(1), "modified")


@pytest.mark.parametrize("validator", ["etag", "modified", "none"])
def test_identity_compares_what_counts(validator):
    state = RemoteState(9, '"a"', "1", "then")
    identity = ObjectIdentity.of("u", state, validator)
    assert identity.is_of(state)
    assert not identity.is_of(RemoteState(8, '"a"', "1", "then"))
    assert not identity.is_of(RemoteState(9, '"a"', "2", "then"))
    assert identity.is_of(RemoteState(9, '"a"', None, "then"))
    assert identity.is_of(RemoteState(9, '"b"', "1", "then")) == (validator != "etag")
    assert identity.is_of(RemoteState(9, '"a"', "1", "now")) == (validator != "modified")


def test_secrets_are_taken_out():
    text = 'GET https://u:p@h/a?X-Amz-Signature=1&b=2 and "http://h/x#f" failed'
    assert without_secrets(text) == 'GET https://h/a and "http://h/x" failed'


def test_query_that_names_an_object_is_told_by_its_hash():
    one, two = (source_of_url(f"http://127.0.0.1:9/get?id={n}&token=hunter2") for n in (1, 2))
    assert one.url != two.url
    assert one.url.startswith("http://127.0.0.1:9/get;query=")
    assert "hunter2" not in one.url


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Algorithm=AWS4&X-Amz-Signature=a1&X-Amz-Date=b",
        "sv=2024&sr=b&se=2027&sp=r&sig=abc",
        "Expires=1&Signature=x&Key-Pair-Id=k",
    ],
)
def test_signed_urls_of_an_object_are_one(query):
    assert source_of_url(f"http://127.0.0.1:9/a/b?{query}").url == "http://127.0.0.1:9/a/b"


def test_url_sources_share_connections():
    one, two = (source_of_url(f"http://127.0.0.1:9/{name}") for name in "ab")
    assert one._store is two._store
    assert (one.url, two.url) == ("http://127.0.0.1:9/a", "http://127.0.0.1:9/b")


def test_object_beside_another(memory):
    assert ObstoreSource(memory, "folder/LATEST").beside("key").stat(None).size == len(DATA)
    for url in ("http://127.0.0.1:9/a/LATEST", "http://127.0.0.1:9/a/LAT%20EST"):
        assert source_of_url(url).beside("key").url == "http://127.0.0.1:9/a/key"
