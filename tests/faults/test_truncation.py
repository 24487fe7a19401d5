"""Another process truncates, replaces or removes the file in the middle of a verb.

If this has to happen at a certain moment, a hook in the worker thread does it there. If only chance
can find the moment, the test races for it, in a process of its own, because a lost race could kill
the process.
"""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice, FlushPolicy
from tests.support.fork_server import run_code
from tests.support.internals import Workers, Writeback

pytestmark = pytest.mark.anyio

#: The size is more than any verb does inline; the rest after the cut is no whole number of pages.
SIZE, KEPT = 512 * PAGE, 100 * PAGE + 7

RACE = """
import errno, os, signal, sys, anyio, aiommap
path, verb, backend, times = *sys.argv[1:4], int(sys.argv[4])
PAGE = aiommap.PAGE_SIZE
SIZE, KEPT = os.stat(path).st_size, 100 * PAGE + 7
SIZES = KEPT, SIZE, 201 * PAGE  # the last, if a store made the cut file longer again

async def read(f): await f.read(0, SIZE)
async def read_into(f): await f.read_into(0, bytearray(SIZE))
async def residency(f): assert (await f.residency()).total == SIZE // PAGE
async def chunks(f): assert sum([len(c) async for c in f.chunks(300 * PAGE)]) == SIZE
async def flush(f):
    await f.write(200 * PAGE, b"w" * PAGE)
    await f.flush()
async def locked(f):
    async with f.locked():
        await f.read(200 * PAGE, PAGE)
        await f.write(200 * PAGE, b"w" * PAGE)

def race(parent):
    while os.getppid() == parent:
        os.truncate(path, KEPT)
        os.truncate(path, SIZE)
    os._exit(0)

def check(error):
    if isinstance(error, aiommap.MappingFaultError):
        assert 0 <= error.offset < SIZE and error.copied >= 0, error
        assert error.size in SIZES and error.path == path, error
    else:
        assert all(0 <= start < end <= SIZE for start, end in error.ranges), error
        assert error.errno == errno.EIO and error.path == path, error

async def attempt():
    # Run the verb until a flush fails, which latches; return the number of runs.
    done = 0
    f = await aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never())
    try:
        while f.size == SIZE and done < times:
            done += 1
            try:
                await globals()[verb](f)
            except aiommap.MappingFaultError as error:
                check(error)
    except aiommap.FlushError as error:
        check(error)
    finally:
        try:
            await f.aclose()
        except aiommap.FlushError as error:
            check(error)
    return done

async def main():
    done = 0
    while done < times:
        done += await attempt()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    async with aiommap.open(path, "r+") as f:
        await f.write(0, b"usable")
        await f.flush()
        assert await f.read(0, 6) == b"usable"
    print("alive")

parent = os.getpid()
child = os.fork()
if not child:
    race(parent)
anyio.run(main, backend=backend)
"""


class Moment:
    """Runs an action once: before the next read of the engine, or in the next worker thread."""

    def __init__(self):
        self.action = None

    def wrap(self, function):
        action, self.action = self.action, None
        if action is None:
            return function

        def run(*arguments):
            action()
            return function(*arguments)

        return run


class Queue:
    """Wraps the queue of a file in the engine."""

    def __init__(self, queue, moment):
        self._queue = queue
        self._moment = moment

    def __getattr__(self, verb):
        return self._moment.wrap(getattr(self._queue, verb))


@pytest.fixture
def moment(monkeypatch):
    made = Moment()
    start = Workers._start
    monkeypatch.setattr(
        Workers,
        "_start",
        lambda self, limiter, function, ended: start(self, limiter, made.wrap(function), ended),
    )
    queue = Workers.queue
    monkeypatch.setattr(Workers, "queue", lambda self, device: Queue(queue(self, device), made))
    # tests/flush/test_engine_commits.py has losses during a commit of the engine.
    monkeypatch.setattr(Workers, "flush_queue", lambda *_: None)
    return made


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "file"
    made.write_bytes(b"o" * SIZE)
    return made


