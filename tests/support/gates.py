"""Scripts in which system calls are held, fail or are slow (``gate.c``), in other processes."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tests.support.fork_server import run_code
from tests.support.scripts import PREAMBLE
from tests.support.shims import preloaded

GATES = (
    PREAMBLE
    + """
import concurrent.futures, contextlib
from aiommap import FlushPolicy

gate = ctypes.CDLL(None)
pool = concurrent.futures.ThreadPoolExecutor()
NEVER = FlushPolicy.never()
_native = aiommap._native

def arm(name, after=False):
    gate.gate_arm(name.encode(), int(after))

def fail(name, nth=1, error=errno.ENOMEM, on=False):
    gate.gate_fail(name.encode(), nth, error, int(on))

def slow(name, calls, way="asleep", milliseconds=0.4):
    gate.gate_slow(name.encode(), calls, round(1000 * milliseconds), way.encode())

@contextlib.contextmanager
def held(name, call, *arguments, after=False):
    \"\"\"Run a call in a thread that stands in a system call for as long as the block runs.\"\"\"
    arm(name, after)
    future = pool.submit(call, *arguments)
    assert gate.gate_reached(), f"{name} was never called: {future}"
    try:
        yield future
    finally:
        gate.gate_open()
    with contextlib.suppress(Exception):
        future.result(100)

def native(size=SIZE, capacity=None, name="file"):
    fd = os.open(make(name, size), os.O_RDWR)
    room = capacity or size
    mapping = _native.Mapping(fd, size, room, FLAGS)
    mapping.attach(object(), _native.Receipt)
    return mapping

def outcome(future):
    try:
        return future.result(100)
    except Exception as error:
        return type(error).__name__
"""
)


@functools.cache
def gate_library():
    """Compile the shim once; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    made = Path(tempfile.mkdtemp(prefix="gate")) / "gate.so"
    source = Path(__file__).with_name("gate.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return made


def expect_gated(code, folder, backend="asyncio"):
    """Run a script with the shim preloaded; it must reach its end, and print nothing else."""
    library = gate_library()
    if library is None:
        pytest.skip("needs a C compiler and LD_PRELOAD")
    code = GATES + textwrap.dedent(code) + '\nprint("alive")\n'
    options, environment = ("-X", "dev"), preloaded(library)
    done = run_code(code, folder, backend, 0, options=options, environment=environment, timeout=150)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stdout + done.stderr
