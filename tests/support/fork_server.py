"""Processes for scripts, forked from a server that has imported the modules most scripts need.

A new interpreter spends most of a short script's time with imports. The server has made them, all
but those of the package. It has one thread, no event loop and none of our modules, so a script
imports the package, and its native module, as in a new interpreter. A script that is traced, or
that tests how an interpreter starts, needs a new interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import IO, NamedTuple

from tests.support.strict import PYTHON

#: The modules that scripts, and the package in them, import; none of them starts a thread.
IMPORTED = (
    "anyio anyio._backends._asyncio anyio.abc anyio.lowlevel anyio.to_thread asyncio "
    "concurrent.futures contextlib ctypes dataclasses errno faulthandler fcntl hashlib hmac json "
    "logging mmap random resource secrets signal socket ssl struct subprocess tempfile textwrap "
    "threading traceback uuid warnings weakref"
).split()

#: The modules that scripts on another event loop import as well.
OF_LOOPS = {"uvloop": ("uvloop",), "trio": ("trio", "anyio._backends._trio")}

MAIN = "from tests.support.fork_server import serve\nexec(serve())"


class Script(NamedTuple):
    """The code that a process runs, and its surroundings."""

    code: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]


# In the server


def serve() -> str:
    """Fork a child for each script that arrives; return the code in the child, which runs it."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in (*IMPORTED, *sys.argv[2:]):
        importlib.import_module(name)
    _keep_code("aiommap", "tests.support")
    gc.collect()
    gc.freeze()  # so that pages stay shared
    while True:
        message, outputs, _, _ = socket.recv_fds(channel, 1 << 20, 2)
        if not message:
            os._exit(0)
        child = os.fork()
        if child == 0:
            channel.close()
            return _become(pickle.loads(message), outputs)
        for output in outputs:
            os.close(output)
        status = _wait(child, channel)
        with contextlib.suppress(BrokenPipeError):
            channel.send(b"%d" % status)


def _keep_code(*packages: str) -> None:
    """Compile the modules of packages ahead, for the children that will import them."""
    kept = {}
    for name in packages:
        for folder in importlib.util.find_spec(name).submodule_search_locations:
            for path in map(str, Path(folder).rglob("*.py")):
                kept[path] = SourceFileLoader(name, path).get_code(name)

    def get_code(self: SourceFileLoader, name: str) -> CodeType | None:
        return kept.get(self.path) or read_code(self, name)

    read_code, SourceFileLoader.get_code = SourceFileLoader.get_code, get_code


def _wait(child: int, channel: socket.socket) -> int:
    """Wait until a child ends; kill it if the client gives up."""
    pidfd = os.pidfd_open(child)
    ended, _, _ = select.select([pidfd, channel], [], [])
    os.close(pidfd)
    if pidfd not in ended:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(script: Script, outputs: list[int]) -> str:
    for output, standard in zip(outputs, (1, 2), strict=True):
        os.dup2(output, standard)
        os.close(output)
    os.chdir(script.folder)
    os.environ.clear()
    os.environ.update(script.environment)
    sys.argv = ["-c", *script.arguments]
    return script.code


# In the tests


class ForkServer:
    """Runs scripts one after the other, each in a new process."""

    def __init__(self, options: Iterable[str], loops: Iterable[str], preload: str | None) -> None:
        self._lock = threading.Lock()
        imported = [name for loop in loops for name in OF_LOOPS[loop]]
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            fd = theirs.fileno()
            self._process = subprocess.Popen(
                [*PYTHON, *options, "-c", MAIN, str(fd), *imported],
                pass_fds=[fd],
                env={**os.environ, **({"LD_PRELOAD": preload} if preload else {})},
            )
        atexit.register(self.close)

    def close(self) -> None:
        """End the server, and the script that it runs."""
        atexit.unregister(self.close)
        self._channel.close()
        self._process.wait()

    def run(self, script: Script, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a script; raise `subprocess.TimeoutExpired` if it does not end."""
        with self._lock, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            outputs = [out.fileno(), err.fileno()]
            self._channel.settimeout(timeout)
            socket.send_fds(self._channel, [pickle.dumps(script)], outputs)
            try:
                status = int(self._channel.recv(100))
            except TimeoutError:
                said = _text(out), _text(err)
                raise subprocess.TimeoutExpired(script.code, timeout, *said) from None
            return subprocess.CompletedProcess(script.code, status, _text(out), _text(err))


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


_servers: dict[tuple[tuple[str, ...], tuple[str, ...], str | None], ForkServer] = {}


def run_code(
    code: str,
    *arguments: object,
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] = os.environ,
    timeout: float = 150,
) -> subprocess.CompletedProcess[str]:
    """Run ``python OPTIONS -c CODE ARGUMENTS`` as `subprocess.run` does, with warnings as errors.

    If an argument names an event loop, the server also has that loop's modules imported.
    """
    script = Script(code, [*map(str, arguments)], os.getcwd(), dict(environment))
    loops = tuple(loop for loop in OF_LOOPS if loop in script.arguments)
    kind = options, loops, environment.get("LD_PRELOAD")
    if kind not in _servers:
        _servers[kind] = ForkServer(*kind)
    try:
        return _servers[kind].run(script, timeout)
    except BaseException:  # also if the test times out: the next test needs a free server
        _servers.pop(kind).close()
        raise
