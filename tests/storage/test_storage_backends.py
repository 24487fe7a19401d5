"""Our backends, and broken ones, in the suite that users run on their own."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys

import anyio
import anyio.lowlevel
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FileBackend, MappedBackend, OutOfBoundsError, Snapshot, StorageBackend
from aiommap.testing import StorageBackendSuite

pytestmark = pytest.mark.anyio


def stored(content, folder):
    path = folder / "stored"
    path.write_bytes(content)
    return path


class TestSnapshot(StorageBackendSuite):
    async def make_backend(self, content, folder):
        return await Snapshot.open(stored(content, folder))


class TestMappedBackend(StorageBackendSuite):
    async def make_backend(self, content, folder):
        return await MappedBackend.open(stored(content, folder), prewarm=True)


class TestMappedBackendOverAMappedFile(StorageBackendSuite):
    async def make_backend(self, content, folder):
        return MappedBackend(await aiommap.open(stored(content, folder), "r+"))


class TestMappedBackendOfLargeReads(StorageBackendSuite):
    """Reads that are too large for the loop thread."""

    content = os.urandom(1 << 20) * 4
    readers = 8

    async def make_backend(self, content, folder):
        return await MappedBackend.open(stored(content, folder))


class TestFileBackend(StorageBackendSuite):
    async def make_backend(self, content, folder):
        return await FileBackend.open(stored(content, folder))


class TestFileBackendOfAGivenSize(StorageBackendSuite):
    async def make_backend(self, content, folder):
        return await FileBackend.open(stored(content + b"more", folder), size=len(content))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("losetup"), reason="needs a loop device")
class TestFileBackendOverABlockDevice(StorageBackendSuite):
    content = StorageBackendSuite.content[: 3 * PAGE]

    @pytest.fixture(autouse=True)
    def devices(self, tmp_path):
        self.attached = []
        yield
        for device in self.attached:
            subprocess.run(["losetup", "-d", device], check=True)

    async def make_backend(self, content, folder):
        if not content:
            pytest.skip("there are no empty loop devices")
        path = stored(content, folder)
        command = ["losetup", "-f", "--show", "-r", path]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            pytest.skip(f"no loop device: {found.stderr}")
        self.attached.append(found.stdout.strip())
        return await FileBackend.open(self.attached[-1])


class Plain:
    """A correct backend over bytes. Each of the broken ones differs from it in one thing."""

    def __init__(self, content):
        self.content, self.size, self.closed = content, len(content), False

    async def read_exact(self, offset, length):
        if self.closed:
            raise anyio.ClosedResourceError
        if not isinstance(offset, int) or not isinstance(length, int):
            raise TypeError("integers are needed")
        await anyio.lowlevel.checkpoint()
        if min(offset, length) < 0 or offset + length > self.size:
            raise OutOfBoundsError(offset, length, self.size)
        return self.content[offset : offset + length]

    async def aclose(self):
        self.closed = True


class SizeIsAVerb(Plain):
    def __init__(self, content):
        super().__init__(content)
        self.size = lambda: len(content)


class NoClose:
    def __init__(self, content):
        self.plain = Plain(content)
        self.read_exact, self.size = self.plain.read_exact, self.plain.size

    def __getattr__(self, name):
        raise AttributeError(name)


class ShortAtTheEnd(Plain):
    async def read_exact(self, offset, length):
        if self.closed:
            raise anyio.ClosedResourceError
        return self.content[offset : offset + length]


class OffByOne(Plain):
    async def read_exact(self, offset, length):
        if offset >= self.size:
            raise OutOfBoundsError(offset, length, self.size)
        return await super().read_exact(offset, length)


class WithoutNumbers(Plain):
    async def read_exact(self, offset, length):
        try:
            return await super().read_exact(offset, length)
        except OutOfBoundsError:
            raise OutOfBoundsError(0, 0, 0) from None


class GivesByteArrays(Plain):
    async def read_exact(self, offset, length):
        return bytearray(await super().read_exact(offset, length))


class TakesFloats(Plain):
    async def read_exact(self, offset, length):
        return await super().read_exact(int(offset), int(length))


class SharesOnePosition(Plain):
    """It seeks, then reads: correct for one task at a time only."""

    position = 0

    async def read_exact(self, offset, length):
        self.position = offset
        await super().read_exact(offset, length)
        return await super().read_exact(min(self.position, self.size - length), length)


class BreaksWhenCancelled(Plain):
    async def read_exact(self, offset, length):
        try:
            return await super().read_exact(offset, length)
        except anyio.get_cancelled_exc_class():
            self.content = bytes(self.size)
            raise


class ReadsWhenClosed(Plain):
    async def aclose(self):
        pass


class ClosesOnce(Plain):
    async def aclose(self):
        if self.closed:
            raise RuntimeError("closed twice")
        self.closed = True


class ForgetsItsSize(Plain):
    async def aclose(self):
        self.closed, self.size = True, 0


class ClosesUnderReads(Plain):
    async def read_exact(self, offset, length):
        data = await super().read_exact(offset, length)
        await anyio.lowlevel.checkpoint()
        return bytes(length) if self.closed else data


class LosesACancelledClose(Plain):
    async def aclose(self):
        await anyio.lowlevel.checkpoint()
        self.closed = True


class NeverEmpty(Plain):
    def __init__(self, content):
        super().__init__(content or b"\0")


BROKEN = {
    NoClose: "it_is_a_storage_backend",
    SizeIsAVerb: "its_size_is_the_length_of_its_content",
    OffByOne: "ranges_within_are_read_exactly",
    GivesByteArrays: "ranges_within_are_read_exactly",
    ShortAtTheEnd: "ranges_beyond_are_refused_with_their_numbers",
    WithoutNumbers: "ranges_beyond_are_refused_with_their_numbers",
    TakesFloats: "numbers_that_are_not_integers_are_refused",
    NeverEmpty: "no_content_has_no_bytes",
    SharesOnePosition: "concurrent_reads_do_not_mix",
    BreaksWhenCancelled: "a_cancelled_read_harms_nobody",
    ReadsWhenClosed: "a_closed_backend_refuses_to_read",
    ClosesOnce: "a_closed_backend_refuses_to_read",
    ForgetsItsSize: "a_closed_backend_refuses_to_read",
    ClosesUnderReads: "closing_under_reads_answers_or_refuses_each",
    LosesACancelledClose: "a_cancelled_close_closes",
}
CHECKS = {
    name.removeprefix("test_")
    for name, _ in inspect.getmembers(StorageBackendSuite, inspect.isfunction)
    if name.startswith("test_")
}


class TestPlain(StorageBackendSuite):
    """As the correct one passes, it is what is broken that makes the others fail."""

    async def make_backend(self, content, folder):
        return Plain(content)


def suite_over(kind):
    class Suite(StorageBackendSuite):
        async def make_backend(self, content, folder):
            return kind(content)

    return Suite()


async def run_check(suite, name, tmp_path):
    check = getattr(suite, f"test_{name}")
    if "turns" not in inspect.signature(check).parameters:
        await check(tmp_path)
        return
    for turns in range(5):
        await check(tmp_path, turns)


def test_suite_checks_each_have_a_failing_backend():
    assert set(BROKEN.values()) == CHECKS


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
async def test_suite_check_fails_its_broken_backend(kind, tmp_path):
    kinds = (AssertionError, pytest.fail.Exception, OutOfBoundsError, RuntimeError, AttributeError)
    with pytest.raises(kinds):
        await run_check(suite_over(kind), BROKEN[kind], tmp_path)


async def test_suite_without_the_hook_says_so(tmp_path):
    with pytest.raises(NotImplementedError, match="has to define make_backend"):
        await StorageBackendSuite().test_it_is_a_storage_backend(tmp_path)


USERS_TESTS = """
import pytest
from aiommap.testing import StorageBackendSuite

