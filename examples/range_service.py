"""Serve byte ranges of one mapped file over HTTP: ``python examples/range_service.py FILE``.

All requests share one hub and one mapping. The event loop answers bytes in the page cache, and the
hub's workers read all others, so that a cold page does not delay another client.

Each answer is of one *version* of the file, named by its ETag: inode, size, time of modification.
Every request looks for a newer one. If the file is replaced at its path, a response that has begun
sends the old one to its end. If the file is truncated under a response, that response's connection
ends, because it cannot keep the length that it promised; nothing else does. A file overwritten in
place is sent as it is found: replace it instead, as with any web server.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import mimetypes
import os
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import aiommap

CHUNK_BYTES = 256 << 10
MAX_RANGES = 32

#: Twenty digits hold every 64-bit number, and keep int() cheap.
RANGE_SPEC = re.compile(r"([0-9]{0,20})-([0-9]{0,20})")

logger = logging.getLogger("range_service")


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send: a body of literal bytes and of ranges of the file, in order."""

    status: int
    headers: dict[str, str]
    body: Sequence[bytes | range] = ()


def parse_ranges(header: str, size: int) -> list[range] | None:
    """Return the byte ranges that a Range header asks for, none overlapping or touching another.

    Returns:
        None where the header is to be ignored: malformed, of another unit, or of an empty file,
        no part of which Content-Range could name. An empty list where it is to be refused: no
        range begins within the file, or there are more than MAX_RANGES.
    Source: RFC 9110 §14.1.2, §14.2.
    """
    unit, _, listed = header.partition("=")
    specs = [spec for spec in (part.strip(" \t") for part in listed.split(",")) if spec]
    if unit.lower() != "bytes" or not specs or not size:
        return None
    found = []
    for spec in specs:
        match = RANGE_SPEC.fullmatch(spec)
        if match is None or spec == "-":
            return None
        first, last = (int(text) if text else None for text in match.groups())
        if first is None:
            found.append(range(max(size - (last or 0), 0), size))
        elif last is None or last >= first:
            found.append(range(first, size if last is None else min(last + 1, size)))
        else:
            return None
    return coalesce([asked for asked in found if asked]) if len(found) <= MAX_RANGES else []


def coalesce(ranges: list[range]) -> list[range]:
    """Merge ranges that overlap or touch; keep the order in which they were asked (§15.3.7.2)."""
    merged: list[range] = []
    for asked in sorted(ranges, key=lambda r: r.start):
        if merged and asked.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, asked.stop))
        else:
            merged.append(asked)
    return sorted(merged, key=lambda m: next(i for i, r in enumerate(ranges) if r.start in m))


def is_known(if_none_match: str, etag: str) -> bool:
    """Tell whether the client has this version already, by weak comparison (§13.1.2)."""
    return if_none_match.strip() == "*" or etag in re.findall(r'"[^"]*"', if_none_match)


def answer(method: str, headers: Headers, size: int, etag: str, media_type: str) -> Answer:
    """Decide how to answer a GET or HEAD."""
    common = {"accept-ranges": "bytes", "etag": etag}
    if is_known(", ".join(headers.getlist("if-none-match")), etag):
        return Answer(304, common)
    asked = None
    # If-Range compares strongly; a date never matches, as no Last-Modified is sent. Ranges are
    # defined for GET alone (§14.2).
    if method == "GET" and headers.get("if-range", etag) == etag:
        asked = parse_ranges(", ".join(headers.getlist("range")), size)
    if asked is None:
        return Answer(200, common | {"content-type": media_type}, [range(size)])
    if not asked:
        return Answer(416, common | {"content-range": f"bytes */{size}"})
    if len(asked) == 1:
        part = {"content-type": media_type, "content-range": content_range(asked[0], size)}
        return Answer(206, common | part, asked)
    return multipart(common, asked, size, media_type)


def content_range(part: range, size: int) -> str:
    """Spell a Content-Range, whose last byte is inclusive."""
    return f"bytes {part.start}-{part.stop - 1}/{size}"


def multipart(common: dict[str, str], ranges: list[range], size: int, media_type: str) -> Answer:
    """Wrap several ranges as multipart/byteranges (§14.6)."""
    boundary = secrets.token_hex(16)
    body: list[bytes | range] = []
    for part in ranges:
        head = f"Content-Type: {media_type}\r\nContent-Range: {content_range(part, size)}"
        body += [f"\r\n--{boundary}\r\n{head}\r\n\r\n".encode("latin-1"), part]
    body.append(f"\r\n--{boundary}--\r\n".encode("latin-1"))
    kind = {"content-type": f"multipart/byteranges; boundary={boundary}"}
    return Answer(206, common | kind, body)


