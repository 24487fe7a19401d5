"""Appending: numbers, receipts, policies, sizes, closing; on every event loop."""

from __future__ import annotations

import os
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiommap
from aiommap import FlushPolicy, Log
from tests.support.internals import log_appender, time_slice_renew
from tests.support.logs import (
    ALWAYS,
    BIG,
    SEGMENT,
    contents,
    make,
    pure_records,
    reopened,
    segments,
)
from tests.support.scripts import expect_alive
from tests.support.waiting import until

LARGEST = SEGMENT - 4096 - 56
pytestmark = pytest.mark.anyio

POLICIES = {
    "manual": FlushPolicy.manual(),
    "never": FlushPolicy.never(),
    "always": FlushPolicy.always(),
    "bytes": FlushPolicy.every_bytes(1000),
    "writes": FlushPolicy.every_writes(3),
    "interval": FlushPolicy.every_interval(0.005),
    "dirty": FlushPolicy.max_dirty(5000),
    "combined": FlushPolicy.every_writes(7) | FlushPolicy.max_dirty(9000),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
async def test_append_from_many_tasks_numbers_in_order(folder, policy):
    got = {}

    async def appender(name):
        for i in range(20):
            data = b"%d %d" % (name, i) + bytes(name * 97)
            receipt = await log.append(data)
            assert receipt.count == 1
            got[receipt.sequence] = data

    async with Log.open(folder, segment_size=SEGMENT, flush=policy) as log:
        assert (log.first, log.last, log.durable) == (1, 0, 0)
        async with anyio.create_task_group() as group:
            for name in range(16):
                group.start_soon(appender, name)
        assert sorted(got) == list(range(1, 321))
        assert await contents(log) == [got[n] for n in range(1, 321)]
        assert (log.first, log.last) == (1, 320)
    assert await reopened(folder) == [got[n] for n in range(1, 321)]
    assert [data for _, _, data in pure_records(folder)] == [got[n] for n in range(1, 321)]


async def test_append_under_always_is_durable(folder):
    async with Log.open(folder, flush=ALWAYS) as log:
        receipt = await log.append(b"x")
        assert receipt.durable
        assert log.durable == receipt.sequence == 1


async def test_append_under_manual_waits_for_no_flush(folder):
    async with Log.open(folder) as log:
        receipt = await log.append(b"x")
        assert not receipt.durable
        before = log.statistics().flushes
        await receipt.wait_durable()
        assert receipt.durable
        await receipt.wait_durable()
        assert log.statistics().flushes == before + 1


@pytest.mark.parametrize("name", ["bytes", "writes", "interval"])
async def test_policy_flushes_unasked(folder, name):
    async with Log.open(folder, flush=POLICIES[name]) as log:
        receipts = [await log.append(bytes(400)) for _ in range(3)]
        await until(lambda: receipts[-1].durable)


async def test_max_dirty_bounds_what_is_dirty(folder):
    async with Log.open(folder, flush=FlushPolicy.max_dirty(4000)) as log:
        for i in range(50):
            await log.append(bytes(900))
            assert (log.last - log.durable) * 924 <= 4000, i


async def test_never_flushes_at_no_roll_and_no_close(folder):
    async with Log.open(folder, flush=FlushPolicy.never(), segment_size=SEGMENT) as log:
        for _ in range(30):
            await log.append(bytes(BIG))
        assert log.statistics().rolls >= 3
        assert log.statistics().flushes == 0
        await log.flush()  # an explicit flush covers earlier segments, too
        assert log.durable == 30
    assert len(await reopened(folder)) == 30


async def test_concurrent_appends_share_flushes(folder):
    async with Log.open(folder, flush=ALWAYS) as log:
        async with anyio.create_task_group() as group:
            for i in range(64):
                group.start_soon(log.append, b"%d" % i)
        assert log.statistics().flushes <= 3
        assert log.statistics().flush_group > 20


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 4096, LARGEST - 1, LARGEST])
async def test_append_of_any_length(folder, length):
    data = bytes(range(256)) * (length // 256 + 1)
    async with Log.open(folder, segment_size=SEGMENT) as log:
        for _ in range(3):
            await log.append(data[:length])
        assert await contents(log) == [data[:length]] * 3
    assert await reopened(folder) == [data[:length]] * 3
    assert [each for _, _, each in pure_records(folder)] == [data[:length]] * 3


async def test_append_too_large_is_refused(folder):
    async with Log.open(folder, segment_size=SEGMENT) as log:
        with pytest.raises(ValueError, match=f"at most {LARGEST} do"):
            await log.append(bytes(LARGEST + 1))
        with pytest.raises(ValueError, match=f"a record of {LARGEST + 1} bytes"):
            await log.append_many([b"x", bytes(LARGEST + 1)])
        assert log.last == 0


async def test_large_records_go_round(folder):
    data = bytes(range(256)) * (3 << 12)
    async with Log.open(folder, segment_size=16 << 20) as log:
        await log.append(data)
        await log.append(memoryview(data)[1:])
        assert await contents(log) == [data, data[1:]]


@pytest.mark.parametrize("spare", [0, 8, 16, 24, 32], ids=str)
async def test_end_frame_at_the_boundary(folder, spare):
    """The END frame lies at the very end of the segment, or ``spare`` bytes before it."""
    room = SEGMENT - 4096 - 24 - spare
    async with Log.open(folder, segment_size=SEGMENT) as log:
        await log.append(bytes(room - 1000 - 24))
        await log.append(bytes(1000 - 24))
        await log.append(b"next")
        assert [len(each) for each in await contents(log)] == [room - 1024, 976, 4]
    assert len(await reopened(folder)) == 3
    assert len(pure_records(folder)) == 3


@pytest.mark.parametrize(
    "data", [bytearray(b"ab"), memoryview(b"ab")], ids=["bytearray", "memoryview"]
)
async def test_append_takes_buffers(folder, data):
    async with Log.open(folder) as log:
        await log.append(data)
        assert await contents(log) == [bytes(data)]


@pytest.mark.parametrize("data", ["text", 5, None], ids=str)
async def test_append_refuses_what_is_no_buffer(folder, data):
    async with Log.open(folder) as log:
        with pytest.raises(TypeError, match="not bytes or another buffer"):
            await log.append(data)
        assert log.last == 0


async def test_append_many_gives_one_receipt(folder):
    async with Log.open(folder) as log:
        await log.append(b"0")
        receipt = await log.append_many([b"1", b"2", b"3"])
        assert (receipt.sequence, receipt.count) == (4, 3)
        assert repr(receipt) == "<LogReceipt 2 to 4: not known to be durable>"
        await receipt.wait_durable()
        assert await contents(log) == [b"0", b"1", b"2", b"3"]
        with pytest.raises(ValueError, match="no records"):
            await log.append_many([])
        with pytest.raises(TypeError, match=r"items is None: give the data of records, such as"):
            await log.append_many(None)


async def test_append_many_stays_together(folder):
    """A roll does not divide records that fit into one segment."""
    async with Log.open(folder, segment_size=SEGMENT) as log:
        await log.append(bytes(40_000))
        await log.append_many([bytes(10_000)] * 4)
        assert log.last == 5
        assert [path.name for path in segments(folder)] == [
            "00000000000000000001.log",
            "00000000000000000002.log",
        ]
        await log.append_many([bytes(10_000)] * 40)  # more than a segment
        assert log.last == 45
        assert len(await contents(log)) == 45


async def test_cancelled_append_leaves_no_hole(folder):
    async with Log.open(folder, flush=ALWAYS) as log:
        scopes = []

        async def appender(i):
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await log.append(b"%d" % i)

        async with anyio.create_task_group() as group:
            for i in range(20):
                group.start_soon(appender, i)
            while len(scopes) < 20:
                await anyio.lowlevel.checkpoint()
            for scope in scopes[::2]:
                scope.cancel()
        await log.append(b"last")
        found = [record async for record in log.read()]
        assert [record.sequence for record in found] == list(range(1, len(found) + 1))
        assert found[-1].data == b"last"
        assert len(found) >= 11


async def test_inline_writes_off_keeps_stores_in_workers(folder):
    async with Log.open(folder, inline_writes=False) as log:
        await log.append(b"x")
        found = log.statistics()
        assert (found.inline_appends, found.batches, found.write_path) == (0, 1, "worker")
    async with Log.open(folder) as log:
        await log.append(b"x")
        found = log.statistics()
        assert (found.inline_appends, found.batches, found.write_path) == (1, 0, "inline")


@pytest.mark.parametrize("verb", ["append_many", "flush", "start_writeback", "discard"])
async def test_nothing_is_stored_inline_beside_a_batch(folder, verb, anyio_backend_name):
    """Also if earlier appends were, and found nothing in the way."""
    if anyio_backend_name == "trio":
        pytest.skip("trio starts tasks in any order")
    arguments = {"append_many": ([b"2", b"3"],), "discard": (1,)}.get(verb, ())

    async def append():
        time_slice_renew(0)
        await log.append(b"4")

    async with Log.open(folder) as log:
        for _ in range(3):
            await log.append(b"1")
        batch = getattr(log, verb)(*arguments)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: batch)
            group.start_soon(append)  # in the same turn of the loop
        assert log.statistics().inline_appends == 3
        expected = [b"1"] * 3 + [b"2", b"3"] * (verb == "append_many") + [b"4"]
        assert await contents(log) == expected
        await log.append(b"5")
        assert log.statistics().inline_appends == 4


