"""A frozen file system, as during LVM and VM backups: which calls wait for the thaw."""

from __future__ import annotations

import shutil
import subprocess
import threading
from functools import partial

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.disks import loop_disk, must
from tests.support.internals import core_of

pytestmark = pytest.mark.anyio

#: How many turns a loop or thread has to get during a freeze to count as running.
TURNS = 20
#: After this number of quick writes, an earlier slow one counts as an accident.
QUICK = 8
#: After this time a freeze ends in any case, and the test fails.
LONGEST_SECONDS = 15


class Freezer:
    """Freezes a file system and thaws it, after LONGEST_SECONDS at the latest."""

    def __init__(self, folder):
        self.folder = folder
        self._watchdog = None

    def freeze(self):
        must("fsfreeze", "-f", self.folder)
        late = f"sleep {LONGEST_SECONDS}; fsfreeze -u {self.folder}"
        self._watchdog = subprocess.Popen(["sh", "-c", late], start_new_session=True)

    def thaw(self):
        """End the freeze; tell whether it had lasted until now."""
        done = subprocess.run(["fsfreeze", "-u", self.folder], capture_output=True)
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
            self._watchdog = None
        return done.returncode == 0


@pytest.fixture(scope="module")
def frozen_folder(tmp_path_factory):
    if shutil.which("fsfreeze") is None:
        pytest.skip("fsfreeze is not installed")
    with loop_disk(tmp_path_factory.mktemp("frozen"), "64m", "mkfs.ext4", "-qF") as folder:
        yield folder


@pytest.fixture
def freezer(frozen_folder):
    freezer = Freezer(frozen_folder)
    yield freezer
    freezer.thaw()


async def make_warm(folder, **options):
    """Open a file whose pages are in memory, and clean."""
    f = await aiommap.open(folder / "file", "w+", size=64 * PAGE, **options)
    await f.write(0, b"warm" * PAGE)
    await f.flush()
    await f.prewarm()
    return f


async def turns():
    for _ in range(TURNS):
        await anyio.sleep(0.005)


WRITES = {
    "write": lambda f, at: f.write(at, b"x"),
    "write_many": lambda f, at: f.write_many([(at, b"x"), (at + PAGE, b"y")]),
    "view": lambda f, at: f.view(at, PAGE).write(0, b"x"),
}


@pytest.mark.parametrize("policy", [FlushPolicy.manual(), FlushPolicy.every_writes(2)], ids=str)
@pytest.mark.parametrize("verb", WRITES)
async def test_loop_goes_on_without_inline_writes(freezer, verb, policy):
    f = await make_warm(freezer.folder, inline_writes=False, flush=policy)
    done = []

    async def write(at):
        await WRITES[verb](f, at)
        done.append(at)

    freezer.freeze()
    async with anyio.create_task_group() as group:
        for i in range(8):
            group.start_soon(write, 4 * i * PAGE)
        await turns()
        assert not done
        assert await f.read(0, 4) == b"warm"
        assert freezer.thaw()
    assert sorted(done) == [4 * i * PAGE for i in range(8)]
    assert [await f.read(4 * i * PAGE, 1) for i in range(8)] == [b"x"] * 8
    assert f.statistics().inline_writes == 0
    await f.aclose()


async def test_async_lock_without_inline_writes(freezer):
    f = await make_warm(freezer.folder, inline_writes=False)
    lock, held = aiommap.AsyncLock(f, 8 * PAGE), []

    async def use():
        async with lock:
            held.append(lock.owner_died)

    async with anyio.create_task_group() as group:
        freezer.freeze()
        group.start_soon(use)
        await turns()
        assert freezer.thaw()
    assert (held, lock.locked) == ([False], False)
    freezer.freeze()
    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await turns()
        group.cancel_scope.cancel()
        assert freezer.thaw()
    async with lock:
        assert not lock.owner_died
    await f.aclose()


def count_and_thaw(freezer, counted):
    """Count turns of this thread during a freeze, and then end it."""
    while len(counted) < TURNS:
        counted.append(1)
        threading.Event().wait(0.005)
    counted.append(freezer.thaw())


@pytest.mark.parametrize("inline_writes", [False, True])
async def test_threads_go_on_beside_a_word(freezer, inline_writes):
    """An operation on a word is a plain call and waits, but no other thread does."""
    f = await make_warm(freezer.folder, inline_writes=inline_writes)
    word, counted = f.atomic_u64(0), []
    before = word.load()
    freezer.freeze()
    thread = threading.Thread(target=count_and_thaw, args=(freezer, counted))
    thread.start()
    user = threading.Thread(target=partial(word.fetch_add, 1))
    user.start()
    await turns()
    await anyio.to_thread.run_sync(thread.join)
    await anyio.to_thread.run_sync(user.join)
    assert counted == [1] * TURNS + [True]
    assert word.load() == before + 1
    await f.aclose()


@pytest.mark.parametrize("hot", [False, True])
async def test_threads_go_on_beside_inline_write(freezer, hot):
    f = await make_warm(freezer.folder)
    counted = []
    if hot:
        await f.write(0, b"h")
    freezer.freeze()  # makes the kernel write the page back
    thread = threading.Thread(target=count_and_thaw, args=(freezer, counted))
    thread.start()
    await f.write(0, b"x")  # here the loop waits for the thaw, and no other thread does
    await anyio.to_thread.run_sync(thread.join)
    assert counted == [1] * TURNS + [True]
    assert f.statistics().inline_writes > 0
    await f.aclose()


async def test_workers_store_after_a_write_that_waited(freezer):
    """From the second such write on: the first may only have met a busy processor."""
    for _ in range(5):
        f = await make_warm(freezer.folder)
        for _ in range(QUICK):
            await f.write(0, b"q")
        began = f.statistics()
        for _ in range(2):
            counted = []
            freezer.freeze()
            thread = threading.Thread(target=count_and_thaw, args=(freezer, counted))
            thread.start()
            await f.write(0, b"x")
            await anyio.to_thread.run_sync(thread.join)
        before = f.statistics()
        await f.write(PAGE, b"y")
        after = f.statistics()
        await f.aclose()
        assert after.inline_writes == before.inline_writes
        assert after.offloaded_writes == before.offloaded_writes + 1
        if before.inline_writes - began.inline_writes == 2:
            assert before.offloaded_writes == began.offloaded_writes
            return
        # An earlier write had waited, too, so one more was enough: try again.
    raise AssertionError("the first write that waited was enough")


async def test_writes_that_wait_cost_one_hop(tmp_path):
    """All writes but the first share a hop; the first has left before the others come."""
    async with aiommap.open(tmp_path / "file", "w+", size=64 * PAGE, inline_writes=False) as f:
        sizes = []
        real = core_of(f).disk.write_many

        class Counting:
            def __getattr__(self, name):
                return getattr(core_of(f).mapping, name)

            def write_many(self, items):
                sizes.append(len(items))
                return real(items)

        core_of(f).disk = Counting()
        async with anyio.create_task_group() as group:
            for i in range(50):
                group.start_soon(f.write, i * PAGE, b"x" * 10)
        assert sum(sizes) == 50
        assert len(sizes) <= 2
        core_of(f).disk = core_of(f).mapping
