"""Adjoining stores of tasks that woke together are applied as one, with the same promises.

On trio, where a switch of tasks costs much, no store is gathered; the promises are the same.
"""

from __future__ import annotations

import asyncio
import os

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.internals import core_of, workers_of
from tests.support.limiters import held
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

TASKS = 8
RECORD = 100
#: The end of the bytes that the tasks write before they wake together.
END = (TASKS + 1) * RECORD


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * PAGE))
    return path


async def wake_together(f, acts):
    """Call each function in a task of its own, in the turn in which one flush wakes all tasks."""
    workers = workers_of(f)
    begun = waiting = 0

    async def run(act):
        nonlocal begun, waiting
        begun += 1
        receipt = await f.write((begun - 1) * RECORD, b"p" * RECORD)
        waiting += 1
        await receipt.wait_durable()
        if act is not None:
            await act()

    async with anyio.create_task_group() as group:
        with held(workers, workers.flushes):
            group.start_soon(run, None)  # its flush is in flight; the others wait for the next one
            await until(lambda: workers.flushes.queued)
            for act in acts:
                group.start_soon(run, act)
            await until(lambda: waiting == len(acts) + 1)


class Writes:
    """Writes of tasks that woke together, in the order in which they were submitted."""

    def __init__(self, f):
        self.f = f
        self.mapping = core_of(f).mapping
        self.gathered = []
        self.receipts = []

    async def write(self, offset, data):
        self.gathered.append(self.mapping.gathered)
        self.receipts.append(None)
        at = len(self.receipts) - 1
        self.receipts[at] = await self.f.write(offset, data)


def expected_gathered(anyio_backend, count=TASKS):
    """Return how many stores are gathered when each of them is submitted."""
    return [*range(count)] if anyio_backend[0] == "asyncio" else [0] * count


async def test_gathered_stores_are_seen_when_write_returns(path, anyio_backend):
    fd = os.open(path, os.O_RDONLY)
    async with aiommap.open(path, "r+") as f:
        writes = Writes(f)

        async def act():
            at = END + len(writes.receipts) * RECORD
            data = bytes([65 + len(writes.receipts)]) * RECORD
            await writes.write(at, data)
            assert os.pread(fd, RECORD, at) == data
            assert f.read_nowait(at, RECORD) == data

        view = f.view(END, RECORD).memory
        before = f.statistics().inline_writes
        await wake_together(f, [act] * TASKS)
        assert writes.gathered == expected_gathered(anyio_backend)
        assert f.statistics().inline_writes == before + 2 * TASKS + 1
        numbers = [receipt.sequence for receipt in writes.receipts]
        assert numbers == [*range(TASKS + 2, 2 * TASKS + 2)]
        assert bytes(view) == b"A" * RECORD
        assert not any(receipt.durable for receipt in writes.receipts)
        await writes.receipts[0].wait_durable()
        assert writes.receipts[0].durable
        view.release()
    os.close(fd)


async def test_round_after_round(path, anyio_backend):
    """In each round the tasks of the round before wake together."""
    async with aiommap.open(path, "r+") as f:
        writes = Writes(f)

        async def act():
            for _ in range(4):
                await writes.write(END + len(writes.receipts) * RECORD, b"x" * RECORD)
                await writes.receipts[-1].wait_durable() if writes.receipts[-1] else None
                await f.flush()

        await wake_together(f, [act] * TASKS)
        assert path.read_bytes()[END : END + 4 * TASKS * RECORD] == b"x" * (4 * TASKS * RECORD)