async def test_granted_appends_prepare_the_next_segment(folder):
    async with Log.open(folder, segment_size=1 << 16) as log:
        for _ in range(40):
            await log.append(bytes(1000))
        await until(lambda: log.statistics().standby_ready)
        for _ in range(25):
            await log.append(bytes(1000))
        assert log.statistics().rolls == 1
        assert await contents(log) == [bytes(1000)] * 65


async def test_closed_log_refuses(folder):
    async with Log.open(folder) as log:
        receipt = await log.append(b"x")
    assert log.closed
    assert receipt.durable
    for verb in (log.append(b"y"), log.append_many([b"y"]), log.flush(), log.discard(1)):
        with pytest.raises(anyio.ClosedResourceError, match="is closed"):
            await verb
    with pytest.raises(anyio.ClosedResourceError, match="is closed"):
        log.read()
    await log.aclose()


async def test_closed_log_holds_nothing(folder):
    """Neither a descriptor nor a mapping, which would keep the file system mounted."""
    log = await Log.open(folder)
    await log.append(b"x")
    async for _ in log.read():
        pass
    middle = log.read()
    await anext(middle)
    await log.aclose()
    with open("/proc/self/maps") as lines:
        assert [line for line in lines if str(folder) in line] == []
    assert open_below(folder) == []


