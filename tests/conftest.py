"""Fixtures that every test shares: the three event loops, files, and how to change them outside."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import re
import signal
import tempfile
from pathlib import Path

import anyio.lowlevel
import pytest
from blockbuster import BlockBuster
from hypothesis import settings

import aiommap
from tests.support.internals import engine
from tests.support.loop_watch import LoopWatch

PAGE = aiommap.PAGE_SIZE

#: So that scripts, in processes of their own, find the helpers that tests have.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# A shell has its background jobs ignore this, and so would each process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# anyio imports the half that is trio's where it is first asked, which may be on a watched loop.
anyio.run(anyio.lowlevel.checkpoint, backend="trio")

LOOPS = ("asyncio", "uvloop", "trio")

# Nothing is asserted about elapsed time.
settings.register_profile("whole", settings(), deadline=None)
settings.register_profile("quick", settings.get_profile("whole"), max_examples=25)


def pytest_addoption(parser):
    parser.addoption(
        "--loop",
        choices=LOOPS,
        help="leave out what is run on another event loop, for a quick look after an edit",
    )
    parser.addoption(
        "--one-reader", action="store_true", help="let each hub have one native thread that reads"
    )


def pytest_configure(config):
    """Have Hypothesis look quickly, too, on one loop."""
    settings.load_profile("quick" if config.getoption("--loop") else "whole")


def pytest_xdist_auto_num_workers(config):
    """Have more processes than processors, as tests wait for others; the quick ones wait most."""
    processors = os.cpu_count() or 2
    return processors * 2 if config.getoption("--loop") else processors * 3 // 2


def pytest_collection_modifyitems(config, items):
    """Keep to one event loop if asked; a word of a parameter's name says which it is."""
    wanted = config.getoption("--loop")
    if wanted is None:
        return
    others = {*LOOPS} - {wanted}

    def is_wanted(item):
        words = re.split("[- ]", item.callspec.id) if hasattr(item, "callspec") else ()
        return others.isdisjoint(words)

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = [item for item in items if is_wanted(item)]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect no garbage among tests while they are collected, nor when tests look for some."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def one_reader(request, monkeypatch):
    """Whatever needs two reads at a time to get on would hang."""
    if request.config.getoption("--one-reader"):
        monkeypatch.setattr(engine, "NO_LIMIT", 1)


@pytest.fixture(autouse=True)
def loop_never_waits():
    """Fail a test in which code of the package makes a call on the loop that may wait (I1)."""
    busters = blockbuster()
    busters.activate()
    try:
        with LoopWatch() as watch:
            yield
    finally:
        busters.deactivate()
    assert not watch.found, "\n".join(watch.found)


@functools.cache
def blockbuster():
    """Make the detector of calls that may wait."""
    # Neither the command line nor a test suite has a loop to keep going.
    busters = BlockBuster("aiommap", excluded_modules=["aiommap._cli", "aiommap.testing"])
    # getcwd(2) asks no disk, and the answer must be the one of the moment of the call.
    busters.functions["os.getcwd"].can_block_in("aiommap/_core/paths.py", "check")
    return busters


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Make a folder of things that take long to make, once for all processes of the test run."""
    top = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        top = top.parent

    def once(name, make):
        folder = top / name
        with open(top / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                unready = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=top))
                make(unready)
                unready.rename(folder)
        return folder

    return once


@pytest.fixture
def path(tmp_path):
    """A file of sixteen pages, each filled with its own letter."""
    made = tmp_path / "file"
    made.write_bytes(b"".join(bytes([65 + i]) * PAGE for i in range(16)))
    return made


@pytest.fixture
def outside():
    """Truncate a file from another process."""

    def truncate(path, size):
        command = ["truncate", "-s", str(size), str(path)]
        process = os.posix_spawnp(command[0], command, os.environ)  # also on the loop
        assert os.waitpid(process, 0)[1] == 0

    return truncate
