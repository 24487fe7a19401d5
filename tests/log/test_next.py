"""The awaitable of ``__anext__``: it takes a record when it is awaited, and not before."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Coroutine

import anyio
import anyio.lowlevel
import pytest

from aiommap import Log, LogRecord
from tests.support.logs import flip, places, script, segment_path

pytestmark = pytest.mark.anyio

ITEMS = [b"%d" % i for i in range(1, 6)]


@pytest.fixture
async def log(folder):
    async with Log.open(folder) as log:
        await log.append_many(ITEMS)
        yield log


@pytest.fixture
async def records(log):
    """A reading that has returned one record, and has more granted."""
    reading = log.tail()
    assert (await anext(reading)).sequence == 1
    yield reading
    await reading.aclose()


async def test_taken_when_awaited(records):
    waiting = anext(records)
    assert isinstance(waiting, Awaitable)
    assert isinstance(waiting, Coroutine)
    assert (await anext(records)).sequence == 2
    assert (await waiting).sequence == 3


async def test_awaited_only_once(records):
    waiting = anext(records)
    assert (await waiting).sequence == 2
    with pytest.raises(RuntimeError, match="awaited before: ask for another"):
        await waiting
    with pytest.raises(RuntimeError, match="awaited before"):
        waiting.send(None)
    with pytest.raises(RuntimeError, match="awaited before"):
        waiting.throw(ValueError)
    waiting.close()
    assert (await anext(records)).sequence == 3


async def test_dropped_unawaited_skips_nothing(records):
    anext(records)
    anext(records).close()
    with pytest.raises(ValueError, match="thrown"):
        anext(records).throw(ValueError("thrown"))
    closed = anext(records)
    closed.close()
    with pytest.raises(RuntimeError, match="awaited before"):
        await closed
    assert (await anext(records)).sequence == 2


async def test_driven_by_hand(records):
    for sequence, step in enumerate((next, lambda waiting: waiting.send(None)), 2):
        with pytest.raises(StopIteration) as caught:
            step(anext(records))
        assert caught.value.value.sequence == sequence
    default = anext(records, None)
    assert (await default).sequence == 4


async def test_waits_where_all_was_taken(log, records):
    """An awaitable that was made while records were granted, and is awaited when none is left."""
    later = [anext(records) for _ in range(6)]
    assert [(await waiting).sequence for waiting in later[:4]] == [2, 3, 4, 5]
    found, begun = [], anyio.Event()

    async def follow():
        begun.set()
        found.append(await later[4])

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await begun.wait()
        with pytest.raises(anyio.BusyResourceError):
            await later[5]
        with pytest.raises(RuntimeError, match="awaited already"):
            await later[4]
        assert found == []
        await log.append(b"6")
    assert found[0].data == b"6"


async def test_cancelled_while_it_waits(log, records):
    later = [anext(records) for _ in range(6)]
    for waiting in later[:4]:
        await waiting
    with anyio.move_on_after(0.02) as scope:
        await later[4]
    assert scope.cancelled_caught
    with pytest.raises(RuntimeError, match="awaited before"):
        await later[4]
    await log.append(b"6")
    assert (await later[5]).data == b"6"


async def test_closed_in_between(records):
    waiting = anext(records)
    await records.aclose()
    with pytest.raises(StopAsyncIteration):
        await waiting


@pytest.mark.damaged
async def test_damage_behind_granted_records(log, folder):
    records = log.read()
    flip(segment_path(folder), places(ITEMS)[2] + 8)
    assert [(await anext(records)).data for _ in range(2)] == ITEMS[:2]
    with pytest.raises(Exception, match="record 3 at byte"):
        await anext(records)
    with pytest.raises(StopAsyncIteration):
        await anext(records)


async def test_nothing_is_left_behind(log):
    """Awaitables keep no reading alive, whether they were awaited or not."""
    for awaited in (0, 1, 2):
        records = log.read()
        await anext(records)
        for _ in range(awaited):
            await anext(records)
        waiting = anext(records)
        alive = weakref.ref(records)
        del records, waiting
        assert alive() is None
    assert log.statistics().held_segments == 0


async def test_as_a_task(records, anyio_backend_name):
    """A task that is cancelled before its first step has taken no record."""
    if anyio_backend_name != "asyncio":
        return
    cancelled, task = (asyncio.create_task(anext(records)) for _ in range(2))
    cancelled.cancel()
    assert (await task).sequence == 2
    assert cancelled.cancelled()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(records), 0)
    assert (await asyncio.wait_for(anext(records), 9)).sequence == 3


DROPPED = """
import asyncio, sys
from aiommap import Log, LogRecord

async def main():
    async with Log.open(sys.argv[1]) as log:
        waiting = log.tail().__anext__()
        waiting.send(None)
        return waiting

waiting = asyncio.run(main())
del waiting
print("dropped")
"""


def test_dropped_after_its_loop_has_ended(tmp_path):
    child = script(DROPPED, tmp_path / "log")
    assert (child.stdout, child.stderr) == ("dropped\n", "")


def test_record_is_made_and_kept():
    record = LogRecord(5, b"data", 2)
    assert (record.sequence, record.data, record.life) == (5, b"data", 2)
    with pytest.raises(AttributeError):
        record.data = b""
