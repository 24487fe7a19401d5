"""Run a script under strace(1), and read which of its calls sync what.

Marks cut the trace into phases: the script writes the name of each phase that begins to the null
device, and strace shows that like any other write.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path

import aiommap
from tests.support.fork_server import run_code

#: Every call that makes bytes durable or begins to, and every call that stores bytes.
SYNCS = ("fsync", "fdatasync", "msync", "sync_file_range", "sync", "syncfs")
STORES = ("pwrite64", "pwritev", "pwritev2")
TRACED = ",".join(SYNCS + STORES)

#: The phase before the first mark.
FIRST_PHASE = "open"

SCRIPT = """
import os, sys, anyio, anyio.lowlevel, aiommap
from aiommap import PAGE_SIZE as PAGE, FlushPolicy

path = sys.argv[1]
marks = os.open(os.devnull, os.O_WRONLY)

def mark(phase, f=None):
    address = f._mapping.address if f else 0
    os.pwrite(marks, f"{{phase}} {{address}}".encode(), 0)

async def until(condition):
    with anyio.fail_after(100):
        while not condition():
            await anyio.lowlevel.checkpoint()

async def main():
{body}

anyio.run(main)
"""

#: "42 fsync(7</data/file>) = 0", or "42 fsync(7</data/file> <unfinished ...>" when another thread
#: comes in between; the arguments are complete in both.
BEGUN = re.compile(r"\d+ +(?P<name>\w+)\((?P<arguments>.*?)(?:\) += .*| <unfinished \.\.\.>)")
#: The other half of such a call, and the end of a thread.
REST = re.compile(r"\d+ +(?:<\.\.\. \w+ resumed>.*|\+\+\+ .* \+\+\+)")
FAILED = re.compile(r"\) += -1 ")
MARK = re.compile(r'\d+</dev/null[^"]*, "(?P<phase>[^"]+) (?P<address>\d+)"')
DESCRIPTOR = re.compile(r"\d+<(?P<path>[^>]*)>")


def missing() -> str | None:
    """Return why this machine cannot trace a process; None if it can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed"
    tried = subprocess.run([strace, "-f", "-o", os.devnull, "true"], capture_output=True, text=True)
    return f"ptrace(2) is not permitted: {tried.stderr.strip()}" if tried.returncode else None


#: Runs a script in a child of its own, once strace traces that.
SUPERVISOR = """
import ctypes, os, signal, subprocess, sys, time
code, options = sys.argv[1], sys.argv[2].split(chr(10))
del sys.argv[1:3]
parent = os.getpid()
child = os.fork()
if child:
    strace = subprocess.Popen(["strace", "-f", *options, "-p", str(child)])
    if strace.wait():
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        os.kill(parent, -status)
    os._exit(status)
prctl = ctypes.CDLL(None).prctl
prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: strace is no ancestor
with open("/proc/self/status") as about:
    while "TracerPid:\t0" in about.read() and os.getppid() == parent:
        time.sleep(0.001)
        about.seek(0)
exec(code, {"__name__": "__main__"})
"""


def run_traced(
    code: str, *arguments: object, options: Sequence[object], timeout: float = 150
) -> subprocess.CompletedProcess[str]:
    """Run a script as ``run_code`` does, under strace with some options from its first line on."""
    lines = "\n".join(["-qq", *map(str, options)])
    return run_code(SUPERVISOR, code, lines, *arguments, timeout=timeout)


def trace(body: str, path: Path, log: Path) -> dict[str, list[str]]:
    """Run the body of a coroutine under strace; return the syncs of each phase, in order.

    A phase begins at ``mark(phase, f)``, and its offsets are those of the file given there.
    """
    script = SCRIPT.format(body=textwrap.indent(textwrap.dedent(body), "    "))
    options = ["-y", "-s", "200", "-e", f"trace={TRACED}", "-e", "signal=none", "-o", log]
    done = run_traced(script, path, options=options)
    assert done.returncode == 0, done.stderr
    return _phases(log.read_text(), path)


def _phases(log: str, path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    calls = found[FIRST_PHASE] = []
    address = 0
    for line in log.splitlines():
        assert not FAILED.search(line), line
        begun = BEGUN.fullmatch(line)
        if begun is None:
            assert REST.fullmatch(line), f"this line of the trace is not understood: {line}"
            continue
        name, arguments = begun.groups()
        if mark := MARK.match(arguments):
            assert mark["phase"] not in found, f"two phases are called {mark['phase']}"
            calls = found[mark["phase"]] = []
            address = int(mark["address"])
        elif name in SYNCS or "RWF_" in arguments:
            calls.append(_describe(name, arguments.split(", "), path, address))
    return found


def _describe(name: str, arguments: list[str], path: Path, address: int) -> str:
    """Write a call as a test does: "fsync file", "msync pages 1-3 MS_SYNC"."""
    if name == "msync":
        pages = _pages(int(arguments[0], 0) - address, int(arguments[1]))
        return f"{name} {pages} {arguments[2]}"
    if name == "sync":
        return name
    role = _role(arguments[0], path)
    if name == "sync_file_range":
        return f"{name} {role} {_pages(int(arguments[1]), int(arguments[2]))} {arguments[3]}"
    return " ".join([name, role, *arguments[1:]])


def _role(descriptor: str, path: Path) -> str:
    """Name the target of a descriptor: the file under test, its directory, or another file."""
    named = DESCRIPTOR.match(descriptor)
    assert named is not None, descriptor
    target = Path(named["path"])
    return {path: "file", path.parent: "directory"}.get(target, target.name)


def _pages(start: int, length: int) -> str:
    """Write a byte range in whole pages, first and last."""
    page = aiommap.PAGE_SIZE
    return f"pages {start // page}-{(start + length - 1) // page}"
