"""Cases that could kill the process: each runs in a process of its own."""

from __future__ import annotations

import signal

import pytest

from tests.support.fork_server import run_code

RACE = """
import os, sys, threading, time, anyio, aiommap
path, backend = sys.argv[1], sys.argv[2]
PAGE = aiommap.PAGE_SIZE
os.truncate(path, 64 * PAGE)

def race():
    end = time.monotonic() + 2
    while time.monotonic() < end:
        os.truncate(path, 3 * PAGE + 100)
        os.truncate(path, 64 * PAGE)
    os._exit(0)

async def main():
    faults = good = 0
    f = await aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never())
    child = os.fork()
    if not child:
        race()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        for verb in (
            lambda: f.read(0, 64 * PAGE), lambda: f.read(40 * PAGE, 10),
            lambda: f.write(30 * PAGE, b"x" * PAGE), lambda: f.write(0, b"y" * 60 * PAGE),
            lambda: f.prewarm(0, 64 * PAGE),
        ):
            try:
                await verb()
                good += 1
            except aiommap.MappingFaultError:
                faults += 1
    assert await f.read(0, 1) is not None
    await f.aclose()
    assert good and faults, (good, faults)
    print("alive")

anyio.run(main, backend=backend)
"""

BLOCKED = """
import os, signal, sys, warnings, anyio, aiommap
warnings.simplefilter("ignore", RuntimeWarning)  # open() says that loads through views are not safe
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGBUS})
path = sys.argv[1]
PAGE = aiommap.PAGE_SIZE

async def main():
    async with aiommap.open(path, "r+") as f, f.locked():
        await f.prewarm()
        os.truncate(path, PAGE)
        for verb in (lambda: f.read(8 * PAGE, 10), lambda: f.write(8 * PAGE, b"x")):
            try:
                await verb()
            except aiommap.MappingFaultError as error:
                assert error.offset == 8 * PAGE, error
                continue
            raise SystemExit("no fault")
    async with aiommap.open(path, "c") as f:
        await f.write(0, b"private")
        os.truncate(path, 0)
        try:
            await f.read(0, 10)
        except aiommap.MappingFaultError:
            print("alive")

anyio.run(main)
assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_BLOCK, ())
"""

FOREIGN = """
import faulthandler, mmap, os, sys, anyio, aiommap
faulthandler.enable()
path = sys.argv[1]

async def main():
    async with aiommap.open(path) as f:
        with open(path, "rb") as file:
            other = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            os.truncate(path, 0)
            other[0]

anyio.run(main)
"""

FORKED = """
import os, sys, anyio, aiommap
path = sys.argv[1]

async def main():
    f = await aiommap.open(path, "r+")
    await f.write(0, b"parent")
    child = os.fork()
    if not child:
        for verb in (lambda: f.read(0, 1), lambda: f.write(0, b"c"), f.flush, f.prewarm):
            try:
                await verb()
            except aiommap.ForkedError:
                continue
            os._exit(1)
        await f.aclose()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert await f.read(0, 6) == b"parent"
    await f.aclose()
    print("alive")

anyio.run(main)
"""


def run(script, *arguments):
    return run_code(script, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_verbs_survive_truncate_and_extend(path, backend):
    done = run(RACE, path, backend)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_faults_raise_where_sigbus_is_blocked(path):
    done = run(BLOCKED, path)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_foreign_fault_kills_and_dumps(path):
    done = run(FOREIGN, path)
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr


def test_fork_child_is_told_and_harmless(path):
    done = run(FORKED, path)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
