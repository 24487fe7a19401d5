"""A proxy in front of a real HTTP server that makes the faults of networks and bad servers.

A rule looks at each request and returns a ``Fault``, or None for the server's own answer. The proxy
runs in its own thread and keeps all requests, so that tests can count them.

    with fault_proxy(server.port) as proxy:
        proxy.rule = once(Fault(cut_after=1000, reset=True))
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_RANGE = re.compile(r"bytes=(\d+)-(\d+)$")
_REASONS = {403: "Forbidden", 404: "Not Found", 429: "Too Many Requests", 503: "Slow Down"}


class Gate:
    """Holds answers back until a test opens it; the test can wait until one is held."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._is_open = False
        self._held: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def reached(self, seconds: float = 20.0) -> bool:
        """Wait until another request is held. Not on an event loop."""
        return self._arrived.acquire(timeout=seconds)

    def open(self) -> None:
        """Let all answers go on that are held, or will come."""
        with self._lock:
            self._is_open = True
            held, self._held = self._held, []
        for loop, future in held:
            with suppress(RuntimeError):  # the proxy has ended
                loop.call_soon_threadsafe(_let_go, future)

    async def pass_through(self) -> None:
        """Wait until the gate is open. Called in the proxy's thread."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            if not self._is_open:
                self._held.append((loop, future))
            else:
                future.set_result(None)
        self._arrived.release()
        await future


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass(frozen=True, slots=True)
class Fault:
    """The faults of one answer; the fields add up."""

    #: Answer with this status instead of asking the server.
    status: int | None = None
    #: Headers of the request that the server does not see, in lower case.
    ignore: tuple[str, ...] = ()
    #: Headers that replace those of the answer; None removes a header. In lower case.
    headers: dict[str, str | None] = field(default_factory=dict)
    #: End the connection after so many bytes of the body.
    cut_after: int | None = None
    #: Cut by RST instead of FIN.
    reset: bool = False
    #: Send no Content-Length: the end of the connection is the end of the body.
    no_length: bool = False
    #: Replace the body's bytes by these, padded with zeros to its length.
    body: bytes | None = None
    #: Seconds before the answer begins.
    delay: float = 0.0
    #: Hold the answer back at this gate.
    gate: Gate | None = None
    #: Send so many bytes of the body, and then nothing until the client or the proxy gives up.
    stall_after: int | None = None
    #: Send one byte at a time, this many seconds apart.
    trickle: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the client sent it; ``number`` counts from 0."""

    number: int
    method: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int] | None:
        """The half-open range that was asked for."""
        found = _RANGE.match(self.headers.get("range", ""))
        return (int(found[1]), int(found[2]) + 1) if found else None

    @property
    def reads(self) -> bool:
        """Whether it asks for bytes of an object."""
        return self.method == "GET" and "list-type=" not in self.path


Rule = Callable[[Request], Fault | None]


def nothing(_: Request) -> None:
    """Let every request pass."""


def always(fault: Fault) -> Rule:
    """Give every read of bytes the same fault."""
    return lambda request: fault if request.reads else None


def each(fault: Fault) -> Rule:
    """Give every request the same fault, HEAD included."""
    return lambda _: fault


def once(fault: Fault, times: int = 1) -> Rule:
    """Give the first reads of bytes the fault, and let the others pass."""
    left = iter(range(times))

    def rule(request: Request) -> Fault | None:
        return fault if request.reads and next(left, None) is not None else None

    return rule


def cut(after: int, *, reset: bool = True) -> Fault:
    """Break off in the middle of the body."""
    return Fault(cut_after=after, reset=reset)


def etag(value: str | None) -> Fault:
    """Send another ETag than the server does, whatever If-Match asks for; None sends none."""
    return Fault(ignore=("if-match", "if-none-match"), headers={"etag": value})


