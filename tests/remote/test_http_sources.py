"""Credentials, retries and errors of plain HTTP, as a server of the standard library sees them."""

from __future__ import annotations

import base64
import threading
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import anyio.to_thread
import pytest
from obstore.store import HTTPStore

from aiommap.remote import ObstoreSource, RemoteError
from tests.support.internals import source_of_url


@pytest.mark.parametrize("path", ["a/b", "a%20b", "a?id=7"])
@pytest.mark.anyio
async def test_user_of_a_url_is_sent_as_basic_credentials(path):
    heard = []
    with answering(heard) as port:
        source = source_of_url(f"http://us%20er:p%40ss%3Aword@127.0.0.1:{port}/{path}")
        assert (await anyio.to_thread.run_sync(source.stat, None)).size == 3
        beside = source.beside("c")
        assert (await anyio.to_thread.run_sync(beside.stat, None)).size == 3
    assert heard == [f"Basic {base64.b64encode(b'us er:p@ss:word').decode()}"] * 2
    assert "ss" not in f"{source!r} {source.url} {beside!r}"


@pytest.mark.parametrize("name", ["//localhost:9/c", "http://localhost:9/c"])
def test_credentials_go_to_no_other_host(name):
    """A pointer may name a key on another host."""
    source = source_of_url("http://user:word@127.0.0.1:9/a%20b")
    with pytest.raises(ValueError, match="not of the store"):
        source.beside(name)


@pytest.mark.parametrize("url", ["s3://key:word@bucket/x", "https://k:w@b.s3.amazonaws.com/x"])
def test_user_in_the_url_of_another_store_is_refused(url):
    with pytest.raises(ValueError, match="pass an ObstoreSource") as caught:
        source_of_url(url)
    assert "word" not in str(caught.value)
    assert "k:w" not in str(caught.value)


@pytest.mark.anyio
async def test_attempts_count_the_retries_of_the_engine():
    heard = []
    with answering(heard, status=503) as port:
        retries = {"max_retries": 2, "backoff": {"init_backoff": timedelta(milliseconds=1)}}
        store = HTTPStore(
            f"http://127.0.0.1:{port}",
            client_options={"allow_http": True},
            retry_config={**retries, "retry_timeout": timedelta(seconds=9)},
        )
        with pytest.raises(RemoteError) as caught:
            await anyio.to_thread.run_sync(ObstoreSource(store, "x").stat, None)
    assert (caught.value.status, caught.value.attempts) == (503, 3)
    assert len(heard) == 3


@pytest.mark.anyio
async def test_missing_object_has_no_blank_name():
    with answering([], status=404) as port:
        source = source_of_url(f"http://127.0.0.1:{port}/a%20b")
        with pytest.raises(FileNotFoundError) as caught:
            await anyio.to_thread.run_sync(source.stat, None)
    assert "location" not in str(caught.value)
    assert f"http://127.0.0.1:{port}/a%20b" in str(caught.value)


@contextmanager
def answering(heard, status=200):
    """Answer each HEAD with a status; note the credentials that came with it."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            heard.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Length", "3" if status == 200 else "0")
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()
