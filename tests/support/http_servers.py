"""HTTP servers in other processes, and a client that sends exactly the request it is given."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest

NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/errors;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 100000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    types {{ text/html html; text/plain txt; }}
    default_type application/octet-stream;
    charset utf-8;
    if_modified_since before;
    absolute_redirect off;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@contextlib.contextmanager
def nginx(root, folder):
    """Serve a folder by nginx; yield the port. Skip the test if there is no nginx."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, root=root, port=port))
    command = [found, "-c", folder / "nginx.conf", "-e", folder / "errors"]
    with _served(command, port):
        yield port


@contextlib.contextmanager
def uvicorn(root, *, http="httptools"):
    """Serve a folder by MappedFiles; yield the port."""
    port = free_port()
    program = (
        "import sys, uvicorn; from aiommap.asgi import MappedFiles; "
        "uvicorn.run(MappedFiles(sys.argv[1]), port=int(sys.argv[2]), http=sys.argv[3], "
        "log_level='error')"
    )
    command = [sys.executable, "-c", program, os.fspath(root), str(port), http]
    with _served(command, port):
        yield port


@contextlib.contextmanager
def hypercorn(root, worker):
    """Serve a folder by MappedFiles, on asyncio, uvloop or trio; yield the port."""
    port = free_port()
    program = (
        "import sys; from hypercorn.config import Config; from hypercorn.run import run; "
        "config = Config(); config.bind = f'127.0.0.1:{sys.argv[2]}'; config.workers = 0; "
        "config.worker_class = sys.argv[3]; config.application_path = 'served:app'; "
        "import types; served = types.ModuleType('served'); sys.modules['served'] = served; "
        "from aiommap.asgi import MappedFiles; served.app = MappedFiles(sys.argv[1]); run(config)"
    )
    command = [sys.executable, "-c", program, os.fspath(root), str(port), worker]
    with _served(command, port):
        yield port


@contextlib.contextmanager
def _served(command, port):
    process = subprocess.Popen(command)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, "the server ended before it was asked"
        yield
    finally:
        process.terminate()
        process.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass(frozen=True)
class Response:
    """The answer of a server."""

    status: int
    headers: dict
    body: bytes


class RawClient:
    """A connection that stays open as long as the server keeps it open."""

    def __init__(self, port):
        self._address = ("127.0.0.1", port)
        self._socket = self._stream = None

    def ask(self, method, target, headers=(), on_body=lambda headers: None):
        """Send a request, its target as it is, and return the response."""
        lines = [f"{method} {target} HTTP/1.1", "Host: test", *(f"{n}: {v}" for n, v in headers)]
        request = "\r\n".join([*lines, "", ""]).encode("latin-1")
        status = self._send(request) or self._send(request)  # the server may have closed it
        assert status, f"no answer to {request!r}"
        return self._read(method, int(status.split()[1]), on_body)

    def _send(self, request):
        """Send, and return the first line of the answer; nothing if the connection is closed."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=20)
            self._stream = self._socket.makefile("rwb")
        try:
            self._stream.write(request)
            self._stream.flush()
            line = self._stream.readline()
        except ConnectionError:
            line = b""
        if not line:
            self.close()
        return line

    def _read(self, method, status, on_body):
        headers = {}
        while line := self._stream.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            assert name.lower() not in headers, f"{name} came twice"
            headers[name.lower()] = value.strip()
        on_body(headers)
        body = b""
        if method != "HEAD" and status not in (204, 304):
            body = self._read_body(headers)
        if headers.get("connection") == "close":
            self.close()
        return Response(status, headers, body)

    def _read_body(self, headers):
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._stream.readline(), 16):
                body += self._stream.read(size)
                self._stream.readline()
            self._stream.readline()
            return body
        if "content-length" not in headers:
            return self._stream.read()
        length = int(headers["content-length"])
        body = self._stream.read(length)
        assert len(body) == length, "the connection broke off"
        return body

    def close(self):
        for opened in (self._stream, self._socket):
            if opened is not None:
                with contextlib.suppress(ConnectionError):
                    opened.close()
        self._socket = self._stream = None
