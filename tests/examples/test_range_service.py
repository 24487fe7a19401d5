"""The range service, run in another process and asked over HTTP.

tests/asgi has the tests of what ``MappedFiles`` decides; these are about what a server sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.example_scripts import EXAMPLES

SCRIPT = EXAMPLES / "range_service.py"
MIB = 1 << 20
# More than the socket buffers of both ends hold, so such a response waits for its reader.
HUGE = 128 * MIB
CONTENT = random.Random(1).randbytes(MIB + 17)
SIZE = len(CONTENT)


class Server:
    """The service in another process; its output tells the port."""

    def __init__(self, path, served, script=SCRIPT):
        self.path = path
        command = [sys.executable, str(script), str(served), "--port", "0"]
        environment = {**os.environ, "PYTHONDEVMODE": "1"}  # warns of files left open
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(r"running on (http://\S+)", line):
                self.url = match[1]
                break
        else:
            raise AssertionError("the service did not start:\n" + "".join(self.lines))
        # A full pipe would stop the service.
        self._drain = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self._drain.start()

    def stop(self, number=signal.SIGTERM, code=-signal.SIGTERM):
        """End the service, which must end cleanly, whatever happened. uvicorn dies of SIGTERM."""
        if self.process.stderr.closed:
            return
        try:
            self.process.send_signal(number)
            assert self.process.wait(timeout=100) == code
        finally:
            self.process.kill()
            self._drain.join()
            self.process.stderr.close()
        output = "".join(self.lines)
        assert "Application shutdown complete" in output
        for trouble in ("ResourceWarning", "RuntimeWarning"):
            assert trouble not in output, output

    def private_bytes(self):
        """Return the bytes of its anonymous memory, without the cached pages of mapped files."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a service with a new file; end all services."""
    servers = []

    def start(content=CONTENT):
        folder = tmp_path / f"{len(servers)}"
        folder.mkdir()
        path = folder / "data.bin"
        path.write_bytes(content)
        servers.append(Server(path, path.parent))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One service, with a client, for all tests that change nothing."""
    path = tmp_path_factory.mktemp("shared") / "data.bin"
    path.write_bytes(CONTENT)
    server = Server(path, path.parent)
    with httpx.Client(base_url=server.url) as client:
        yield client
    server.stop()


def get(client, byte_range=None, method="GET", **headers):
    """Ask for the file; every answer must have the length that it declares."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if byte_range is not None:
        named["range"] = byte_range
    answer = client.request(method, "/data.bin", headers=named)
    if method == "GET" and answer.status_code != 304:
        assert int(answer.headers["content-length"]) == len(answer.content)
    return answer


@contextlib.contextmanager
def streamed(server):
    """Begin to get the file."""
    with httpx.Client(base_url=server.url) as client, client.stream("GET", "/data.bin") as answer:
        yield answer


