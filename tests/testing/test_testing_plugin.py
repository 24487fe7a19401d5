"""aiommap.testing as a plugin in test runs like those of users, each in a process of its own."""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest

import aiommap.testing

pytest_plugins = ["pytester"]

LOOPS = """
import errno, os, pytest, aiommap
from aiommap.testing import failing_flush, full_disk, slow_disk

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param
"""

AS_PLUGIN = 'pytest_plugins = ["aiommap.testing"]\n'

#: The file is closed after the faults have ended, so its last flush succeeds.
WITH_FILE = (
    LOOPS
    + """
@pytest.fixture
async def f(tmp_path, anyio_backend):
    async with aiommap.open(tmp_path / "file", "w+", size=8192) as f:
        yield f
        await f.write(0, b"kept")
        await f.flush()
        print("flushed", (tmp_path / "file").read_bytes()[:4])
"""
)


@pytest.fixture
def run(pytester):
    """A way to run pytest in a process that does not have this project's configuration."""
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider --strict-markers\n")

    def run(*arguments, conftest="", **modules):
        pytester.makeconftest(conftest)
        pytester.makepyfile(**modules)
        return pytester.runpytest_subprocess(*arguments, timeout=150)

    return run


@pytest.mark.slow
def test_fixture_undoes_faults_before_close(run):
    tests = """
import anyio

@pytest.mark.anyio
async def test_it(f, inject_fault):
    disk = inject_fault(slow_disk(f, only="read"))
    fault = inject_fault(full_disk(f))
    async with anyio.create_task_group() as group:
        group.start_soon(f.read, 0, 1)
        await disk.wait_stalled()
        disk.release()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        await f.resize(1 << 20)
    assert fault.hits == 1
"""
    done = run("-s", conftest=AS_PLUGIN + WITH_FILE, test_mine=LOOPS + tests)
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(["*flushed b'kept'*"] * 2)


@pytest.mark.slow
def test_fixture_leaves_no_fault_after_failure(run):
    tests = """
@pytest.mark.anyio
async def test_it(f, inject_fault):
    inject_fault(failing_flush(f))
    with slow_disk(f, seconds=30), full_disk(f):
        assert f.size == "what it is not"
"""
    done = run("-s", conftest=AS_PLUGIN + WITH_FILE, test_mine=LOOPS + tests)
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(["*flushed b'kept'*"] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["conftest", "option", "import"])
def test_fixture_is_there_where_asked_for(run, way):
    conftest = {"conftest": AS_PLUGIN}.get(way, "")
    options = {"option": ["-p", "aiommap.testing"]}.get(way, [])
    lines = {"import": "from aiommap.testing import inject_fault\n"}.get(way, "")
    test = lines + "def test_it(inject_fault): assert callable(inject_fault)"
    run(*options, conftest=conftest, test_mine=test).assert_outcomes(passed=1)


@pytest.mark.slow
def test_package_is_not_loaded_unasked(run):
    test = """
import sys, pytest

def test_it(request):
    assert not [name for name in sys.modules if name.startswith("aiommap")]
    with pytest.raises(pytest.FixtureLookupError):
        request.getfixturevalue("inject_fault")
"""
    run(test_mine=test).assert_outcomes(passed=1)
    assert not [
        entry
        for entry in importlib.metadata.entry_points(group="pytest11")
        if entry.value.startswith("aiommap")
    ]


@pytest.mark.slow
def test_fixture_is_listed_with_its_help(run):
    done = run("--fixtures", conftest=AS_PLUGIN, test_mine="")
    done.stdout.fnmatch_lines(["inject_fault*", "*Put faults in place for the rest of a test.*"])


@pytest.mark.slow
def test_context_managers_need_no_plugin(run):
    """They do not need pytest at all: here unittest uses them."""
    test = """
import asyncio, os, tempfile, unittest
import aiommap
from aiommap.testing import failing_flush

class TestIt(unittest.IsolatedAsyncioTestCase):
    async def test_it(self):
        with tempfile.TemporaryDirectory() as folder:
            f = await aiommap.open(os.path.join(folder, "file"), "w+", size=1)
            with failing_flush(f), self.assertRaises(aiommap.FlushError):
                await f.aclose()
"""
    run(test_mine=test).assert_outcomes(passed=1)


def test_names_are_public_and_documented():
    public = aiommap.testing.__all__
    assert list(public) == sorted(public)
    for name in public:
        value = getattr(aiommap.testing, name)
        assert (value.__doc__ or inspect.getdoc(value) or "").strip(), name
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == "aiommap.testing"
