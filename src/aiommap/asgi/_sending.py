"""Sending an answer: its start, then its body in pieces, or by what the server offers instead.

Invariants.
  1  Nothing is sent before the first piece of the body was read, so that a file which has lost its
     bytes can be opened again, or be an error, rather than half an answer.
  2  A body that cannot be finished raises: the server then breaks the connection off, as it cannot
     keep the length that was promised (RFC 9112 §8). It is never padded.
  3  Two pieces of a body are in memory at a time: the one that the client takes, and the next. No
     more is read for a client that has left.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any

import anyio

from .._file.mapped_file import MappedFile
from ._representation import Fields, OpenDescriptor, Representation
from ._requests import decide, deciding_fields

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Sizes of a piece. A body up to the second one goes out at once: a piece costs a turn of the loop.
MIN_PIECE_BYTES, MAX_PIECE_BYTES = 64 << 10, 1 << 20
#: A longer one begins with a piece of this size,
PIECE_BYTES = 256 << 10
#: and goes on with what the client takes in this time, in seconds: a slow one is to hold little.
PIECE_SECONDS = 0.05
#: While more than this is sent, a task listens for the client to leave.
LISTEN_BYTES = 4 << 20
#: A server that copies for us gets a body in pieces of this size, each brought into memory first.
ZERO_COPY_BYTES = 4 << 20

_REASONS = {
    400: b"Bad Request",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    502: b"Bad Gateway",
}

_ZERO_COPY_SEND = "http.response.zerocopysend"


class Answer:
    """What to send of a representation: a body of literal bytes and of ranges of it, in order."""

    __slots__ = (
        "_body",
        "_fields",
        "_first",
        "_length",
        "_parts",
        "_piece_bytes",
        "_rest",
        "_shown",
        "_status",
    )

    def __init__(self, scope: Scope, shown: Representation) -> None:
        """Decide how to answer a GET or HEAD."""
        method = scope["method"]
        deciding = deciding_fields(scope["headers"])
        status, ranges = decide(method, deciding, shown.validators, shown.size)
        fields = shown.fields.copy()
        body: list[bytes | range] = [*ranges]
        if status == 200:
            fields.append((b"content-type", shown.media_type))
        elif status == 416:
            fields.append((b"content-range", b"bytes */%d" % shown.size))
        elif len(ranges) == 1:
            fields.append((b"content-type", shown.media_type))
            fields.append((b"content-range", _content_range(ranges[0], shown.size)))
        elif ranges:
            boundary = secrets.token_hex(16).encode()
            fields.append((b"content-type", b"multipart/byteranges; boundary=" + boundary))
            body = _multipart(shown, ranges, boundary)
        length = sum(map(len, body))
        if status != 304:
            fields.append((b"content-length", b"%d" % length))
        self._shown = shown
        self._status = status
        self._fields: Fields = fields
        self._body = body if method == "GET" else []
        self._length = length
        self._first = b""
        #: What was not read yet: of a range, and behind it.
        self._rest = range(0)
        self._parts = iter(self._body)
        self._piece_bytes = MAX_PIECE_BYTES if length <= MAX_PIECE_BYTES else PIECE_BYTES

    async def begin(self) -> None:
        """Read the first piece of the body (sending.1); raises what reading raises."""
        piece = self._next_piece()
        if piece is not None:
            self._first = await self._read(piece)

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        if self._length <= MAX_PIECE_BYTES or not self._body:
            await self._send_pieces(send)
            return
        file = self._shown.lent
        if file is not None and _ZERO_COPY_SEND in (scope.get("extensions") or ()):
            await self._send_descriptor(file, send)
        elif self._length <= LISTEN_BYTES or _raises_when_left(scope):
            await self._send_pieces(send)
        else:
            await self._send_until_left(receive, send)

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": self._fields})

    async def _send_pieces(self, send: Send) -> None:
        await self._start(send)
        data = self._first
        while (piece := self._next_piece()) is not None:
            begun = monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._adapt(len(data), monotonic() - begun)
            data = await self._read(piece)
        await send({"type": "http.response.body", "body": data, "more_body": False})

    def _next_piece(self) -> bytes | range | None:
        """Return what is to be read and sent next; None at the end."""
        if not self._rest:
            part = next(self._parts, None)
            if not isinstance(part, range):
                return part
            self._rest = part
        piece, self._rest = self._rest[: self._piece_bytes], self._rest[self._piece_bytes :]
        return piece

    def _adapt(self, sent: int, seconds: float) -> None:
        """Make the next piece as large as what the client takes in a moment."""
        if sent >= MIN_PIECE_BYTES:
            wanted = self._piece_bytes * 2 if seconds < PIECE_SECONDS else self._piece_bytes // 2
            self._piece_bytes = min(max(wanted, MIN_PIECE_BYTES), MAX_PIECE_BYTES)

    async def _read(self, piece: bytes | range) -> bytes:
        if isinstance(piece, bytes):
            return piece
        return await self._shown.read(piece.start, piece.stop - piece.start)

    async def _send_until_left(self, receive: Receive, send: Send) -> None:
        """Send to a server whose ``send`` does not say that the client has left."""
        failure: Exception | None = None
        async with anyio.create_task_group() as group:

            async def listen() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(listen)
            try:
                await self._send_pieces(send)
            except Exception as error:  # as it is, and not in a group of one
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _send_descriptor(self, file: MappedFile, send: Send) -> None:
        """Have the server copy; what it copies is in memory, so that it does not wait either."""
        await self._start(send)
        descriptor = OpenDescriptor(file._core.mapping.fd)  # noqa: SLF001  no verb lends it
        last = len(self._body) - 1
        for number, part in enumerate(self._body):
            if isinstance(part, bytes):
                more = number < last
                await send({"type": "http.response.body", "body": part, "more_body": more})
                continue
            for offset in range(part.start, part.stop, ZERO_COPY_BYTES):
                end = min(offset + ZERO_COPY_BYTES, part.stop)
                await file.prewarm(offset, end - offset)
                await send(
                    {
                        "type": _ZERO_COPY_SEND,
                        "file": descriptor,
                        "offset": offset,
                        "count": end - offset,
                        "more_body": number < last or end < part.stop,
                    }
                )


def _content_range(part: range, size: int) -> bytes:
    """Spell a Content-Range, whose last byte is inclusive."""
    return b"bytes %d-%d/%d" % (part.start, part.stop - 1, size)


def _multipart(shown: Representation, ranges: list[range], boundary: bytes) -> list[bytes | range]:
    """Wrap several ranges as multipart/byteranges (RFC 9110 §14.6)."""
    body: list[bytes | range] = []
    for part in ranges:
        head = b"\r\n--%b\r\nContent-Type: %b\r\nContent-Range: %b\r\n\r\n"
        body += [head % (boundary, shown.media_type, _content_range(part, shown.size)), part]
    body.append(b"\r\n--%b--\r\n" % boundary)
    return body


def _raises_when_left(scope: Scope) -> bool:
    """Tell whether ``send`` raises once the client has left, as it does since ASGI 2.4."""
    version = scope.get("asgi", {}).get("spec_version", "2.0")
    return tuple(map(int, version.split("."))) >= (2, 4)


async def refuse(status: int, scope: Scope, send: Send, *extra: tuple[bytes, bytes]) -> None:
    """Answer with a status and a line of text."""
    body = _REASONS[status]
    fields = [(b"content-type", b"text/plain; charset=utf-8"), *extra]
    fields.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def redirect(place: bytes, send: Send) -> None:
    """Send the client to another place, for good."""
    fields = [(b"location", place), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 301, "headers": fields})
    await send({"type": "http.response.body", "body": b""})
