"""``read`` and ``tail``, by the writer and by readers, across rolls, takeovers and discards."""

from __future__ import annotations

import gc
import itertools
import os
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

import aiommap
from aiommap import Log
from tests.support.logs import (
    ALWAYS,
    BIG,
    SEGMENT,
    contents,
    flip,
    make,
    places,
    segment_path,
    segments,
)
from tests.support.pages import drop_pages
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def log(folder):
    """A writer that has appended twenty records, to several segments."""
    async with Log.open(folder, flush=ALWAYS, segment_size=SEGMENT) as log:
        for i in range(20):
            await log.append(b"%02d" % i * (BIG // 2))
        yield log


def numbers(count, start=0):
    return [b"%02d" % i * (BIG // 2) for i in range(start, start + count)]


async def collect(records, numbers):
    async for record in records:
        numbers.append(record.sequence)


@pytest.mark.parametrize("mode", ["a", "r"])
@pytest.mark.parametrize("start", [None, 1, 2, 7, 8, 20, 21])
async def test_read_from(log, folder, mode, start):
    expected = numbers(20)[(start or 1) - 1 :]
    if mode == "a":
        assert await contents(log, start) == expected
        return
    async with Log.open(folder, "r") as reader:
        assert (reader.first, reader.last, reader.durable, reader.life) == (1, 20, 20, 0)
        assert reader.recovered is None
        assert await contents(reader, start) == expected


@pytest.mark.parametrize("start", [0, -1])
async def test_read_from_no_number(log, start):
    with pytest.raises(ValueError, match="numbered from 1"):
        log.read(start)


async def test_read_beyond_the_end(log):
    with pytest.raises(ValueError, match=r"start is 22, but .* goes to record 20"):
        await contents(log, 22)
    with pytest.raises(ValueError, match="no record to wait for before 21"):
        await anext(log.tail(22))


async def test_read_ends_where_the_log_ended(log):
    reading = log.read()
    await log.append(b"later")
    assert len([record async for record in reading]) == 20
    with pytest.raises(StopAsyncIteration):
        await anext(reading)


async def test_tail_goes_on(log, folder):
    async with Log.open(folder, "r") as reader:
        for source in (log, reader):
            tail = source.tail(source.last + 1)
            async with anyio.create_task_group() as group:
                found = []

                async def follow(tail=tail, found=found):
                    async for record in tail:
                        found.append(record.data)
                        if len(found) == 30:
                            return

                group.start_soon(follow)
                for i in range(30):
                    await log.append(b"%d" % i + bytes(BIG))
            assert [data.rstrip(b"\0") for data in found] == [b"%d" % i for i in range(30)]
            await tail.aclose()
        assert reader.statistics().wakeups > 0


async def test_tail_of_durable_records_only(folder):
    async with Log.open(folder) as log:
        await log.append(b"1")
        await log.flush()
        await log.append(b"2")
        async with Log.open(folder, "r") as reader:
            tail = reader.tail(durable=True)
            assert (await anext(tail)).data == b"1"
            with anyio.move_on_after(0.05) as scope:
                await anext(tail)
            assert scope.cancelled_caught
            assert (reader.last, reader.durable) == (2, 1)
            await log.flush()
            assert (await anext(tail)).data == b"2"


async def test_tail_waits_for_the_first_record(folder):
    async with Log.open(folder) as log, Log.open(folder, "r") as reader:
        found = []

        async def follow():
            found.append(await anext(reader.tail()))

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.lowlevel.checkpoint()
            await log.append(b"first")
        assert found[0].data == b"first"


async def test_tail_survives_a_takeover(folder):
    """A reader goes on after one writer has closed the log and another has opened it."""
    await make(folder, b"1", b"2")
    async with Log.open(folder, "r") as reader:
        tail = reader.tail()
        assert [(await anext(tail)).data for _ in range(2)] == [b"1", b"2"]
        async with anyio.create_task_group() as group:
            found = []

            async def follow():
                found.append(await anext(tail))

            group.start_soon(follow)
            await make(folder, b"3")
        assert [(record.sequence, record.data, record.life) for record in found] == [(3, b"3", 2)]


async def test_discard_drops_whole_segments(log, folder):
    before = segments(folder)
    await log.discard(before=9)
    assert 1 < log.first <= 9
    assert len(segments(folder)) < len(before)
    assert await contents(log) == numbers(21 - log.first, log.first - 1)
    with pytest.raises(aiommap.RecordsDiscardedError) as caught:
        await contents(log, 1)
    assert (caught.value.sequence, caught.value.first) == (1, log.first)
    assert caught.value.lost == log.first - 1
    first = log.first
    await log.discard(1)
    assert log.first == first
    for before in (0, 22):
        with pytest.raises(ValueError, match="from 1 to 21"):
            await log.discard(before)


async def test_discard_is_kept_by_the_next_opening(log, folder):
    await log.discard(before=20)
    first = log.first
    await log.aclose()
    async with Log.open(folder, "r") as reader:
        assert reader.first == first
    (folder / "control").unlink()
    async with Log.open(folder, segment_size=SEGMENT) as again:
        assert again.first == first
        assert await contents(again) == numbers(21 - first, first - 1)


async def test_discard_under_a_reader_tells_the_gap(log, folder):
    async with Log.open(folder, "r") as reader:
        tail = reader.tail()
        assert (await anext(tail)).sequence == 1
        await log.discard(before=20)
        seen = []
        with pytest.raises(aiommap.RecordsDiscardedError) as caught:
            await collect(tail, seen)
        assert seen == list(range(2, caught.value.sequence))
        assert caught.value.first == log.first == reader.first
        assert (await contents(reader, log.first))[-1] == numbers(1, 19)[0]


async def test_retain_bytes_discards_at_rolls(folder):
    async with Log.open(folder, segment_size=SEGMENT, retain_bytes=3 * SEGMENT) as log:
        for _ in range(100):
            await log.append(bytes(BIG))
        assert len(segments(folder)) == 3
        assert log.first > 70
        assert len(await contents(log)) == 101 - log.first
        assert log.statistics().segments == 3


async def test_reading_holds_one_segment(log, folder):
    def held():
        names = []
        for number in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # workers close theirs meanwhile
                names.append(os.readlink(f"/proc/self/fd/{number}"))
        return [name for name in names if name.endswith(".log") and "log/0000" in name]

    async with Log.open(folder, "r") as reader:
        before = len(held())  # the writer's own
        reading = reader.read()
        for _ in range(12):
            await anext(reading)
        await until(lambda: len(held()) == before + 1)
        assert reader.statistics().held_segments == 1
        assert reader.statistics().lag >= 1
        del reading
        gc.collect()
        await until(lambda: len(held()) == before)


async def test_reading_is_for_one_task_at_a_time(log, folder):
    async with Log.open(folder, "r") as reader:
        tail = reader.tail(21)
        async with anyio.create_task_group() as group:
            group.start_soon(anext, tail)
            await until(lambda: reader.statistics().held_segments)
            with pytest.raises(anyio.BusyResourceError):
                await anext(tail)
            await log.append(b"x")


async def test_reader_of_large_records_gives_way(folder):
    """However many records were granted, other tasks run when the time slice is spent."""
    records, turns, done = 300, 0, False

    async def count():
        nonlocal turns
        while not done:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with Log.open(folder) as log:
        await log.append_many([bytes(100_000)] * records)
        assert len(await contents(log)) == records  # they are in memory from now on
        async with anyio.create_task_group() as group:
            group.start_soon(count)
            await anyio.lowlevel.checkpoint()
            turns = 0
            assert len(await contents(log)) == records
            done = True
        assert turns > 8  # it reads for 3 ms or more, and a slice takes less than one


async def test_closing_ends_readings(log, folder):
    reader = await Log.open(folder, "r")
    tail = reader.tail(21)

    async def follow():
        with pytest.raises(anyio.ClosedResourceError, match="is closed"):
            await anext(tail)

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await until(lambda: reader.statistics().held_segments)
        await reader.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await anext(tail)


@pytest.mark.parametrize("how", ["read", "tail"])
async def test_closing_in_the_middle_is_no_end(log, folder, how):
    reader = await Log.open(folder, "r")
    records, whole = getattr(reader, how)(), reader.read()
    assert [record.sequence async for record in whole] == list(range(1, 21))
    assert (await anext(records)).sequence == 1
    await reader.aclose()
    with pytest.raises(anyio.ClosedResourceError, match="is closed"):
        await anext(records)
    with pytest.raises(StopAsyncIteration):
        await anext(whole)  # it was at its end before the log was closed


async def test_cancelled_tail_goes_on(log, folder):
    async with Log.open(folder, "r") as reader:
        tail = reader.tail(21)
        with anyio.move_on_after(0.02):
            await anext(tail)
        await log.append(b"x")
        assert (await anext(tail)).data == b"x"


async def cancel_after(turns, scope):
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def read_cancelled(records, found, folder):
    """Read from the disk, and cancel each wait a turn of the loop later than the wait before."""
    waits = itertools.cycle(range(30))
    while found[-1:] != [None]:
        for segment in segments(folder):
            drop_pages(segment)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel_after, next(waits), scope)
                record = await anext(records, None)
                found.append(record and record.sequence)


async def test_cancelled_reads_skip_nothing(folder):
    """The records are so large that a worker reads each of them, and each end of a segment."""
    async with Log.open(folder, segment_size=1 << 20, flush=ALWAYS) as log:
        for i in range(12):
            await log.append(b"%02d" % i * 150_000)
        for records in (log.read(), log.read()):
            found = []
            await read_cancelled(records, found, folder)
            assert found == [*range(1, 13), None]


async def test_cancelled_reads_leave_no_segment_open(log):
    descriptors = len(os.listdir("/proc/self/fd"))
    for turns in range(40):
        records = log.read()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel_after, turns % 20, scope)
                await anext(records)
        await records.aclose()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


@pytest.mark.damaged
async def test_read_meets_damage(log, folder):
    at = places(numbers(20)[:2])[1]
    flip(segment_path(folder), at + 1000)
    async with Log.open(folder, "r") as reader:
        reading = reader.read()
        assert (await anext(reading)).sequence == 1
        with pytest.raises(aiommap.CorruptRecordError) as caught:
            await anext(reading)
        assert (caught.value.sequence, caught.value.offset) == (2, at)
        assert caught.value.path == str(segment_path(folder))
        assert reader.statistics().corrupt == 1
        assert await contents(reader, 3) == numbers(18, 2)
        with pytest.raises(aiommap.CorruptRecordError, match="record 2 at byte"):
            await contents(reader, 2)


@pytest.mark.damaged
async def test_damaged_records_in_a_row_are_told_apart(folder):
    data = [b"%d" % i * 100 for i in range(6)]
    await make(folder, *data)
    at = places(data)
    for i in (1, 2, 3):
        flip(segment_path(folder), at[i] + 50)
    async with Log.open(folder, "r") as reader:
        found = []
        for start in (1, 2, 3, 4):
            with pytest.raises(aiommap.CorruptRecordError) as caught:
                await contents(reader, start)
            found.append((caught.value.sequence, caught.value.offset))
        assert found == [(2, at[1]), (2, at[1]), (3, at[2]), (4, at[3])]
        assert await contents(reader, 5) == data[4:]
        flip(segment_path(folder), at[1] + 4, 6)  # its length: nothing says where the next one is
        with pytest.raises(aiommap.CorruptRecordError) as caught:
            await contents(reader, 3)
        assert (caught.value.sequence, caught.value.offset) == (3, at[1])


@pytest.mark.damaged
async def test_read_meets_a_missing_segment(log, folder):
    segments(folder)[1].unlink()
    with pytest.raises(aiommap.CorruptLogError, match="is missing: put it back"):
        await contents(log)


async def test_tail_of_a_deleted_folder_ends(log, folder):
    reader = await Log.open(folder, "r")
    async with reader:
        (folder / "control").rename(folder / "other")
        with anyio.fail_after(20), pytest.raises(aiommap.CorruptLogError, match="is gone"):
            await anext(reader.tail(21))
        (folder / "other").rename(folder / "control")


async def test_reader_without_control_follows_the_frames(log, folder):
    """As on a network file system: it reads the frames that fit; claims prove records durable."""
    await log.aclose()
    (folder / "control").unlink()
    async with Log.open(folder, "r") as reader:
        assert (reader.first, reader.last) == (1, 20)
        assert reader.durable == 19  # nothing says that the last one is durable
        assert await contents(reader) == numbers(20)
        found = []
        durable = reader.tail(durable=True)
        with anyio.move_on_after(0.3):
            await collect(durable, found)
        assert found == list(range(1, 20))
        await make(folder, b"new")  # a writer publishes
        with anyio.fail_after(10):
            assert [(await anext(durable)).sequence for _ in range(2)] == [20, 21]
        tail = reader.tail(21)
        with anyio.fail_after(10):
            assert (await anext(tail)).data == b"new"


async def test_reader_without_control_passes_frames_between_large_records(folder):
    """A read that finds only an OPEN frame has found neither a record nor the end."""
    for i in range(3):
        async with Log.open(folder, segment_size=2 << 20) as log:
            await log.append(b"%d" % i * (300 << 10))
    (folder / "control").unlink()
    async with Log.open(folder, "r") as reader:
        assert [data[:1] for data in await contents(reader)] == [b"0", b"1", b"2"]
        assert reader.last == 3


async def test_readers_that_begin_amid_discards(in_memory):
    """They begin at a first record, or raise RecordsDiscardedError; nothing looks like damage."""
    found = []

    async def begin(reader):
        while not log.closed:
            try:
                async for record in reader.read():
                    found.append((record.sequence, int(record.data[:10])))
                    break
                assert await reader.segments()
            except aiommap.RecordsDiscardedError:
                pass

    async with Log.open(in_memory, segment_size=SEGMENT, retain_bytes=1) as log:
        await log.append(b"%10d" % 1)
        async with Log.open(in_memory, "r") as reader, anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(begin, reader)
            while log.last < 100 or not found:
                await log.append(b"%10d" % (log.last + 1) + bytes(50_000))
                await anyio.lowlevel.checkpoint()
            await log.aclose()
    assert all(sequence == number for sequence, number in found)


async def test_reader_of_no_log(folder):
    with pytest.raises(FileNotFoundError):
        await Log.open(folder, "r")
    folder.mkdir()
    async with Log.open(folder, "r") as reader:
        assert (reader.first, reader.last, reader.durable) == (1, 0, 0)
        assert await contents(reader) == []
        found = []

        async def follow():
            found.append((await anext(reader.tail())).data)

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await make(folder, b"x")
        assert found == [b"x"]