@pytest.mark.parametrize("record", [1, 100, PAGE, 40_000])
async def test_later_store_to_the_same_bytes_wins(path, record):
    """I9: stores are applied in the order of submission, however they overlap."""
    async with aiommap.open(path, "r+") as f:
        model = bytearray(path.read_bytes())
        model[:END] = b"p" * END
        count = 0

        async def act():
            nonlocal count
            at, data = END + count * (record // 2), bytes([65 + count]) * record
            model[at : at + record] = data
            count += 1
            await f.write(at, data)

        await wake_together(f, [act] * TASKS)
        assert path.read_bytes() == model


async def write_many(f, at, data):
    await f.write_many([(at, data)])


async def write_view(f, at, data):
    await f.view(at, len(data)).write(0, data)


async def write_large(f, at, data):
    await f.write(at, data + bytes(70_000))


async def write_always(f, at, data):
    f.flush_policy = FlushPolicy.always()
    await f.write(at, data)


async def write_offloaded(f, at, data):
    """Inline verbs decline, as while a fault is injected."""
    core_of(f).mapping.declining = True
    await f.write(at, data)


OTHERS = (write_many, write_view, write_large, write_always, write_offloaded)


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
@pytest.mark.parametrize("place", [0, 3, TASKS - 1], ids=str)
async def test_other_verbs_keep_the_order(path, other, place):
    """I9, gather.2: the order holds whichever way each store takes."""
    async with aiommap.open(path, "r+") as f:
        submitted = []

        async def act():
            data = bytes([65 + len(submitted)]) * RECORD
            verb = other if len(submitted) == place else write
            submitted.append(data)
            await verb(f, END, data)

        async def write(f, at, data):
            await f.write(at, data)

        await wake_together(f, [act] * TASKS)
        core_of(f).mapping.declining = False
        assert await f.read(END, RECORD) == submitted[-1]


async def test_a_word_waits_for_no_gathered_store(path, anyio_backend):
    """A word whose bytes have a gathered store raises BusyResourceError."""
    async with aiommap.open(path, "r+") as f:
        word, other = f.atomic_u64(2048), f.atomic_u64(4096)
        tries = []

        async def act():
            tries.append(None)
            if len(tries) < TASKS:
                await f.write(2048, bytes([len(tries)]) * 8)
                return
            assert other.fetch_add(1) == 0
            if anyio_backend[0] == "asyncio":
                with pytest.raises(anyio.BusyResourceError, match="has not reached yet"):
                    word.store(1)

        await wake_together(f, [act] * TASKS)
        assert word.load() == int.from_bytes(bytes([TASKS - 1]) * 8, "little")


class Cancellable:
    """Writes of tasks that woke together; the last task cancels some before it writes."""

    def __init__(self, f, way, *, late):
        self.f = f
        self.way = way
        self.late = late
        self.cancels = []
        self.outcomes = {}

    async def act(self):
        number = len(self.cancels)
        with anyio.CancelScope() as scope:
            task = asyncio.current_task() if self.way == "native" else None
            self.cancels.append(scope.cancel if task is None else task.cancel)
            if number == TASKS - 1:
                # If late, gathered stores cannot be stored inline, and have to be queued.
                core_of(self.f).mapping.declining = self.late
                self.cancels[0]()
                self.cancels[3]()
            await self.write(number)

    async def write(self, number):
        try:
            await self.f.write(END + number * RECORD, record(number))
        except anyio.get_cancelled_exc_class():
            self.outcomes[number] = "cancelled"
            if self.way == "scope":
                raise
        else:
            self.outcomes[number] = "returned"


def record(number):
    return bytes([65 + number]) * RECORD


@pytest.mark.parametrize("way", ["scope", "native"])
@pytest.mark.parametrize("late", [False, True], ids=["gathered", "queued"])
async def test_cancelled_store_is_whole_or_never_applied(path, anyio_backend, way, late):
    """I8, gather.3: and the stores of other tasks are applied."""
    if way == "native" and anyio_backend[0] != "asyncio":
        pytest.skip("only asyncio cancels a task by itself")
    async with aiommap.open(path, "r+") as f:
        made = Cancellable(f, way, late=late)
        await wake_together(f, [made.act] * TASKS)
        core_of(f).mapping.declining = False
        found = {n: await f.read(END + n * RECORD, RECORD) for n in range(TASKS)}
        for number, outcome in made.outcomes.items():
            assert found[number] in (record(number), bytes(RECORD))
            assert outcome == "cancelled" or found[number] == record(number)
        assert [*made.outcomes.values()].count("returned") >= TASKS - 2
        if anyio_backend[0] == "asyncio":
            assert made.outcomes[0] == made.outcomes[3] == "cancelled"
            if not late:  # task 0 goes on first, before anything was stored
                assert found[0] == bytes(RECORD)


async def test_closing_stores_what_is_gathered(path):
    """Stores that were submitted before the close are applied and flushed."""
    f = await aiommap.open(path, "r+")
    submitted = []

    async def act():
        submitted.append(None)
        if len(submitted) == TASKS:
            await f.aclose()
        else:
            await f.write(END + len(submitted) * RECORD, b"c" * RECORD)

    await wake_together(f, [act] * TASKS)
    start = END + RECORD
    assert path.read_bytes()[start : start + 7 * RECORD] == b"c" * (7 * RECORD)
    assert not core_of(f).mapping.gathered


@pytest.mark.parametrize("size", [2 * PAGE, 128 * PAGE], ids=["shorter", "longer"])
async def test_resizing_comes_after_what_is_gathered(path, size):
    async with aiommap.open(path, "r+", capacity=256 * PAGE) as f:
        submitted = []

        async def act():
            submitted.append(None)
            if len(submitted) == TASKS:
                await f.resize(size)
            else:
                await f.write(8 * PAGE + len(submitted) * RECORD, b"r" * RECORD)

        await wake_together(f, [act] * TASKS)
        assert path.stat().st_size == f.size == size
        await f.resize(16 * PAGE)
        kept = b"r" * RECORD if size > 8 * PAGE else bytes(RECORD)
        assert await f.read(8 * PAGE + RECORD, RECORD) == kept


async def test_reopening_leaves_no_gathered_store_behind(path):
    async with aiommap.open(path, "r+") as f:
        submitted = []

        async def act():
            submitted.append(None)
            if len(submitted) == TASKS:
                os.replace(other, path)
                await f.reopen()
            else:
                await f.write(END + len(submitted) * RECORD, b"r" * RECORD)

        other = path.with_name("other")
        other.write_bytes(bytes(64 * PAGE))
        kept = path.with_name("kept")
        os.link(path, kept)
        await wake_together(f, [act] * TASKS)
        start = END + RECORD
        assert kept.read_bytes()[start : start + 7 * RECORD] == b"r" * (7 * RECORD)


async def test_file_that_others_cut_is_not_made_longer(path):
    """Stores that cannot be applied inline take the slow way, which raises the reason."""
    async with aiommap.open(path, "r+") as f:
        submitted, errors = [], []

        async def act():
            submitted.append(None)
            if len(submitted) == TASKS:
                os.truncate(path, 4 * PAGE)
                return
            try:
                await f.write(8 * PAGE + len(submitted) * RECORD, b"t" * RECORD)
            except aiommap.MappingFaultError as error:
                errors.append(error)

        await wake_together(f, [act] * TASKS)
        assert path.stat().st_size == 4 * PAGE
        os.truncate(path, 64 * PAGE)
        assert path.read_bytes()[8 * PAGE :] == bytes(56 * PAGE)
        core_of(f).unsynced.failure = None
        f.flush_policy = FlushPolicy.never()


async def test_failed_flush_reaches_gathered_stores(path):
    """I5: nothing is stored after a flush has failed."""
    submitted, errors = [], []
    with pytest.raises(aiommap.FlushError, match="injected"):
        await fail_together(path, submitted, errors)
    stored = path.read_bytes()[END : END + TASKS * RECORD].count(b"t") // RECORD
    assert len(errors) + stored == TASKS - 1


async def fail_together(path, submitted, errors):
    async with aiommap.open(path, "r+") as f:

        async def act():
            submitted.append(None)
            if len(submitted) == TASKS:
                core_of(f).unsynced.latch(aiommap.FlushError(str(path), "injected", ()))
                core_of(f).route.choose()
                return
            try:
                await f.write(END + len(submitted) * RECORD, b"t" * RECORD)
            except aiommap.FlushError as error:
                errors.append(error)

        await wake_together(f, [act] * TASKS)


async def test_buffers_are_let_go(path):
    """The caller's memory is exported until the write has ended, and no longer."""
    async with aiommap.open(path, "r+") as f:
        buffers = []

        async def act():
            data = bytearray(b"b" * RECORD)
            buffers.append(data)
            await f.write(END + len(buffers) * RECORD, data)
            data.extend(b"more")

        await wake_together(f, [act] * TASKS)
        start = END + RECORD
        assert path.read_bytes()[start : start + TASKS * RECORD] == b"b" * (TASKS * RECORD)


async def test_records_at_random_are_stored_at_once(path):
    """Gathering gains nothing for records that do not adjoin."""
    async with aiommap.open(path, "r+") as f:
        writes = Writes(f)

        async def act():
            for _ in range(3):
                place = (len(writes.receipts) * 7 + 9) % 60
                await writes.write(place * PAGE, b"x" * RECORD)
                await f.flush()
            await (await f.write(PAGE, b"x")).wait_durable()

        await wake_together(f, [act] * TASKS)
        writes.gathered.clear()
        await wake_random(f, writes)
        assert writes.gathered == [0] * TASKS


async def wake_random(f, writes):
    """Do as ``wake_together``, but with records at random places."""
    workers = workers_of(f)
    waiting = 0

    async def run(place):
        nonlocal waiting
        receipt = await f.write(place * PAGE, b"x" * RECORD)
        waiting += 1
        await receipt.wait_durable()
        await writes.write(place * PAGE, b"y" * RECORD)

    async with anyio.create_task_group() as group:
        with held(workers, workers.flushes):
            group.start_soon(f.flush)
            for i in range(TASKS):
                group.start_soon(run, i * 5 % 61)
            await until(lambda: waiting == TASKS)
