"""How many range requests a second does MappedFiles answer, beside FileResponse and nginx?"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from ._harness import MIB, Report

CONNECTIONS = 32
KIB = 1 << 10

#: One worker, with the fastest event loop and HTTP parser.
SERVER = """
import sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route
from aiommap.asgi import MappedFiles

kind, folder, port = sys.argv[1:]

async def file(request):
    return FileResponse(folder + "/data")

app = MappedFiles(folder) if kind == "aiommap" else Starlette(routes=[Route("/data", file)])
uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="error")
"""

NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/errors;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""

#: wrk's script: each request asks for another range.
ASK = """
local size, length = {size}, {length}
function request()
    local first = math.random(0, size - length)
    return wrk.format("GET", "/data", {{ Range = "bytes=" .. first .. "-" .. first + length - 1 }})
end
"""


async def run(report: Report, *, smoke: bool) -> None:
    """Ask one server after the other, for ranges of one file in memory and for the whole file."""
    missing = [tool for tool in ("wrk", "nginx") if _find(tool) is None]
    if missing:
        print(f"{report.question:<11} skipped: needs {' and '.join(missing)}")
        return
    size, seconds = (2 * MIB, 1) if smoke else (16 * MIB, 3)
    lengths = [4 * KIB] if smoke else [4 * KIB, 64 * KIB, MIB]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        root = Path(folder) / "root"
        root.mkdir()
        (root / "data").write_bytes(os.urandom(size))
        ports = {
            "aiommap": servers.enter_context(_uvicorn("aiommap", root)),
            "FileResponse": servers.enter_context(_uvicorn("starlette", root)),
            "nginx": servers.enter_context(_nginx(Path(folder), root)),
        }
        for length in lengths:
            script = ASK.format(size=size, length=length)
            name = f"{length // KIB} KiB" if length < MIB else f"{length // MIB} MiB"
            found = {peer: _ask(port, folder, script, seconds)[0] for peer, port in ports.items()}
            for peer, rate in found.items():
                report.row(f"ranges of {name}: {peer}", rate, "requests/s")
            ratio = found["aiommap"] / found["FileResponse"]
            report.row(f"ranges of {name}: aiommap / FileResponse", ratio, "x", 4)
            report.row(f"ranges of {name}: aiommap / nginx", found["aiommap"] / found["nginx"], "x")
        # Measured in bytes: connections are all at about the same place of the file, so that the #
        # number of finished requests would depend on when the time is over.
        found = {peer: _ask(port, folder, "", seconds)[1] / 1e9 for peer, port in ports.items()}
        for peer, rate in found.items():
            report.row(f"whole files: {peer}", rate, "GB/s")
        report.row("whole files: aiommap / nginx", found["aiommap"] / found["nginx"], "x", 0.8)
        ratio = found["aiommap"] / found["FileResponse"]
        report.row("whole files: aiommap / FileResponse", ratio, "x")


def _find(tool: str) -> str | None:
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin")


@contextmanager
def _process(command: list[str], port: int) -> Iterator[int]:
    process = subprocess.Popen(command)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


def _uvicorn(kind: str, root: Path) -> AbstractContextManager[int]:
    port = _free_port()
    return _process([sys.executable, "-c", SERVER, kind, str(root), str(port)], port)


def _nginx(folder: Path, root: Path) -> AbstractContextManager[int]:
    port = _free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, root=root, port=port))
    command = [_find("nginx") or "", "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors")]
    return _process(command, port)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/data").read(1)
            return
    raise RuntimeError("a server ended before it was asked")


def _ask(port: int, folder: str, script: str, seconds: int) -> tuple[float, float]:
    """Send requests as fast as the server answers; return answers and bytes a second."""
    path = Path(folder) / "ask.lua"
    path.write_text(script)
    url = f"http://127.0.0.1:{port}/data"
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", "-s", str(path)]
    command = ["wrk", *options, url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    trouble = re.search(r"Non-2xx.*|Socket errors.*", told)
    if trouble is not None:
        raise RuntimeError(f"not every request was answered: {trouble[0]}")
    answers = re.findall(r"Requests/sec:\s+([0-9.]+)", told)[0]
    transfer, unit = re.findall(r"Transfer/sec:\s+([0-9.]+)([KMG]?)B", told)[0]
    return float(answers), float(transfer) * 1024 ** " KMG".index(unit or " ")