def get_at_last(client, expected, *given, **headers):
    """Ask until the watcher has noticed a change; every answer before is of an older file."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        try:
            answer = get(client, *given, **headers)
        except httpx.RemoteProtocolError:  # an older file, which has lost bytes to send
            continue
        if answer.content == expected:
            return answer
    raise AssertionError(f"the last answer was {answer!r}, {answer.content[:50]}")


@pytest.mark.slow
class TestOneRequest:
    def test_serve_whole_file(self, shared):
        answer = get(shared)
        assert (answer.status_code, answer.content) == (200, CONTENT)
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-type"] == "application/octet-stream"
        assert re.fullmatch(r'"[^"]+"', answer.headers["etag"])

    @pytest.mark.parametrize(
        ("header", "first", "last"),
        [
            ("bytes=0-0", 0, 0),
            ("bytes=100-299999", 100, 299_999),
            ("bytes=1000000-", 1_000_000, SIZE - 1),
            ("bytes=-500", SIZE - 500, SIZE - 1),
            (f"bytes=5-{SIZE + 5}", 5, SIZE - 1),
            ("bytes=0-9,5-20", 0, 20),
            (f"bytes=7-8,{SIZE}-", 7, 8),
        ],
    )
    def test_serve_one_range(self, shared, header, first, last):
        answer = get(shared, header)
        assert (answer.status_code, answer.content) == (206, CONTENT[first : last + 1])
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
        assert answer.headers["content-type"] == "application/octet-stream"

    def test_serve_several_ranges(self, shared):
        answer = get(shared, f"bytes=-5,0-299999,{SIZE}-")
        assert answer.status_code == 206
        assert "content-range" not in answer.headers
        kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
        assert kind == "multipart/byteranges"
        before, *parts, end = answer.content.split(f"\r\n--{boundary}".encode())
        assert (before, end) == (b"", b"--\r\n")
        binary = "\r\nContent-Type: application/octet-stream\r\nContent-Range: "
        expected = [(SIZE - 5, SIZE - 1), (0, 299_999)]
        for part, (first, last) in zip(parts, expected, strict=True):
            head, _, body = part.partition(b"\r\n\r\n")
            assert head.decode() == f"{binary}bytes {first}-{last}/{SIZE}"
            assert body == CONTENT[first : last + 1]

    @pytest.mark.parametrize("header", [f"bytes={SIZE}-", "bytes=-0", "bytes=" + "1-2," * 101])
    def test_serve_refused_ranges(self, shared, header):
        answer = get(shared, header)
        assert (answer.status_code, answer.content) == (416, b"")
        assert answer.headers["content-range"] == f"bytes */{SIZE}"

    @pytest.mark.parametrize("header", ["bytes=5-4", "bytes", "lines=1-2", "bytes=a-"])
    def test_serve_malformed_ranges(self, shared, header):
        answer = get(shared, header)
        assert (answer.status_code, answer.content) == (200, CONTENT)
        assert "content-range" not in answer.headers

    def test_serve_head(self, shared):
        whole = get(shared)
        for header in (None, "bytes=0-9"):  # ranges are defined only for GET
            answer = get(shared, header, method="HEAD")
            assert (answer.status_code, answer.content) == (200, b"")
            for name in ("content-length", "etag", "accept-ranges", "content-type"):
                assert answer.headers[name] == whole.headers[name]

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_serve_if_none_match(self, shared, method):
        tag = get(shared).headers["etag"]
        for held in (tag, "W/" + tag, f'"other", {tag}', "*"):
            answer = get(shared, "bytes=0-9", method, if_none_match=held)
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == tag
            # A 304 may declare the length of the file, but no other (RFC 9110 §8.6).
            assert answer.headers.get("content-length", str(SIZE)) == str(SIZE)
        assert get(shared, if_none_match='"other"').content == CONTENT

    def test_serve_if_range(self, shared):
        tag = get(shared).headers["etag"]
        assert get(shared, "bytes=0-9", if_range=tag).content == CONTENT[:10]
        for other in ('"other"', "W/" + tag, "Wed, 21 Oct 2015 07:28:00 GMT"):
            answer = get(shared, "bytes=0-9", if_range=other)
            assert (answer.status_code, answer.content) == (200, CONTENT)

    def test_serve_refuses_the_rest(self, shared):
        assert shared.post("/data.bin").status_code == 405
        assert shared.get("/other").status_code == 404


@pytest.mark.slow
class TestManyRequests:
    def test_serve_concurrent_ranges(self, shared):
        draw = random.Random(3)
        pairs = [sorted(draw.choices(range(SIZE), k=2)) for _ in range(100)]

        async def ask(client, first, last):
            answer = await client.get("/data.bin", headers={"range": f"bytes={first}-{last}"})
            return answer.content == CONTENT[first : last + 1]

        async def run():
            limits = httpx.Limits(max_connections=32)
            async with httpx.AsyncClient(base_url=shared.base_url, limits=limits) as client:
                return await asyncio.gather(*(ask(client, *pair) for pair in pairs))

        assert asyncio.run(run()) == [True] * len(pairs)

    def test_serve_memory_is_bounded(self, start):
        server = start()
        os.truncate(server.path, HUGE)
        with httpx.Client(base_url=server.url) as client:
            get(client, "bytes=0-9")
            before = peak = server.private_bytes()
            total = 0
            with client.stream("GET", "/data.bin") as answer:
                for chunk in answer.iter_raw():
                    total += len(chunk)
                    peak = max(peak, server.private_bytes())
        assert total == HUGE
        assert peak - before < HUGE // 8

    def test_serve_clients_that_leave(self, start):
        server = start()
        os.truncate(server.path, HUGE)
        for _ in range(4):
            with (
                httpx.Client(base_url=server.url) as client,
                client.stream("GET", "/data.bin") as answer,
            ):
                next(answer.iter_raw())
        with httpx.Client(base_url=server.url) as client:
            assert get(client, "bytes=0-9").content == CONTENT[:10]


@pytest.mark.slow
class TestChangingFile:
    @pytest.mark.parametrize("keep", [0, 5000, MIB], ids=["nothing", "part", "first-MiB"])
    def test_serve_truncated_file_breaks_off(self, start, outside, keep):
        server = start()
        os.truncate(server.path, HUGE)

        async def read_rest(stream, received):
            async for chunk in stream:
                received += chunk

        async def download(client, begun, truncated):
            received = bytearray()
            # Some 206 and some 200; both are far longer than what the service keeps in memory.
            async with client.stream("GET", "/data.bin", headers={"range": "bytes=0-"}) as answer:
                stream = answer.aiter_raw()
                received += await anext(stream)
                begun.release()
                await truncated.wait()
                with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
                    await read_rest(stream, received)
            assert len(received) < HUGE
            assert received[:SIZE] == CONTENT[: len(received)]

        async def run():
            begun, truncated = asyncio.Semaphore(0), asyncio.Event()
            async with httpx.AsyncClient(base_url=server.url) as client, asyncio.TaskGroup() as all:
                for _ in range(8):
                    all.create_task(download(client, begun, truncated))
                for _ in range(8):
                    await begun.acquire()
                outside(server.path, keep)
                truncated.set()

        asyncio.run(run())
        with httpx.Client(base_url=server.url) as client:
            get_at_last(client, CONTENT[:keep])
            if keep:
                assert get(client, f"bytes=0-{HUGE}").content == CONTENT[:keep]
                assert get(client, f"bytes={keep}-").headers["content-range"] == f"bytes */{keep}"

    def test_serve_replaced_file_to_its_end(self, start, tmp_path):
        server = start()
        os.truncate(server.path, HUGE)
        with httpx.Client(base_url=server.url) as client:
            with client.stream("GET", "/data.bin") as answer:
                stream = answer.iter_raw()
                received = bytearray(next(stream))
                (tmp_path / "new").write_bytes(b"new")
                (tmp_path / "new").replace(server.path)
                with httpx.Client(base_url=server.url) as other:
                    get_at_last(other, b"new", "bytes=0-2")
                for chunk in stream:
                    received += chunk
            assert (received[:SIZE], len(received)) == (CONTENT, HUGE)
            assert get(client, "bytes=0-0", if_range=answer.headers["etag"]).content == b"new"

    def test_release_unmaps_old_versions(self, start, tmp_path):
        server = start()
        maps = Path(f"/proc/{server.process.pid}/maps")
        with httpx.Client(base_url=server.url) as client:
            for number in range(3):
                (tmp_path / "new").write_bytes(b"%d" % number)
                (tmp_path / "new").replace(server.path)
                get_at_last(client, b"%d" % number)
                get(client)  # the old file is closed one turn of the loop later
                deadline = time.monotonic() + 100
                while maps.read_text().count(server.path.name) != 1:
                    assert time.monotonic() < deadline
                    get(client)

    def test_serve_sees_every_change(self, start):
        server = start(b"one")
        with httpx.Client(base_url=server.url) as client:
            first = get(client)
            server.path.write_bytes(b"three")
            second = get_at_last(client, b"three", "bytes=0-1", if_range=first.headers["etag"])
            assert second.status_code == 200
            assert second.headers["etag"] != first.headers["etag"]
            server.path.write_bytes(b"")
            get_at_last(client, b"", "bytes=-5")
            server.path.unlink()
            assert get_at_last(client, b"Not Found").status_code == 404
            server.path.write_bytes(b"again")
            get_at_last(client, b"again")


@pytest.mark.slow
class TestProcess:
    def test_interrupt_ends_with_code_zero(self, start):
        server = start()
        with httpx.Client(base_url=server.url) as client:
            assert get(client, "bytes=0-9").content == CONTENT[:10]
            server.stop(signal.SIGINT, code=0)

    def test_interrupt_finishes_responses(self, start):
        server = start()
        os.truncate(server.path, HUGE)
        with (
            httpx.Client(base_url=server.url) as client,
            client.stream("GET", "/data.bin") as answer,
        ):
            stream = answer.iter_raw()
            length = len(next(stream))
            server.process.send_signal(signal.SIGTERM)
            assert length + sum(map(len, stream)) == HUGE
        assert server.process.wait(timeout=100) == -signal.SIGTERM

    def test_path_that_is_no_folder_is_refused(self, tmp_path):
        (tmp_path / "file").touch()
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path / "file")], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (3, "")
        assert "Not a directory" in done.stderr
