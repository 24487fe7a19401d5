"""Servers that tests start, each in a process that ends with ours."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar


def free_port() -> int:
    """Return a port on which no process listens now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _with_us(command: list[str]) -> list[str]:
    """Let the kernel kill a process when its parent dies, in whatever way."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else command


def request(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send one HTTP request to a server on this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


class Server(ABC):
    """A running server, or a store in this process.

    Attributes:
        name: its name in the ids of tests.
        port: the port that it listens on; 0 if it is no process.
    """

    name: ClassVar[str]
    port: int = 0

    @classmethod
    def missing(cls) -> str | None:
        """Name what the server needs and this machine lacks; None if it lacks nothing."""
        return None

    @abstractmethod
    def store(self, port: int | None = None, **client: Any) -> Any:
        """Make a store of obstore's, for this server or for a proxy in front of it."""

    def put(self, key: str, content: bytes) -> None:
        """Put an object in place, whole and at once."""
        import obstore

        obstore.put(self.store(), key, content, use_multipart=False)

    def delete(self, key: str) -> None:
        """Remove an object."""
        import obstore

        obstore.delete(self.store(), key)

    def stop(self) -> None:  # noqa: B027  a store in this process has nothing to end
        """End the server."""


class ServerProcess(Server):
    """The base class of servers that are processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for _ in range(5):  # another process may take the port in between
            self.port = free_port()
            if self._start():
                return
        raise AssertionError(f"{self.name} did not start:\n{self._log()}")

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line of the server."""

    def environment(self) -> dict[str, str]:
        return {}

    def is_ready(self) -> bool:
        """Tell whether the server serves; raise OSError while it does not listen."""
        request(self.port, "GET", "/")
        return True

    def prepare(self) -> None:
        """Make the buckets that tests need, once the server serves."""

    def _start(self) -> bool:
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                _with_us(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )
        end = time.monotonic() + 30
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self.is_ready() and self._process.poll() is None:
                    self.prepare()
                    return True
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        self.stop()
        return False

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(5)


def find_tool(name: str) -> str | None:
    """Find a program, also in the environment of the tests."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=f"{beside}:{os.environ.get('PATH', '')}")
