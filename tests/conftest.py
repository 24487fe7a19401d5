"""Fixtures for all tests: the three event loops, files, and changes by another process."""

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
from tests.support.loops import LOOPS

PAGE = aiommap.PAGE_SIZE

#: So that scripts, in other processes, can import the helpers of the tests.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# A shell makes its background jobs ignore SIGINT, and processes started by tests would inherit
# that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# anyio imports its trio backend when it first needs it, which might be on a watched loop.
anyio.run(anyio.lowlevel.checkpoint, backend="trio")

# No deadline: tests assert nothing about elapsed time.
settings.register_profile("whole", settings(), deadline=None)
settings.register_profile("quick", settings.get_profile("whole"), max_examples=25)


def pytest_addoption(parser):
    parser.addoption(
        "--loop",
        choices=LOOPS,
        help="run tests on this event loop only, for a quick check after an edit",
    )
    parser.addoption(
        "--one-reader", action="store_true", help="let each hub have one native thread that reads"
    )


def pytest_configure(config):
    """Let Hypothesis try fewer examples if the tests run on one loop."""
    settings.load_profile("quick" if config.getoption("--loop") else "whole")


def pytest_xdist_auto_num_workers(config):
    """Start more processes than processors, because tests wait; the quick ones wait most."""
    processors = os.cpu_count() or 2
    return processors * 2 if config.getoption("--loop") else processors * 3 // 2


def pytest_collection_modifyitems(config, items):
    """With ``--loop``, drop tests of other loops; a word of a test's id names its loop."""
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
    """Keep the collected tests out of garbage collection, now and while tests run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(params=LOOPS.values(), ids=LOOPS)
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def one_reader(request, monkeypatch):
    """With ``--one-reader``, code that needs two reads at once to go on would hang."""
    if request.config.getoption("--one-reader"):
        monkeypatch.setattr(engine, "NO_LIMIT", 1)


@pytest.fixture(autouse=True)
def loop_never_waits():
    """Fail a test if the package makes a call on the loop thread that may wait (I1)."""
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
    # The command line and a test suite may wait: they have no loop to keep going.
    busters = BlockBuster("aiommap", excluded_modules=["aiommap._cli", "aiommap.testing"])
    # getcwd(2) does not wait for a disk, and a path is relative to the folder at the time of the
    # call.
    busters.functions["os.getcwd"].can_block_in("aiommap/_core/paths.py", "check")
    return busters


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Make a folder of things that take long to make, once for all processes of a test run."""
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
        process = os.posix_spawnp(command[0], command, os.environ)  # not watched on the loop
        assert os.waitpid(process, 0)[1] == 0

    return truncate
