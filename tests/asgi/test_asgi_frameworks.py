"""MappedFiles and MappedFileResponse in Starlette, FastAPI and Litestar, as users write them."""

from __future__ import annotations

import random

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount, Route

import aiommap
from aiommap.asgi import MappedFileResponse, MappedFiles
from tests.support.asgi import ask

FastAPI = pytest.importorskip("fastapi").FastAPI
pytestmark = pytest.mark.anyio
CONTENT = random.Random(1).randbytes(1 << 20)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "www"
    (made / "docs").mkdir(parents=True)
    (made / "docs" / "index.html").write_bytes(b"<p>")
    (made / "data.bin").write_bytes(CONTENT)
    return made


def starlette(files):
    return Starlette(routes=[Mount("/files", files), Route("/", lambda request: None)])


def fastapi(files):
    app = FastAPI()
    app.mount("/files", files)
    return app


def nested(files):
    return Starlette(routes=[Mount("/outer", starlette(files))])


def in_middleware(files):
    """Mount the files below a middleware that passes the body on itself, piece by piece."""

    async def pass_on(request, call_next):
        return await call_next(request)

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=pass_on)]
    return Starlette(routes=[Mount("/files", files)], middleware=middleware)


@pytest.fixture(params=[starlette, fastapi, nested, in_middleware], ids=lambda make: make.__name__)
async def client(request, folder):
    """A client of an application in which the folder is mounted."""
    async with MappedFiles(folder) as files:
        app = request.param(files)
        base = "http://test/outer/files" if request.param is nested else "http://test/files"
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base) as made:
            yield made


class TestMounted:
    async def test_mounted_get(self, client):
        answer = await client.get("/data.bin")
        assert (answer.status_code, answer.content) == (200, CONTENT)
        field = {"range": "bytes=10-19", "if-range": answer.headers["etag"]}
        part = await client.get("/data.bin", headers=field)
        assert (part.status_code, part.content) == (206, CONTENT[10:20])
        again = await client.get("/data.bin", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")

    async def test_mounted_head(self, client):
        answer = await client.head("/data.bin")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == str(len(CONTENT))

    async def test_mounted_refusals(self, client):
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.get("/%2e%2e/data.bin")).status_code == 400
        assert (await client.post("/data.bin")).status_code == 405

    async def test_mounted_folder(self, client):
        answer = await client.get("/docs?x=1", follow_redirects=True)
        assert (answer.status_code, answer.content) == (200, b"<p>")
        assert answer.url.path.endswith("/files/docs/")
        assert answer.url.query == b"x=1"


async def test_mounted_in_litestar(folder):
    """Litestar puts a slash at the end of every path."""
    litestar = pytest.importorskip("litestar")
    async with MappedFiles(folder) as files:
        mount = litestar.asgi("/files", is_mount=True, copy_scope=False)
        app = litestar.Litestar([mount(files)])
        for path, status in (
            ("/data.bin", 200),
            ("/data.bin/", 404),
            ("/data.bin%2F", 404),
            ("/docs", 301),
            ("/docs/", 200),
            ("/docs%2f", 200),
            ("/nothing", 404),
        ):
            assert (await ask(app, f"/files{path}")).status == status, path


async def test_truncated_under_middleware_is_no_whole_answer(folder):
    """A middleware that compresses sends no length, so only an error can reveal it."""
    (folder / "text.txt").write_bytes(b"text " * (1 << 18))
    async with MappedFiles(folder) as files:
        app = GZipMiddleware(in_middleware(files))

        async def on_send(message):
            (folder / "text.txt").open("wb").close()

        with pytest.raises((aiommap.MappingFaultError, ExceptionGroup)):
            await ask(app, "/files/text.txt", headers={"accept_encoding": "gzip"}, on_send=on_send)


def endpoint(make):
    """Return a client of an application with one endpoint, which returns what ``make`` makes."""

    async def answer():
        return make()

    app = FastAPI()
    app.api_route("/", methods=["GET", "HEAD"])(answer)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