async def test_closing_takes_the_segment_of_a_tail_that_waits(folder):
    """It does so before the task has a turn; the words stay mapped until their thread wakes up."""
    log = await Log.open(folder)
    await log.append(b"x")
    tail = log.tail()
    await anext(tail)

    async def follow():
        with pytest.raises(anyio.ClosedResourceError):
            await anext(tail)

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        assert [name for name in open_below(folder) if name.endswith(".log")]
        await log.aclose()
        assert not [name for name in open_below(folder) if name.endswith(".log")]
        await until(lambda: not open_below(folder))


@pytest.mark.parametrize("waits_for", ["its turn", "a worker"])
async def test_closing_waits_for_no_task(folder, waits_for, anyio_backend_name):
    """Closing waits for the worker alone; a task that goes on later finds the log closed."""
    if anyio_backend_name == "trio":
        pytest.skip("trio wakes tasks only, and here a coroutine is driven by hand")
    log = await Log.open(folder)
    await log.append(b"x")
    step = log.read(1).__anext__().__await__()
    while next(step) is None and waits_for == "a worker":
        pass  # it gives way first if its time slice is spent
    await log.aclose()
    assert open_below(folder) == []
    with pytest.raises(anyio.ClosedResourceError):
        next(step)


def open_below(folder):
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    names = [os.readlink(link) for link in links if os.path.islink(link)]
    return [name for name in names if str(folder) in name]


async def test_reader_refuses_to_write(folder):
    await make(folder, b"x")
    async with Log.open(folder, "r") as log:
        for verb in (log.append(b"y"), log.append_many([b"y"]), log.flush(), log.discard(1)):
            with pytest.raises(aiommap.AccessModeError, match='open the log with mode "a"'):
                await verb
        assert log.statistics().write_path == "none"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "w"}, 'with "a" to append or "r" to read'),
        ({"segment_size": 65535}, "give 65536 to 2147483648"),
        ({"segment_size": (2 << 30) + 1}, "give 65536 to 2147483648"),
        ({"retain_bytes": 0}, "at least 1"),
    ],
    ids=str,
)
async def test_options_that_cannot_be_meant(folder, options, match):
    with pytest.raises(ValueError, match=match):
        Log.open(folder, **options)
    with pytest.raises(TypeError, match="FlushPolicy"):
        Log.open(folder, flush="always")
    assert not folder.exists()


