"""Cancellation of every await, before it begins, while it queues and while a worker is at it.

Each case runs with the cancel scopes of anyio on all three loops, and with asyncio's own
``Task.cancel``, from which no scope shields. No test waits for time to pass: it takes the tokens of
a limiter to keep a hop from beginning, and a gate in the thread keeps a hop from ending.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import contextmanager

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice, FlushPolicy
from tests.support.internals import Workers, Writeback, core_of, workers_of
from tests.support.limiters import engine_held, held
from tests.support.loops import LOOPS
from tests.support.pages import locked_memory
from tests.support.waiting import until

SIZE = 512 * PAGE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("nothing_locked"),
    pytest.mark.parametrize(
        ("anyio_backend", "way"),
        [
            pytest.param(backend, way, id=f"{name}-{way}")
            for name, backend in LOOPS.items()
            for way in ("scope", "native")
            if (name, way) != ("trio", "native")
        ],
        indirect=["anyio_backend"],
    ),
]

# Each takes the file, and a buffer of its size, and needs at least one hop.
VERBS = {
    "read": lambda f, _: f.read(0, SIZE),
    "read_into": lambda f, buffer: f.read_into(0, buffer),
    "read_many": lambda f, _: f.read_many([(0, 1), (0, SIZE)]),
    "write": lambda f, _: f.write(0, b"n" * SIZE),
    "write_many": lambda f, _: f.write_many([(0, b"n" * SIZE)]),
    "append": lambda f, _: f.append(b"n" * SIZE),
    "flush": lambda f, _: f.flush(),
    "flush_range": lambda f, _: f.flush_range(0, PAGE),
    "start_writeback": lambda f, _: f.start_writeback(),
    "prewarm": lambda f, _: f.prewarm(),
    "residency": lambda f, _: f.residency(),
    "advise": lambda f, _: f.advise(Advice.NORMAL),
    "locked": lambda f, _: f.locked().__aenter__(),
    "resize": lambda f, _: f.resize(2 * SIZE),
    "punch_hole": lambda f, _: f.punch_hole(0, SIZE),
    "chunks": lambda f, _: anext(f.chunks(SIZE)),
}
#: What the file holds once the verb is done; other verbs leave it as it is.
RESULTS = {
    "write": b"n" * SIZE,
    "write_many": b"n" * SIZE,
    "append": b"o" * SIZE + b"n" * SIZE,
    "resize": b"o" * SIZE + bytes(SIZE),
    "punch_hole": bytes(SIZE),
}
#: Verbs whose threads are left behind, because they fill only a buffer of their own.
ABANDONED = ("read", "read_many", "chunks")
#: Verbs that may wait although no thread is free: their batch has begun, or they undo a lock.
WAITED_OUT = (
    "write",
    "write_many",
    "append",
    "flush",
    "flush_range",
    "locked",
    "resize",
    "punch_hole",
)

every_verb = pytest.mark.parametrize("name", VERBS)


class Attempt:
    """One verb in a task of its own, to be cancelled from outside.

    ``outcome`` is None while it runs, then "cancelled", or what the verb returned or raised.
    """

    def __init__(self, way, verb, *, early=False):
        self._way = way
        self._verb = verb
        self._early = early
        self._scope = anyio.CancelScope()
        self._task = None
        self.outcome = None

    def start_in(self, group):
        group.start_soon(self._run_scope if self._way == "scope" else self._run_native)
        return self

    def cancel(self):
        if self._way == "scope":
            self._scope.cancel()
        else:
            self._task.cancel()

    async def _run_scope(self):
        with self._scope:
            await self._run()

    async def _run_native(self):
        self._task = asyncio.create_task(self._run())
        await asyncio.wait([self._task])

    async def _run(self):
        if self._early:
            self.cancel()
        try:
            self.outcome = await self._verb() or "returned"
        except anyio.get_cancelled_exc_class():
            self.outcome = "cancelled"
            raise
        except Exception as error:
            self.outcome = error


class Gate:
    """Stops the threads of hops that begin while it is armed, until it opens."""

    def __init__(self):
        self.armed = False
        self.skip = 0  # hops to let pass first
        self.begun = threading.Event()
        self._open = threading.Event()

    def open(self):
        self.armed = False
        self._open.set()

    def wrap(self, function):
        if not self.armed:
            return function
        if self.skip:
            self.skip -= 1
            return function

        def held():
            self.begun.set()
            assert self._open.wait(100), "the test never opened the gate"
            return function()

        return held


@pytest.fixture
def gate(monkeypatch):
    """All hops go to workers; test_engine.py tests the engine."""
    made = Gate()
    monkeypatch.setattr(Workers, "_keep_engine", lambda _: None)
    start = Workers._start
    monkeypatch.setattr(
        Workers,
        "_start",
        lambda self, limiter, function, ended: start(self, limiter, made.wrap(function), ended),
    )
    yield made
    made.open()


@pytest.fixture
def path(tmp_path):
    """A file that is too large for any verb to work inline."""
    made = tmp_path / "file"
    made.write_bytes(b"o" * SIZE)
    return made


@contextmanager
def occupied(workers):
    """Let no hop and no read of the engine begin; yield a function that tells whether one waits."""
    limiters = workers.reads, workers.stores, workers.flushes, workers.control
    with held(workers, *limiters), engine_held(workers) as waiting:
        yield lambda: waiting() or any(limiter.queued for limiter in limiters)


async def settle():
    """Let the loop do everything that it can do without a thread."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def cancel_at_work(attempt, gate, *, times=1, left_behind=False):
    """Cancel a verb whose worker has begun, check that it waits (or not), and let it end."""
    await until(gate.begun.is_set)
    try:
        for _ in range(times):
            attempt.cancel()
            await settle()
            assert (attempt.outcome is not None) == left_behind
    finally:
        gate.open()
    await until(lambda: attempt.outcome)