class TestResponse:
    async def test_response_of_path(self, folder):
        async with endpoint(lambda: MappedFileResponse(folder / "data.bin")) as client:
            answer = await client.get("/")
            assert (answer.status_code, answer.content) == (200, CONTENT)
            assert answer.headers["content-type"] == "application/octet-stream"
            fields = {"range": "bytes=-7", "if-range": answer.headers["etag"]}
            assert (await client.get("/", headers=fields)).content == CONTENT[-7:]
            head = await client.head("/")
            assert head.headers["content-length"] == str(len(CONTENT))

    async def test_response_of_path_in_a_hub(self, folder):
        async with aiommap.Hub() as hub:
            make = lambda: MappedFileResponse(folder / "docs" / "index.html", hub=hub)  # noqa: E731
            async with endpoint(make) as client:
                answer = await client.get("/")
            assert (answer.content, answer.headers["content-type"]) == (
                b"<p>",
                "text/html; charset=utf-8",
            )
            assert not hub.files

    @pytest.mark.parametrize("name", ["nothing", "docs", "data.bin/x"])
    async def test_response_of_path_to_no_file(self, folder, name):
        async with endpoint(lambda: MappedFileResponse(folder / name)) as client:
            assert (await client.get("/")).status_code == 404

    async def test_response_of_snapshot(self, folder):
        async with aiommap.Snapshot.open(folder / "data.bin") as snapshot:
            async with endpoint(lambda: MappedFileResponse(snapshot)) as client:
                answer = await client.get("/", headers={"range": "bytes=5-9"})
                assert (answer.status_code, answer.content) == (206, CONTENT[5:10])
            assert not snapshot.closed

    async def test_response_of_followed_file(self, folder):
        path = folder / "data.bin"
        async with (
            aiommap.follow(path) as live,
            endpoint(lambda: MappedFileResponse(live.current)) as client,
        ):
            first = await client.get("/")
            (folder / "beside").write_bytes(b"new")
            (folder / "beside").replace(path)
            async for _ in live:
                if live.generation == 2:
                    break
            second = await client.get("/")
        assert (first.content, second.content) == (CONTENT, b"new")
        assert first.headers["etag"] != second.headers["etag"]

    async def test_response_of_writable_file(self, folder):
        """It has no validators, because nothing tells when its bytes change."""
        async with (
            aiommap.open(folder / "data.bin", "r+") as file,
            endpoint(lambda: MappedFileResponse(file)) as client,
        ):
            await file.write(0, b"new")
            answer = await client.get("/", headers={"range": "bytes=0-2"})
        assert (answer.status_code, answer.content) == (206, b"new")
        assert not {"etag", "last-modified"} & answer.headers.keys()

    async def test_response_of_private_file_is_not_copied_around_it(self, folder):
        extensions = {"http.response.zerocopysend": {}}
        async with aiommap.open(folder / "data.bin", "c") as file:
            await file.write(0, b"new")
            answer = await ask(MappedFileResponse(file), "/", extensions=extensions)
        assert answer.body == b"new" + CONTENT[3:]

    async def test_response_of_backend(self, folder):
        async with aiommap.FileBackend.open(folder / "data.bin") as backend:
            make = lambda: MappedFileResponse(backend, headers={"ETag": '"v1"'})  # noqa: E731
            async with endpoint(make) as client:
                answer = await client.get("/", headers={"range": "bytes=1-2", "if-range": '"v1"'})
                assert (answer.status_code, answer.content) == (206, CONTENT[1:3])
                assert answer.headers["etag"] == '"v1"'
                known = await client.get("/", headers={"if-none-match": '"v1"'})
                assert known.status_code == 304

    async def test_response_fields_that_were_given(self, folder):
        ran = []

        def make():
            response = MappedFileResponse(
                folder / "data.bin",
                headers={"Cache-Control": "no-store", "Last-Modified": "soon"},
                media_type="image/x-raw",
                filename="ü 1.raw",
                background=BackgroundTask(ran.append, 1),
            )
            response.set_cookie("seen", "1")
            return response

        async with endpoint(make) as client:
            answer = await client.get("/", headers={"range": "bytes=0-9"})
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["last-modified"] == "soon"
        assert answer.headers["content-type"] == "image/x-raw"
        assert (
            answer.headers["content-disposition"] == "attachment; filename*=utf-8''%C3%BC%201.raw"
        )
        assert answer.headers["set-cookie"].startswith("seen=1")
        assert ran == [1]

    async def test_response_holds_its_snapshot(self, folder):
        """Closing the snapshot waits until the response is sent."""
        snapshot = await aiommap.Snapshot.open(folder / "data.bin")
        response = MappedFileResponse(snapshot)
        async with anyio.create_task_group() as group:

            async def on_send(message):
                if message["type"] == "http.response.start":
                    group.start_soon(snapshot.aclose)
                await checkpoint()

            assert (await ask(response, "/", on_send=on_send)).body == CONTENT
        assert snapshot.closed