@pytest.mark.parametrize("waiting", [0, 2], ids=["idle", "busy"])
async def test_append_in_another_thread(folder, waiting):
    """An append in another thread raises, whether it would be inline or would join the queue."""
    async with Log.open(folder, flush=ALWAYS if waiting else FlushPolicy.manual()) as log:
        await log.append(b"1")

        def elsewhere():
            coroutine = log.append(b"2")
            with pytest.raises(RuntimeError, match="a thread that runs no event loop"):
                coroutine.send(None)
            told.append(1)

        async def start_and_join():  # in the same turn of the loop as the appends
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()

        told = []
        async with anyio.create_task_group() as group:
            for _ in range(waiting):
                group.start_soon(log.append, b"1")
            group.start_soon(start_and_join)
        assert told == [1]
        assert await contents(log) == [b"1"] * (1 + waiting)


async def test_start_writeback_flushes_nothing(folder):
    async with Log.open(folder) as log:
        receipt = await log.append(b"x")
        await log.start_writeback()
        assert not receipt.durable


async def test_flush_of_nothing_makes_no_hop(folder):
    async with Log.open(folder) as log:
        before = log.statistics().batches
        await log.flush()
        assert log.statistics().batches == before


async def test_rolls_use_a_standby(folder):
    async with Log.open(folder, segment_size=SEGMENT) as log:
        await log.append(bytes(50_000))
        await until(lambda: log.statistics().standby_ready)
        # This record does not fit; it fills less than half of the next segment.
        await log.append(bytes(20_000))
        found = log.statistics()
        assert (found.rolls, found.segments, found.standby_ready) == (1, 2, False)
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000000000000000001.log",
        "00000000000000000002.log",
        "control",
    ]


async def test_record_and_repr(folder):
    async with Log.open(folder) as log:
        await log.append(b"xyz")
        (record,) = [record async for record in log.read()]
        assert (record.sequence, record.data, record.life) == (1, b"xyz", 1)
        assert repr(record) == "<LogRecord 1: 3 bytes>"
        assert repr(log).endswith('mode "a": records 1 to 1>')
        with pytest.raises(AttributeError):
            record.sequence = 5
    assert repr(log).endswith('mode "a": closed>')


def test_halves_share_commits_where_that_pays():
    """It pays if waking the other half takes as long as a commit, and enough records share one."""
    together = log_appender.most_together
    assert together(256, 0.0003) == 128
    assert together(257, 0.0003) == 129
    assert together(256, 0.0006) > 256  # a slow device is asked once for all of them
    assert together(100, 0.00001) > 100  # few records are not worth a commit of their own


async def test_appends_share_commits_by_halves(folder, monkeypatch):
    monkeypatch.setattr(log_appender, "SHARED_AT_LEAST", 1)
    monkeypatch.setattr(log_appender, "WOKEN_A_SECOND", 0)  # as if commits took no time
    told = {}

    async def append(task):
        for i in range(10):
            receipt = await log.append(b"%d %d" % (task, i))
            assert receipt.durable
            told[receipt.sequence] = b"%d %d" % (task, i)

    async with Log.open(folder, segment_size=SEGMENT, flush=ALWAYS) as log:
        async with anyio.create_task_group() as group:
            for task in range(20):
                group.start_soon(append, task)
        assert log.statistics().batches >= 18  # not 11, as if all twenty shared each
        assert [told[number] for number in range(1, 201)] == await contents(log)


CANCELLED = """
async def main():
    gc.disable()
    log = await aiommap.Log.open(os.path.join(path, "log"), flush=aiommap.FlushPolicy.always())

    async def append():
        data = memoryview(bytearray(5))
        try:
            await log.append(data)
        except BaseException as error:
            kept = error  # a cycle: the error, its traceback, this frame; the data is a part of it
            raise

    for _ in range(20):
        task = asyncio.create_task(append())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
    await log.aclose()

run(main)
print("alive")
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_collector_finds_the_data_of_a_cancelled_append(tmp_path, loop):
    """CPython crashes if the collector clears a memoryview of which somebody holds a buffer."""
    expect_alive(CANCELLED, tmp_path, loop)