@dataclass(slots=True)
class Version:
    """One state of the file, mapped until its last holder releases it."""

    file: aiommap.MappedFile
    etag: str
    holders: int = 1

    async def release(self) -> None:
        self.holders -= 1
        if not self.holders:
            await self.file.aclose()


class Source:
    """The file at a path; it holds the version seen last, and each response holds its own."""

    def __init__(self, hub: aiommap.Hub, path: str) -> None:
        self._hub = hub
        self._path = anyio.Path(path)
        self._latest: Version | None = None

    @contextlib.asynccontextmanager
    async def current(self) -> AsyncIterator[Version]:
        """Hold the version that is at the path now; answer 404 if there is none."""
        stale = None
        try:
            # stat(2) may wait for a disk or a network, so it takes a hop to a worker: some 50 µs
            # a request, little beside HTTP.
            found = await self._path.stat()
            version = self._latest
            if version is None or version.etag != name_version(found, found.st_size):
                # Requests that see a change together may each open it: the last one stays.
                version = await self._open()
                stale, self._latest = self._latest, version
        except FileNotFoundError:
            raise HTTPException(404) from None
        version.holders += 1
        try:
            if stale is not None:
                await stale.release()
            yield version
        finally:
            await version.release()

    async def _open(self) -> Version:
        while True:
            before = await self._path.stat()
            async with contextlib.AsyncExitStack() as undo:
                file = await undo.enter_async_context(self._hub.open(self._path))
                # The same file before and after, so the same in between. Its size and time may
                # differ: who waited for a log to hold still would wait for ever.
                if (await self._path.stat()).st_ino == before.st_ino:
                    undo.pop_all()
                    return Version(file, name_version(before, file.size))


def name_version(found: os.stat_result, size: int) -> str:
    """Make the ETag; only a change of bytes in place within one tick of file time escapes it."""
    return f'"{found.st_ino:x}-{size:x}-{found.st_mtime_ns:x}"'


async def read_body(
    file: aiommap.MappedFile, body: Sequence[bytes | range]
) -> AsyncIterator[bytes]:
    """Yield a body piece by piece; one chunk is in memory at a time."""
    for part in body:
        if isinstance(part, bytes):
            yield part
            continue
        for offset in range(part.start, part.stop, CHUNK_BYTES):
            yield await file.read(offset, min(CHUNK_BYTES, part.stop - offset))


class FileStream(StreamingResponse):
    """A streamed body that is broken off, not padded, where the file has lost its bytes."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except aiommap.MappingFaultError as error:
            # Returning short of Content-Length makes the server close the connection, which is
            # how HTTP/1.1 tells a client that a body is incomplete (RFC 9112 §8).
            logger.warning("response broken off: %s", error)


class RangeEndpoint:
    """An ASGI endpoint, not a function of a request: it holds a version until all of it is sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        source: Source = request.state.source
        async with source.current() as version:
            await respond(request, version)(scope, receive, send)


def respond(request: Request, version: Version) -> Response:
    file = version.file
    media_type = mimetypes.guess_type(file.path)[0] or "application/octet-stream"
    found = answer(request.method, request.headers, file.size, version.etag, media_type)
    if found.status == 304:
        return Response(status_code=304, headers=found.headers)
    headers = found.headers | {"content-length": str(sum(map(len, found.body)))}
    body = () if request.method == "HEAD" else found.body
    return FileStream(read_body(file, body), found.status, headers)


def make_app(path: str) -> Starlette:
    """Make the application that serves one file at ``/``."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Source]]:
        async with aiommap.Hub() as hub:
            yield {"source": Source(hub, path)}

    return Starlette(routes=[Route("/", RangeEndpoint(), methods=["GET"])], lifespan=lifespan)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve byte ranges of a file over HTTP.")
    parser.add_argument("file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free")
    options = parser.parse_args()
    if not os.path.isfile(options.file):
        parser.error(f"{options.file} is not a regular file")
    uvicorn.run(
        make_app(options.file),
        host=options.host,
        port=options.port,
        access_log=False,  # written on the loop: a full pipe would stop every client
        timeout_graceful_shutdown=5,  # seconds: a client that stalls does not hold up the end
    )


if __name__ == "__main__":
    main()
