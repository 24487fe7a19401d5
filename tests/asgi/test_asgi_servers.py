"""MappedFiles under real servers, on every event loop, while its files are replaced."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from tests.support.asgi import CONTENT, SIZE
from tests.support.http_servers import RawClient, hypercorn, uvicorn

pytestmark = pytest.mark.slow
REPLACEMENTS = 300


def served_by_hypercorn(worker):
    return lambda root: hypercorn(root, worker)


SERVERS = {
    "uvicorn-httptools": uvicorn,
    "uvicorn-h11": lambda root: uvicorn(root, http="h11"),
    "hypercorn-asyncio": served_by_hypercorn("asyncio"),
    "hypercorn-trio": served_by_hypercorn("trio"),
}


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
def test_served_by(serve, folder):
    with serve(folder) as port, contextlib.closing(RawClient(port)) as client:
        whole = client.ask("GET", "/data.bin")
        assert (whole.status, whole.body) == (200, CONTENT)
        fields = [("Range", f"bytes={SIZE - 5}-"), ("If-Range", whole.headers["etag"])]
        part = client.ask("GET", "/data.bin", fields)
        assert (part.status, part.body) == (206, CONTENT[-5:])
        many = client.ask("GET", "/data.bin", [("Range", "bytes=0-9,300000-900000")])
        assert (many.status, len(many.body)) == (206, int(many.headers["content-length"]))
        head = client.ask("HEAD", "/data.bin")
        assert (head.status, head.headers["content-length"]) == (200, str(SIZE))
        assert client.ask("GET", "/../data.bin").status == 400
        assert client.ask("GET", "/none").status == 404


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
def test_truncated_file_breaks_the_connection(serve, folder):
    """It is more than the sockets hold, so the server is still sending when it is truncated."""
    path = folder / "data.bin"
    os.truncate(path, 64 << 20)
    with serve(folder) as port, contextlib.closing(RawClient(port)) as client:

        def truncate(_):
            os.truncate(path, 1 << 20)

        with pytest.raises((AssertionError, ConnectionError), match=r"broke off|reset"):
            client.ask("GET", "/data.bin", on_body=truncate)


def content_of(version):
    """Make content of which every part, and the length, tells the version."""
    return b"%08d" % version * (10_000 + version)


def ask_until_seen(client, version, seen, troubles):
    """Send requests until a reader has seen a version or found an error."""
    while version not in seen and not troubles:
        client.ask("GET", "/data.bin")


def test_replaced_under_load_each_answer_is_one_version(folder):
    """Every client gets whole versions, each with its own tag, and never an older one again."""
    path, beside = folder / "data.bin", folder / "beside"
    path.write_bytes(content_of(0))
    over, troubles, seen, tags = threading.Event(), [], set(), {}

    def read(port):
        newest = 0
        with contextlib.closing(RawClient(port)) as client:
            while not over.is_set():
                answer = client.ask("GET", "/data.bin")
                version = int(answer.body[:8])
                if answer.status != 200 or answer.body != content_of(version) or version < newest:
                    troubles.append((answer.status, version, newest, len(answer.body)))
                if tags.setdefault(answer.headers["etag"], version) != version:
                    troubles.append(("one tag for two", version))
                newest = version
                seen.add(version)

    with uvicorn(folder) as port:
        threads = [threading.Thread(target=read, args=[port]) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            with contextlib.closing(RawClient(port)) as client:
                for version in range(1, REPLACEMENTS + 1):
                    beside.write_bytes(content_of(version))
                    beside.replace(path)
                    if version % 3 == 0:  # otherwise two or three follow at once
                        client.ask("GET", "/data.bin")
                    if version % 9 == 0 or version == REPLACEMENTS:
                        ask_until_seen(client, version, seen, troubles)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert not troubles
    assert len(seen) > REPLACEMENTS / 10
