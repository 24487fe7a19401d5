"""Scripts that may die: each runs in another process, on a chosen event loop."""

from __future__ import annotations

import textwrap

from tests.support.fork_server import run_code

PREAMBLE = """
import asyncio, ctypes, errno, faulthandler, gc, mmap, os, random, signal, sys, threading, time
import warnings
import anyio, aiommap
from aiommap import PAGE_SIZE as PAGE

path, backend, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
SIZE = 16 * PAGE
FLAGS = aiommap._native.WRITABLE | aiommap._native.NOWAIT | aiommap._native.RESIDENCY_VISIBLE
FLAGS |= aiommap._native.LOCAL

def make(name="file", size=SIZE):
    made = os.path.join(path, name)
    with open(made, "wb") as file:
        file.write(b"o" * size)
    return made

def run(main):
    options = {"use_uvloop": backend == "uvloop"} if backend != "trio" else {}
    loop = "trio" if backend == "trio" else "asyncio"
    async def unhurried():  # a busy machine is no news to tell on stderr
        if loop == "asyncio":
            asyncio.get_running_loop().slow_callback_duration = 3600
        await main()

    anyio.run(unhurried, backend=loop, backend_options=options)

async def expect_poisoned(offset, *verbs):
    for verb in verbs:
        try:
            await verb()
        except aiommap.MappingFaultError as error:
            assert error.poisoned and error.offset == offset, error
        else:
            raise AssertionError(f"{verb} did not raise")
"""


def run_script(code, folder, backend="asyncio", seconds=0.0):
    script = PREAMBLE + textwrap.dedent(code)
    options = ("-X", "dev")
    return run_code(script, folder, backend, seconds, options=options, timeout=150 + seconds)


def expect_alive(code, folder, backend="asyncio", seconds=0.0):
    done = run_script(code, folder, backend, seconds)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
    return done.stderr