@pytest.fixture
def anyio_backend():
    return "asyncio"

class Short:
    def __init__(self, content): self.content, self.size = content, len(content)
    async def read_exact(self, offset, length): return self.content[offset : offset + length - 1]
    async def aclose(self): pass

class TestShort(StorageBackendSuite):
    async def make_backend(self, content, folder):
        return Short(content)
"""


@pytest.mark.slow
def test_suite_in_a_users_run_names_the_fault(tmp_path):
    (tmp_path / "test_mine.py").write_text(USERS_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED test_mine.py::TestShort::test_ranges_within_are_read_exactly" in done.stdout
    assert "= len(b'" in done.stdout  # assertions are rewritten


def test_package_loads_no_testing_side():
    script = "import sys, aiommap; print(sorted({'pytest', 'aiommap.testing'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


async def test_file_that_ends_early_is_named(path):
    async with FileBackend.open(path) as backend:
        os.truncate(path, PAGE)
        assert await backend.read_exact(0, PAGE) == b"A" * PAGE
        with pytest.raises(OutOfBoundsError, match=f"ends at {PAGE} or before") as caught:
            await backend.read_exact(10, 2 * PAGE)
        error = caught.value
        assert (error.offset, error.length, error.limit) == (10, 2 * PAGE, PAGE)


async def test_file_of_the_kernel_needs_a_size():
    async with FileBackend.open("/proc/self/status", size=1 << 20) as backend:
        assert await backend.read_exact(0, 5) == b"Name:"
        with pytest.raises(OutOfBoundsError, match="was too large") as caught:
            await backend.read_exact(0, 1 << 20)
        assert 0 < caught.value.limit < 1 << 20


@pytest.mark.parametrize(
    ("special", "says"),
    [("/dev/zero", "character device: pass size="), ("/", "a directory"), ("pipe", "a pipe")],
    ids=["character-device", "directory", "pipe"],
)
async def test_file_without_offsets_is_refused(tmp_path, special, says):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(aiommap.UnsupportedError, match=says):
        await FileBackend.open(tmp_path / special)


async def test_missing_file_is_plain_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        await FileBackend.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match="cannot be negative"):
        FileBackend.open(tmp_path / "nothing", size=-1)


async def test_open_cancelled_leaves_no_descriptor(path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await FileBackend.open(path)
        assert scope.cancelled_caught
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # a worker may be at work on the last


async def test_reads_left_behind_keep_the_descriptor(tmp_path, monkeypatch):
    """A read that hangs in a worker must not read another file in the end."""
    import threading

    from tests.support.internals import Workers
    from tests.support.internals import descriptor as module

    begun, go = threading.Event(), threading.Event()
    real, found = module.read_file, []

    def slow(fd, offset, length):
        begun.set()
        go.wait(100)
        found.append(real(fd, offset, length))
        return found[-1]

    monkeypatch.setattr(module, "read_file", slow)
    monkeypatch.setattr(Workers, "queue", lambda *_: None)  # no engine: test_engine.py has it
    backend = await FileBackend.open(stored(b"mine", tmp_path))
    async with anyio.create_task_group() as group:
        group.start_soon(backend.read_exact, 0, 4)
        while not begun.is_set():
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    await backend.aclose()
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    go.set()
    while not found:
        await anyio.lowlevel.checkpoint()
    for fd in others:
        os.close(fd)
    assert found == [b"mine"]


async def test_both_share_a_hub(path):
    async with aiommap.Hub(workers=2) as hub:
        async with FileBackend.open(path, hub=hub) as file, MappedBackend.open(path, hub=hub) as m:
            backends: list[StorageBackend] = [file, m]
            assert [await b.read_exact(0, 1) for b in backends] == [b"A", b"A"]
            assert f"FileBackend {path}" in repr(file)
            assert f"Snapshot {path}" in repr(m)
            assert file.path == str(path)
        assert file.closed


def test_protocol_tells_its_contract():
    sections = {
        StorageBackend: {"Concurrency"},
        StorageBackend.read_exact: {"Args", "Returns", "Raises", "Cancellation", "Concurrency"},
        StorageBackend.aclose: {"Raises", "Cancellation", "Concurrency"},
    }
    for subject, wanted in sections.items():
        found = set(re.findall(r"^(\w+):", inspect.getdoc(subject), re.MULTILINE))
        assert found == wanted, subject
    assert "Constant" in inspect.getdoc(StorageBackend.size)


async def test_read_that_fails_names_the_file():
    async with FileBackend.open("/proc/self/mem", size=PAGE) as backend:
        with pytest.raises(OSError, match="/proc/self/mem"):  # nothing is mapped at 0
            await backend.read_exact(0, 1)
