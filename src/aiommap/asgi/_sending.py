"""Sending an answer: its start, then its body in pieces, or by zero-copy if the server offers it.

Invariants.
  1  Nothing is sent before the first piece of the body was read. So if a file has lost its bytes,
     it can be opened again, or the answer can be an error; it is never half an answer.
  2  If a body cannot be finished, sending raises, and the server breaks the connection off, because
     it cannot keep the length that it has announced (RFC 9112 §8). A body is never padded.
  3  Two pieces of a body are in memory at a time: the one that is being sent, and the next. No more
     is read for a client that has left.
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

#: Limits for the size of a piece. A body up to the second is one piece: a piece costs a turn of the
#: loop.
MIN_PIECE_BYTES, MAX_PIECE_BYTES = 64 << 10, 1 << 20
#: The first piece of a longer body.
PIECE_BYTES = 256 << 10
#: Later pieces have the size that the client takes in about this time, so that little memory is
#: held for a slow client.
PIECE_SECONDS = 0.05
#: While a body larger than this is sent, a task listens for the client to leave.
LISTEN_BYTES = 4 << 20
#: With zero-copy, the pieces of a body; each is brought into memory before the server copies it.
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
    """An answer: status, header fields, and a body of literal bytes and of ranges, in order."""

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
        #: The rest of the range that is being read, and the parts behind it.
        self._rest = range(0)
        self._parts = iter(self._body)
        self._piece_bytes = MAX_PIECE_BYTES if length <= MAX_PIECE_BYTES else PIECE_BYTES

    async def begin(self) -> None:
        """Read the first piece of the body (sending.1); raise as the source."""
        piece = self._next_piece()
        if piece is not None:
            self._first = await self._read(piece)

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole answer."""
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
        """Return the next piece to read and send; None at the end."""
        if not self._rest:
            part = next(self._parts, None)
            if not isinstance(part, range):
                return part
            self._rest = part
        piece, self._rest = self._rest[: self._piece_bytes], self._rest[self._piece_bytes :]
        return piece

    def _adapt(self, sent: int, seconds: float) -> None:
        """Adapt the size of the next piece to the speed of the client."""
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
            except Exception as error:  # raise it below, and not in an exception group
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _send_descriptor(self, file: MappedFile, send: Send) -> None:
        """Have the server copy from the descriptor, after each piece was brought into memory."""
        await self._start(send)
        descriptor = OpenDescriptor(file._core.mapping.fd)  # noqa: SLF001  not a duplicate
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
    """Write a Content-Range; its last byte is inclusive."""
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
    """Tell whether ``send`` raises after the client has left, as since ASGI 2.4."""
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
    """Redirect the client permanently."""
    fields = [(b"location", place), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 301, "headers": fields})
    await send({"type": "http.response.body", "body": b""})