class FaultProxy:
    """The proxy; made by ``fault_proxy``.

    Attributes:
        port: the port that it listens on, on 127.0.0.1.
        rule: called once for each request, in the proxy's thread.
        seen: every request so far, in the order of arrival.
        sent: how many bytes of bodies it sent to clients.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.port = 0
        self.rule: Rule = nothing
        self.seen: list[Request] = []
        self.sent = 0
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)

    @property
    def reads(self) -> list[Request]:
        """The requests that asked for bytes of an object."""
        return [request for request in self.seen if request.reads]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges of bytes that clients asked for, in order."""
        return [request.range for request in self.reads if request.range is not None]

    def forget(self) -> None:
        """Forget all requests so far, and count from 0."""
        self.seen = []
        self.sent = 0

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._take, "127.0.0.1", 0, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._answer_one(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return False if that ended the connection."""
        first, headers, _ = await _head(reader)
        method, path, _ = first.split(" ", 2)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(len(self.seen), method, path, headers)
        self.seen.append(request)
        fault = self.rule(request) or Fault()
        await asyncio.sleep(fault.delay)
        if fault.gate is not None:
            await fault.gate.pass_through()
        if fault.status is None:
            passed = {name: text for name, text in headers.items() if name not in fault.ignore}
            status, answer, content = await self._ask(first, passed, body)
        else:
            status = f"HTTP/1.1 {fault.status} {_REASONS.get(fault.status, 'Fault')}"
            answer, content = {"content-length": "0"}, b""
        return await self._send(writer, request, status, answer, content, fault)

    async def _ask(
        self, first: str, headers: dict[str, str], body: bytes
    ) -> tuple[str, dict[str, str], bytes]:
        """Pass a request to the server, on a new connection, and return its answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            sent = {**headers, "connection": "close"}
            writer.write(_join(first, sent) + body)
            status, answer, _ = await _head(reader)
            content = b"" if first.startswith("HEAD ") else await reader.read()
            if answer.pop("transfer-encoding", "") == "chunked":
                content = _without_chunks(content)
                answer["content-length"] = str(len(content))
            answer.pop("connection", None)
            return status, answer, content
        finally:
            writer.close()

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        request: Request,
        status: str,
        headers: dict[str, str],
        content: bytes,
        fault: Fault,
    ) -> bool:
        if fault.body is not None:
            content = fault.body[: len(content)].ljust(len(content), b"\0")
        ends = fault.no_length
        if ends:
            headers = {**headers, "connection": "close"}
            headers.pop("content-length", None)
        changed = {**headers, **fault.headers}
        writer.write(_join(status, {k: v for k, v in changed.items() if v is not None}))
        if request.method == "HEAD":
            await writer.drain()
            return not ends
        stop = min((n for n in (fault.cut_after, fault.stall_after) if n is not None), default=None)
        sent = content if stop is None else content[:stop]
        self.sent += len(sent)
        if fault.trickle is None:
            writer.write(sent)
            await writer.drain()
        else:
            for byte in sent:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(fault.trickle)
        if fault.stall_after is not None:
            await self._over.wait()
        if fault.cut_after is not None:
            await _end(writer, reset=fault.reset)
            return False
        if ends:
            await _end(writer, reset=False)
        return not ends


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return first, {name.lower(): value.strip() for name, _, value in pairs}, raw


def _join(first: str, headers: dict[str, str]) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _without_chunks(content: bytes) -> bytes:
    parts, at = [], 0
    while True:
        end = content.index(b"\r\n", at)
        length = int(content[at:end].partition(b";")[0], 16)
        if not length:
            return b"".join(parts)
        parts.append(content[end + 2 : end + 2 + length])
        at = end + 2 + length + 2


async def _end(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """End a connection by FIN or RST, once all written bytes have left."""
    writer.transport.set_write_buffer_limits(0)
    await writer.drain()
    if reset:
        taken = writer.get_extra_info("socket")
        # With a linger time of 0, closing the socket sends RST.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


@contextmanager
def fault_proxy(upstream: int) -> Iterator[FaultProxy]:
    """Run a proxy in front of the server at a port of this machine."""
    proxy = FaultProxy(upstream)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