async def check_usable(f, path):
    """Check that the rest of the file can be read, stored to and flushed."""
    assert await f.read(0, KEPT) == path.read_bytes()
    receipt = await f.write(0, b"still here")
    await f.flush()
    assert receipt.durable
    assert path.read_bytes()[:10] == b"still here"


FAULTS = {
    "read": (lambda f: f.read(0, SIZE), KEPT),
    "read_far": (lambda f: f.read(SIZE // 2 - PAGE, SIZE // 2 + PAGE), 0),
    "read_into": (lambda f: f.read_into(0, bytearray(SIZE)), KEPT),
    "read_many": (lambda f: f.read_many([(0, SIZE), (0, 1)]), KEPT),
    "write": (lambda f: f.write(0, b"n" * SIZE), 0),
    "write_many": (lambda f: f.write_many([(SIZE // 2, b"n" * PAGE * 200)]), 0),
    "prewarm": (lambda f: f.prewarm(), 0),
    "prewarm_write": (lambda f: f.prewarm(write=True), 0),
    "locked": (lambda f: f.locked().__aenter__(), 0),
    "chunks": (lambda f: anext(f.chunks(SIZE)), KEPT),
}


@pytest.mark.parametrize(("verb", "copied"), FAULTS.values(), ids=FAULTS)
async def test_truncate_under_verb_gives_numbers(path, outside, moment, verb, copied):
    async with aiommap.open(path, "r+") as f:
        moment.action = lambda: outside(path, KEPT)
        with pytest.raises(aiommap.MappingFaultError, match=f"shrank to {KEPT} bytes") as caught:
            await verb(f)
        error = caught.value
        assert moment.action is None
        assert (error.size, error.copied, error.path) == (KEPT, copied, str(path))
        assert KEPT <= error.offset < SIZE
        assert path.read_bytes() == b"o" * KEPT  # nothing was stored
        await check_usable(f, path)


UNHARMED = {
    "residency": lambda f: f.residency(),
    "advise": lambda f: f.advise(Advice.WILL_NEED),
    "start_writeback": lambda f: f.start_writeback(),
    "punch_hole": lambda f: f.punch_hole(SIZE // 2, PAGE),
}


@pytest.mark.parametrize("verb", UNHARMED.values(), ids=UNHARMED)
async def test_truncate_of_pages_not_needed(path, outside, moment, verb):
    async with aiommap.open(path, "r+") as f:
        await f.write(0, b"dirty")
        moment.action = lambda: outside(path, KEPT)
        await verb(f)
        assert path.stat().st_size == KEPT
        await check_usable(f, path)


async def test_truncate_between_chunks_ends_them(path, outside):
    async with aiommap.open(path, "r+") as f:
        chunks = f.chunks(64 * PAGE)
        assert await anext(chunks) == b"o" * 64 * PAGE
        outside(path, KEPT)
        with pytest.raises(aiommap.MappingFaultError, match=f"shrank to {KEPT}") as caught:
            await anext(chunks)
        assert (caught.value.offset, caught.value.copied) == (KEPT, KEPT - 64 * PAGE)
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
        await check_usable(f, path)


async def test_truncate_within_a_locked_block(path, outside):
    """Reads and stores do not check locked pages first; now the pages are gone."""
    async with aiommap.open(path, "r+") as f:
        async with f.locked(0, SIZE):
            outside(path, KEPT)
            for verb in (
                lambda: f.read(SIZE // 2, 10),
                lambda: f.write(SIZE // 2, b"n"),
                lambda: f.read(0, SIZE),
                lambda: f.prewarm(),
            ):
                with pytest.raises(aiommap.MappingFaultError, match=f"shrank to {KEPT}"):
                    await verb()
            assert await f.read(0, KEPT) == b"o" * KEPT
        await check_usable(f, path)


def truncate(path):
    subprocess.run(["truncate", "-s", str(KEPT), str(path)], check=True)


def replace(path):
    subprocess.run(["cp", str(path), f"{path}.new"], check=True)
    subprocess.run(["mv", f"{path}.new", str(path)], check=True)


def remove(path):
    subprocess.run(["rm", str(path)], check=True)


LOSSES = {
    "truncated": (truncate, errno.EIO, f"truncated to {KEPT} bytes"),
    "replaced": (replace, errno.ESTALE, "was removed or replaced"),
    "removed": (remove, errno.ESTALE, "was removed"),
}
FLUSHES = {
    "flush": lambda f, _: f.flush(),
    "flush_range": lambda f, _: f.flush_range(SIZE // 2, PAGE),
    "flush_receipt": lambda f, receipt: f.flush_range(receipt),
    "wait_durable": lambda f, receipt: receipt.wait_durable(),
    "view_flush": lambda f, _: f.view(SIZE // 2, PAGE).flush(),
    "aclose": lambda f, _: f.aclose(),
}


async def expect_lost(f, verb, number, reason, receipt):
    """Check that the first verb raises with the lost ranges, and that every later one raises."""
    with pytest.raises(aiommap.FlushError, match=reason) as caught:
        await verb(f, receipt)
    lost = SIZE // 2, SIZE // 2 + PAGE
    assert (caught.value.errno, caught.value.ranges) == (number, (lost,))
    assert not receipt.durable
    if f.closed:
        return
    for again in (f.flush, lambda: f.write(0, b"x"), receipt.wait_durable):
        with pytest.raises(aiommap.FlushError, match=reason):
            await again()
    assert await f.read(0, KEPT) == b"o" * KEPT
    with pytest.raises(aiommap.FlushError, match=reason):
        await f.aclose()


@pytest.mark.parametrize(("lose", "number", "reason"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("verb", FLUSHES.values(), ids=FLUSHES)
async def test_flush_of_data_lost_before(path, verb, lose, number, reason):
    f = await aiommap.open(path, "r+")
    receipt = await f.write(SIZE // 2, b"n" * PAGE)
    lose(path)
    await expect_lost(f, verb, number, reason, receipt)


async def test_flush_of_a_single_lost_byte(path, outside):
    f = await aiommap.open(path, "r+")
    receipt = await f.write(SIZE - 1, b"n")
    outside(path, SIZE - 1)
    with pytest.raises(aiommap.FlushError, match=f"truncated to {SIZE - 1} bytes"):
        await f.flush()
    assert not receipt.durable
    with pytest.raises(aiommap.FlushError):
        await f.aclose()


SIZE_CHANGES = {
    "refresh": lambda f: f.refresh(),
    "reopen": lambda f: f.reopen(),
    "ensure": lambda f: f.ensure(2 * SIZE),
    "ensure_less": lambda f: f.ensure(PAGE),
    "resize": lambda f: f.resize(2 * SIZE),
    "resize_beyond_the_capacity": lambda f: f.resize(8 * SIZE),
    "resize_to_less": lambda f: f.resize(SIZE - PAGE),
}


@pytest.mark.parametrize("cut", [PAGE, 50, 0], ids=["before", "within", "at"])
@pytest.mark.parametrize("change", SIZE_CHANGES.values(), ids=SIZE_CHANGES)
async def test_resize_does_not_hide_cut_stores(path, outside, change, cut):
    at = SIZE // 2
    f = await aiommap.open(path, "r+", capacity=4 * SIZE)
    receipt = await f.write(at + 100, b"n")
    kept = at - PAGE if cut == PAGE else at + cut
    outside(path, kept)
    with pytest.raises(aiommap.FlushError, match=f"truncated to {kept} bytes"):
        await change(f)
    assert path.stat().st_size == kept
    assert not receipt.durable
    for again in (f.flush, receipt.wait_durable, f.aclose):
        with pytest.raises(aiommap.FlushError, match=f"truncated to {kept} bytes"):
            await again()


SIZES = {
    "refresh": SIZE // 2 + PAGE,
    "reopen": SIZE // 2 + PAGE,
    "ensure": 2 * SIZE,
    "ensure_less": SIZE,
    "resize": 2 * SIZE,
    "resize_beyond_the_capacity": 8 * SIZE,
    "resize_to_less": SIZE - PAGE,
}


@pytest.mark.parametrize("change", SIZE_CHANGES)
async def test_resize_after_cut_behind_dirty_bytes(path, outside, change):
    async with aiommap.open(path, "r+", capacity=4 * SIZE) as f:
        receipt = await f.write(SIZE // 2, b"n" * PAGE)
        outside(path, SIZE // 2 + PAGE)
        await SIZE_CHANGES[change](f)
        assert f.size == path.stat().st_size == SIZES[change]
        await receipt.wait_durable()
        await f.flush_range(receipt)


async def test_resize_loses_nothing_itself(path, outside):
    async with aiommap.open(path, "r+") as f:
        await f.write(SIZE // 2, b"n" * PAGE)
        outside(path, SIZE // 2)
        await f.resize(SIZE // 2)
        await f.flush()


@pytest.mark.parametrize(("lose", "number", "reason"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("when", ["begun", "synced"])
async def test_flush_of_data_lost_during_it(path, moment, monkeypatch, when, lose, number, reason):
    """Lost after the flush has begun, or after the kernel has called the write-back a success."""
    f = await aiommap.open(path, "r+")
    receipt = await f.write(SIZE // 2, b"n" * PAGE)
    if when == "begun":
        moment.action = lambda: lose(path)
    else:
        verify = Writeback._verify

        def lose_and_verify(self, end):
            lose(path)
            verify(self, end)

        monkeypatch.setattr(Writeback, "_verify", lose_and_verify)
    await expect_lost(f, FLUSHES["flush"], number, reason, receipt)


@pytest.mark.parametrize(("lose", "number", "reason"), LOSSES.values(), ids=LOSSES)
async def test_durable_write_of_lost_data(path, moment, lose, number, reason):
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        moment.action = lambda: lose(path)
        gone = aiommap.MappingFaultError if lose is truncate else aiommap.FlushError
        with pytest.raises(gone, match=f"shrank to {KEPT}|{reason}"):
            await f.write(SIZE // 2, b"n" * PAGE)
        if lose is truncate:  # the verb found it before it stored anything, so nothing latches
            await check_usable(f, path)
            return
        with pytest.raises(aiommap.FlushError, match=reason):
            await f.aclose()


async def test_flush_after_cut_above_dirty_bytes(path, outside):
    async with aiommap.open(path, "r+") as f:
        receipt = await f.write(0, b"n" * PAGE)
        outside(path, KEPT)
        await f.flush()
        assert receipt.durable


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("verb", "times"),
    [
        ("read", 300),
        ("read_into", 300),
        ("residency", 300),
        ("locked", 2000),  # the file rarely has its old size again when a fault is checked
        ("chunks", 300),
        ("flush", 300),
    ],
)
def test_race_of_a_verb_with_truncation(path, verb, times, backend):
    done = run_code(RACE, path, verb, backend, times)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


async def test_wait_looks_for_holes_in_all_that_it_flushes(path):
    """Another process cuts the file and makes it longer again, after a write nobody waits for."""
    f = await aiommap.open(path, "r+")
    lost = await f.write(0, b"lost")
    os.truncate(path, 0)
    os.truncate(path, f.size - PAGE)
    kept = await f.write(5 * PAGE, b"kept")
    with pytest.raises(aiommap.FlushError, match="they are lost"):
        await kept.wait_durable()
    assert (lost.durable, kept.durable) == (False, False)
    assert f.statistics().dirty_bytes == 2 * PAGE
    with pytest.raises(aiommap.FlushError):
        await f.aclose()
