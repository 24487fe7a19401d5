"""A process that has as many mappings as the kernel allows."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.sanitizers import without_asan
from tests.support.scripts import expect_alive
from tests.support.strict import PYTHON

with open("/proc/sys/vm/max_map_count") as found:
    LIMIT = int(found.read())

pytestmark = [
    pytest.mark.skipif(LIMIT > 1 << 20, reason="the limit is too high to reach"),
    without_asan,
]

FULL = """
async def main():
    f = await aiommap.open(make(), "r+")
    memory, taken = f.view().memory, []
    await f.prewarm()
    try:
        while True:
            if len(taken) % 1000 == 0:  # keeps a thread, which could not be started later
                await f.advise(aiommap.Advice.NORMAL, 0, PAGE)
            taken.append(mmap.mmap(-1, PAGE))
    except OSError:
        pass
    try:
        async with f.locked(3 * PAGE, PAGE):
            pass
    except OSError as error:
        assert not isinstance(error, aiommap.MappingFaultError), error
        assert error.errno == errno.ENOMEM and error.filename == f.path, error
        assert "vm.max_map_count" in str(error), error
    else:
        raise AssertionError("it was locked")
    os.truncate(f.path, PAGE)
    assert sum(memory[2 * PAGE :: PAGE]) == 0
    assert memory[0] == ord("o")
    await expect_poisoned(2 * PAGE, lambda: f.read(0, 1), f.aclose)
    print("alive")

run(main)
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_lost_pages_at_the_limit_of_mappings(tmp_path, backend):
    expect_alive(FULL, tmp_path, backend)


REFUSALS = """
taken = []

async def fill(f):
    try:
        while True:
            if len(taken) % 1000 == 0:  # keeps a thread, which could not be started later
                await f.advise(aiommap.Advice.NORMAL, 0, f.size)
            taken.append(mmap.mmap(-1, PAGE))
    except OSError:
        pass

async def refused(verb, path):
    await fill(other)  # take the mappings that others gave back
    try:
        await verb()
    except OSError as error:
        assert "vm.max_map_count" in str(error), (verb, error)
        assert path in str(error), (verb, error)
    else:
        raise AssertionError(f"{verb} was not refused")

async def main():
    global other
    other = await aiommap.open(make("other"))
    f = await aiommap.open(make(), "r+", capacity=SIZE)
    g = await aiommap.open(make("growing"), "r+", capacity=2 * SIZE)
    views = f.view(), g.view(8 * PAGE, PAGE)
    memories = [view.memory for view in views]
    await f.prewarm()
    os.rename(f.path, f.path + ".old")
    make()
    async def opens():
        await aiommap.open(g.path, "r+")
    async def grows():
        g.view(growable=True)
    await fill(other)
    await refused(opens, g.path)
    await refused(lambda: f.reopen(discard=True), f.path)
    await refused(lambda: f.resize(2 * SIZE), f.path)
    await refused(lambda: g.advise(aiommap.Advice.RANDOM, PAGE, PAGE), g.path)
    await refused(grows, g.path)
    os.truncate(g.path, 3 * SIZE)
    await refused(g.refresh, g.path)
    assert (f.size, g.size) == (SIZE, SIZE)
    assert await f.read(0, 1) == b"o"
    taken.clear()
    os.truncate(g.path, SIZE)
    await g.resize(4 * PAGE)
    await f.resize(2 * SIZE)
    await f.aclose()
    await g.aclose()
    await other.aclose()
    print("alive")

run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_errors_at_the_limit_name_it(tmp_path, backend):
    expect_alive(REFUSALS, tmp_path, backend)


# In a new interpreter, which has not loaded the library in question.
EXIT = """
import asyncio, mmap, os, sys, threading, time
import aiommap

async def main():
    async with aiommap.open(sys.argv[1], "r+") as f:
        await f.prewarm()
    def stay():  # until the exit ends the thread when it next takes the GIL
        while True:
            time.sleep(0.001)
    for _ in range(4):
        threading.Thread(target=stay, daemon=True).start()
    try:
        while True:
            taken.append(mmap.mmap(-1, 4096) if sys.argv[2] == "mapping" else os.dup(0))
    except OSError:
        pass
    raise SystemExit(7)

taken = []
asyncio.run(main())
"""


@pytest.mark.parametrize("want", [pytest.param("mapping", marks=pytest.mark.slow), "descriptor"])
def test_exit_for_want_of(path, want):
    """glibc ends a thread with the help of a library, which cannot be loaded at the limit."""
    command = [*PYTHON, "-c", EXIT, str(path), want]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert (done.returncode, done.stderr) == (7, "")


AS_LIMITED = """
import resource

async def main():
    f = await aiommap.open(make(), "r+", capacity=2 * SIZE)
    with open("/proc/self/statm") as sizes:
        used = int(sizes.read().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
    async def grows():
        await f.resize(1 << 40)
    os.truncate(f.path, 1 << 40)
    try:
        for verb in (grows, f.refresh):
            try:
                await verb()
            except OSError as error:
                assert "address space" in str(error) and "ask for less" in str(error), (verb, error)
                assert (error.errno, error.filename) == (errno.ENOMEM, f.path), (verb, error)
            else:
                raise AssertionError(f"{verb} was not refused")
            assert f.size == SIZE
            os.truncate(f.path, 1 << 40)
    finally:
        os.truncate(f.path, SIZE)
    await f.aclose()
    print("alive")

run(main)
"""


def test_resize_for_want_of_address_space(tmp_path):
    expect_alive(AS_LIMITED, tmp_path)