def traces(path):
    """Count the descriptors and mappings of a file in this process."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the one that listed the folder
    with open("/proc/self/maps") as maps:
        mapped = [line for line in maps if str(path) in line]
    return links.count(str(path)), len(mapped)


async def check_usable(f, path):
    """Check that the file reads, writes, flushes and closes, whatever was cancelled before."""
    await f.write(SIZE - 5, b"after")
    assert (await f.read(0, SIZE))[-5:] == b"after"
    await f.flush()
    await f.aclose()
    assert traces(path) == (0, 0)


@every_verb
async def test_verb_cancelled_beforehand(path, way, name):
    """Verbs begin before they first wait, like inline ones, so the work may be under way."""
    buffer = bytearray(b"?" * SIZE)
    async with aiommap.open(path, "r+") as f:
        await f.write(0, b"o")
        async with anyio.create_task_group() as group:
            attempt = Attempt(way, lambda: VERBS[name](f, buffer), early=True).start_in(group)
        assert attempt.outcome == "cancelled"
        content, filled = path.read_bytes(), bytes(buffer)
        assert content in (b"o" * SIZE, RESULTS.get(name))
        assert filled in (b"?" * SIZE, b"o" * SIZE)
        await f.read(0, SIZE)  # by then no worker is at work
        assert (path.read_bytes(), buffer) == (content, filled)
        await check_usable(f, path)


@every_verb
async def test_verb_cancelled_in_the_queue(path, way, name):
    buffer = bytearray(b"?" * SIZE)
    async with aiommap.open(path, "r+") as f:
        await f.write(0, b"o")
        async with anyio.create_task_group() as group:
            with occupied(workers_of(f)) as queued:
                attempt = Attempt(way, lambda: VERBS[name](f, buffer)).start_in(group)
                await until(queued)
                attempt.cancel()
                await settle()
                withdrawn = attempt.outcome is not None
                assert withdrawn or name in WAITED_OUT
        assert attempt.outcome == "cancelled"
        landed = b"o" * SIZE if withdrawn else RESULTS.get(name, b"o" * SIZE)
        assert path.read_bytes() == landed
        assert buffer == b"?" * SIZE
        await check_usable(f, path)


@every_verb
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
async def test_verb_cancelled_at_work_is_waited_out(path, way, name, gate, times):
    buffer = bytearray(b"?" * SIZE)
    async with aiommap.open(path, "r+") as f:
        await f.write(0, b"o")
        async with anyio.create_task_group() as group:
            gate.armed = True
            attempt = Attempt(way, lambda: VERBS[name](f, buffer)).start_in(group)
            await cancel_at_work(attempt, gate, times=times, left_behind=name in ABANDONED)
        assert attempt.outcome == "cancelled"
        assert path.read_bytes() == RESULTS.get(name, b"o" * SIZE)
        assert buffer == (b"o" if name == "read_into" else b"?") * SIZE
        assert locked_memory() == "0"
        await check_usable(f, path)


async def test_read_into_cancelled_leaves_buffer_alone(path, way):
    """The buffer belongs to the caller again, and the caller may change or resize it."""
    async with aiommap.open(path) as f, anyio.create_task_group() as group:
        buffer = bytearray(b"?" * SIZE)
        with occupied(workers_of(f)) as queued:
            attempt = Attempt(way, lambda: f.read_into(0, buffer)).start_in(group)
            await until(queued)
            attempt.cancel()
            await until(lambda: attempt.outcome)
            buffer[:] = b"!" * SIZE
        await f.read(0, SIZE)  # through the same queue
        assert buffer == b"!" * SIZE


async def test_write_withdrawn_is_never_applied(path, way, gate):
    """It waits behind a batch at work, and its neighbours in the next batch are stored."""
    async with aiommap.open(path, "r+", capacity=4 * SIZE) as f:
        await f.resize(3 * SIZE)
        data = bytearray(b"2" * SIZE)
        async with anyio.create_task_group() as group:
            gate.armed = True
            group.start_soon(f.write, 0, b"1" * SIZE)
            await until(gate.begun.is_set)
            attempt = Attempt(way, lambda: f.write(SIZE, data)).start_in(group)
            group.start_soon(f.write, 2 * SIZE, b"3" * SIZE)
            await until(lambda: len(f._open.writer._queue.waiting()) == 2)
            attempt.cancel()
            await until(lambda: attempt.outcome)
            data[:] = b"x" * SIZE
            gate.open()
        assert attempt.outcome == "cancelled"
    assert path.read_bytes() == b"1" * SIZE + bytes(SIZE) + b"3" * SIZE


async def test_durable_write_cancelled_lands_whole(path, way, gate):
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        async with anyio.create_task_group() as group:
            gate.armed = True
            attempt = Attempt(way, lambda: f.write(0, b"n" * SIZE)).start_in(group)
            await cancel_at_work(attempt, gate)
        assert attempt.outcome == "cancelled"
        assert path.read_bytes() == b"n" * SIZE
        assert f.statistics().dirty_bytes == 0
        await check_usable(f, path)


async def test_receipt_settles_without_its_waiter(path, way, gate):
    async with aiommap.open(path, "r+") as f, anyio.create_task_group() as group:
        receipt = await f.write(0, b"n")
        gate.armed = True
        attempt = Attempt(way, receipt.wait_durable).start_in(group)
        assert not receipt.durable
        await cancel_at_work(attempt, gate)
        assert (attempt.outcome, receipt.durable) == ("cancelled", True)


async def test_locked_block_unlocks_whatever_happens(path, way):
    """The cancellation comes while the unlocking waits for a thread."""
    async with aiommap.open(path, "r+") as f, anyio.create_task_group() as group:

        async def block():
            async with f.locked():
                entered.set()
                await leave.wait()

        entered, leave = anyio.Event(), anyio.Event()
        attempt = Attempt(way, block).start_in(group)
        await entered.wait()
        assert locked_memory() != "0"
        with occupied(workers_of(f)) as queued:
            leave.set()
            await until(queued)
            attempt.cancel()
            await settle()
        await until(lambda: attempt.outcome)
        await f.advise(Advice.NORMAL)  # through the limiter that unlocks, so behind it
        assert locked_memory() == "0"


OPTIONS = {
    "everything": {"mode": "r+", "prewarm": True, "lock": True, "advice": Advice.NORMAL},
    "prewarmed": {"mode": "r+", "prewarm": True},
    "locked": {"mode": "r+", "lock": True},
    "advised": {"mode": "r+", "advice": Advice.RANDOM},
    "created": {"mode": "x+", "size": SIZE, "prewarm": True},
}


async def cancelled_open(way, gate, path, options, *, phase):
    """Open in a hub and cancel while a worker maps the file, or prepares what was mapped."""

    async def open_it():
        async with hub.open(path, **options):
            pytest.fail("it was cancelled")

    async with aiommap.Hub() as hub, anyio.create_task_group() as group:
        gate.skip = 0 if phase == "mapping" else 1
        gate.armed = True
        attempt = Attempt(way, open_it).start_in(group)
        await cancel_at_work(attempt, gate)
        assert attempt.outcome == "cancelled"
        # A worker gives back what the cancelled open had mapped, some time later.
        await until(lambda: traces(path) == (0, 0))
        assert locked_memory() == "0"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("phase", ["mapping", "preparing"])
async def test_open_cancelled_leaves_no_mapping(path, way, gate, options, phase):
    """Nor does it leave a descriptor or locked pages."""
    target = path.with_name("new") if options["mode"] == "x+" else path
    await cancelled_open(way, gate, target, options, phase=phase)
    assert path.read_bytes() == b"o" * SIZE


@pytest.mark.parametrize("phase", ["mapping", "preparing"])
async def test_open_cancelled_leaves_no_new_file(path, way, gate, phase):
    """The open is undone, so that the same call can be made again."""
    new = path.with_name("new")
    await cancelled_open(way, gate, new, OPTIONS["created"], phase=phase)
    assert not new.exists()


async def test_open_cancelled_in_queue_never_opens(path, way):
    async with aiommap.Hub() as hub, anyio.create_task_group() as group:
        with occupied(hub._running_workers()) as queued:
            group.start_soon(hub.open(path).__aenter__)
            await until(queued)
            attempt = Attempt(way, hub.open(path).__aenter__).start_in(group)
            await until(lambda: len(hub._opening.waiting()) == 1)
            attempt.cancel()
            await until(lambda: attempt.outcome)
            assert attempt.outcome == "cancelled"
        await until(lambda: hub._files)
        assert len(hub._files) == 1


async def test_close_cancelled_half_way_closes(path, way, gate):
    f = await aiommap.open(path, "r+")
    receipt = await f.write(0, b"n")
    async with anyio.create_task_group() as group:
        gate.armed = True
        attempt = Attempt(way, f.aclose).start_in(group)
        await cancel_at_work(attempt, gate, times=2)
        assert (attempt.outcome, f.closed) == ("cancelled", True)
        assert traces(path) == (0, 0)
    assert receipt.durable
    await f.aclose()


async def test_close_cancelled_beforehand_closes(path, way):
    f = await aiommap.open(path, "r+")
    receipt = await f.write(0, b"n")
    async with anyio.create_task_group() as group:
        attempt = Attempt(way, f.aclose, early=True).start_in(group)
    assert (attempt.outcome, f.closed, receipt.durable) == ("cancelled", True, True)
    assert traces(path) == (0, 0)


async def test_block_left_by_cancellation_closes(path, way):
    async def block():
        async with aiommap.open(path, "r+") as f:
            await f.write(0, b"n")
            entered.set()
            await anyio.sleep_forever()

    entered = anyio.Event()
    async with anyio.create_task_group() as group:
        attempt = Attempt(way, block).start_in(group)
        await entered.wait()
        attempt.cancel()
    assert attempt.outcome == "cancelled"
    assert traces(path) == (0, 0)


async def test_hub_cancelled_waits_for_every_file(path, way, monkeypatch):
    """The first file is released while the second one is still being flushed."""
    flushing, gates = Writeback._flush, {}

    def held(self, requests):
        begun, leave = gates[core_of(self).path]
        begun.set()
        assert leave.wait(100), "the test never opened the gate"
        return flushing(self, requests)

    monkeypatch.setattr(Writeback, "_flush", held)
    monkeypatch.setattr(Workers, "_keep_engine", lambda _: None)
    hub = aiommap.Hub()
    for name in ("first", "second"):
        made = path.with_name(name)
        made.write_bytes(b"o" * PAGE)
        gates[str(made)] = threading.Event(), threading.Event()
        file = await hub.open(made, "r+")
        await file.write(0, b"n")
    (first, leave_first), (second, leave_second) = gates.values()
    async with anyio.create_task_group() as group:
        attempt = Attempt(way, hub.aclose).start_in(group)
        await until(lambda: first.is_set() and second.is_set())
        attempt.cancel()
        leave_first.set()
        await until(lambda: traces(path.with_name("first")) == (0, 0))
        await settle()
        ended_early = attempt.outcome is not None
        leave_second.set()
    assert not ended_early
    assert traces(path.with_name("second")) == (0, 0)
