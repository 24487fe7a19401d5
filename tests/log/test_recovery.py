"""Recovery cuts torn records, never cuts durable ones, and reports damage (L8, L9)."""

from __future__ import annotations

import os
import shutil
import struct

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import FlushPolicy, Log
from tests.support.internals import HEADER_BYTES, crc32c, frame_bytes
from tests.support.logs import (
    ALWAYS,
    BIG,
    SEGMENT,
    adopt_control,
    contents,
    flip,
    make,
    overwrite,
    places,
    pure_records,
    reopened,
    segment_path,
    segments,
    up_to_damage,
    without_control,
)

DATA = (b"one", b"", b"three" * 20, b"seven77", b"eight888")


@pytest.fixture
def anyio_backend():
    """One loop is enough: recovery runs in a worker."""
    return "asyncio"


pytestmark = pytest.mark.anyio


async def opened_with(folder, **options):
    async with Log.open(folder, segment_size=SEGMENT, **options) as log:
        return await contents(log), log.recovered


async def test_clean_close_recovers_nothing(folder):
    await make(folder, *DATA)
    assert await opened_with(folder) == (list(DATA), None)


async def test_recovery_of_a_lost_control_file(folder):
    await make(folder, *DATA)
    without_control(folder)
    found, recovered = await opened_with(folder)
    assert found == list(DATA)
    assert (recovered.life, recovered.sequence, recovered.cut_records) == (2, 5, 0)
    assert recovered.rewritten == frame_bytes(len(DATA[-1]))  # nothing proves the last one


@pytest.mark.slow
@pytest.mark.damaged
async def test_torn_at_each_byte(folder, in_memory):
    """Cut anywhere in the last three records: the whole ones are found, and no more."""
    async with Log.open(folder, segment_size=SEGMENT) as log:  # one flush: no claim proves any
        for each in DATA:
            await log.append(each)
    whole, at = segment_path(folder).read_bytes(), places(DATA)
    for keep in range(at[2], at[5] + 1):
        shutil.rmtree(in_memory, ignore_errors=True)
        in_memory.mkdir()
        segment_path(in_memory).write_bytes(whole[:keep].ljust(len(whole), b"\0"))
        complete = sum(keep >= end for end in at[1:])
        # A record of which only zeros at the end were cut is whole.
        while complete < 5 and not whole[keep : at[complete + 1]].strip(b"\0"):
            complete += 1
        found, recovered = await opened_with(in_memory)
        assert found == list(DATA[:complete]), keep
        assert recovered.sequence == complete
        async with Log.open(in_memory, segment_size=SEGMENT) as log:
            await log.append(b"after")
            assert await contents(log) == [*DATA[:complete], b"after"]


@pytest.mark.slow
@pytest.mark.damaged
async def test_every_flipped_bit_is_found(folder, in_memory):
    """No record that is proven durable is lost, and no wrong byte is served."""
    await make(folder, *DATA)
    whole, at = segment_path(folder).read_bytes(), places(DATA)
    for control in (True, False):
        for byte in range(at[0], at[5]):
            shutil.rmtree(in_memory, ignore_errors=True)
            if control:
                shutil.copytree(folder, in_memory)
                adopt_control(in_memory)
            else:
                in_memory.mkdir()
            flipped = bytearray(whole)
            flipped[byte] ^= 1 << byte % 8
            segment_path(in_memory).write_bytes(flipped)
            bad = sum(byte >= end for end in at[1:]) + 1
            if bad == 5 and not control:  # nothing tells this record from a torn one
                assert (await opened_with(in_memory))[0] == list(DATA[:4])
                continue
            before = segment_path(in_memory).read_bytes()
            with pytest.raises(aiommap.CorruptRecordError) as caught:
                await opened_with(in_memory)
            assert (caught.value.sequence, caught.value.offset) == (bad, at[bad - 1])
            assert segment_path(in_memory).read_bytes() == before  # nothing was changed
            async with Log.open(in_memory, "r") as reader:
                assert await up_to_damage(reader) == (list(DATA[: bad - 1]), bad)
                assert await contents(reader, bad + 1) == list(DATA[bad:])


@pytest.mark.damaged
@pytest.mark.parametrize("at", [0, 8, 12, 16, 32, 40, 48, 56, 64, 72, 76, 80, 88])
async def test_damaged_header_is_told(folder, at):
    await make(folder, *DATA)
    flip(segment_path(folder), at, 1)
    for mode in ("a", "r"):
        without_control(folder) if mode == "r" else None
        with pytest.raises((aiommap.CorruptLogError, aiommap.UnsupportedError)) as caught:
            await reopened(folder, mode)
        assert str(segment_path(folder)) in str(caught.value)


@pytest.mark.damaged
@pytest.mark.parametrize(("at", "match"), [(8, "has version 2 of"), (12, "flags 0x1")])
async def test_later_format_is_refused(folder, at, match):
    await make(folder, b"x")
    block = bytearray(segment_path(folder).read_bytes()[:4096])
    block[at] ^= 3 if at == 8 else 1
    block[88:92] = struct.pack("<I", crc32c(bytes(block[:88])))
    overwrite(segment_path(folder), 0, bytes(block))
    with pytest.raises(aiommap.UnsupportedError, match=match):
        await reopened(folder)


async def test_later_minor_version_is_read(folder):
    await make(folder, b"x")
    block = bytearray(segment_path(folder).read_bytes()[:4096])
    block[10] = 9
    block[88:92] = struct.pack("<I", crc32c(bytes(block[:88])))
    overwrite(segment_path(folder), 0, bytes(block))
    assert await reopened(folder) == [b"x"]


@pytest.mark.parametrize("name", ["x.log", "0.log", "00000000000000000002.log.cut-1", "README"])
async def test_foreign_files_are_ignored(folder, name):
    await make(folder, b"x")
    (folder / name).write_bytes(b"y" * 5000)
    assert await reopened(folder) == [b"x"]
    assert (folder / name).exists()


@pytest.mark.damaged
async def test_renamed_segment_is_told(folder):
    await make(folder, b"x")
    segment_path(folder).rename(segment_path(folder, 5))
    with pytest.raises(aiommap.CorruptLogError, match=r"was named 00000000000000000001\.log"):
        await reopened(folder)


@pytest.mark.damaged
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("control", [True, False], ids=["control", "without"])
async def test_missing_segment_is_told(folder, which, control):
    await make(folder, *[bytes(BIG)] * 30)
    segments(folder)[which].unlink()
    if not control:
        without_control(folder)
    with pytest.raises(aiommap.CorruptLogError, match="missing"):
        await reopened(folder)


@pytest.mark.damaged
async def test_all_segments_missing_is_told(folder):
    await make(folder, b"x", b"y")
    segment_path(folder).unlink()
    with pytest.raises(aiommap.CorruptLogError, match="no segment, and 2 records were durable"):
        await reopened(folder)


@pytest.mark.damaged
async def test_segment_of_another_log_is_told(folder, tmp_path):
    await make(folder, *[bytes(BIG)] * 10)
    await make(tmp_path / "other", *[bytes(BIG)] * 10)
    shutil.copy(segments(tmp_path / "other")[1], segments(folder)[1])
    with pytest.raises(aiommap.CorruptLogError, match="another log"):
        await reopened(folder)


async def test_control_of_another_log_is_not_believed(folder, tmp_path):
    await make(folder, b"x")
    await make(tmp_path / "other", *DATA)
    (tmp_path / "other" / "control").replace(folder / "control")
    assert await reopened(folder) == [b"x"]


async def test_copied_folder_is_a_log(folder, tmp_path):
    await make(folder, *DATA)
    shutil.copytree(folder, tmp_path / "copy")
    async with Log.open(tmp_path / "copy", "r") as reader:
        assert await contents(reader) == list(DATA)
        assert reader.durable == 4  # the control file is that of the other folder
    assert await reopened(tmp_path / "copy") == list(DATA)


@pytest.mark.slow
@pytest.mark.damaged
async def test_copy_made_amid_appends(in_memory, tmp_path):
    """Each copy holds the first records, or is refused as damaged; the original goes on."""
    copies = tmp_path / "copies"
    async with Log.open(in_memory, segment_size=SEGMENT) as log:

        async def append():
            while not done:
                await log.append(b"%d " % (log.last + 1) * 300)
                if log.last % 7 == 0:
                    await log.flush()

        done = False
        async with anyio.create_task_group() as group:
            group.start_soon(append)
            for number in range(10):
                copy = copies / str(number)
                await anyio.to_thread.run_sync(shutil.copytree, in_memory, copy)
            done = True
        for copy in copies.iterdir():
            for mode in ("r", "a", "r"):
                try:
                    found = await reopened(copy, mode)
                except aiommap.LogError:
                    break
                assert found == [b"%d " % i * 300 for i in range(1, len(found) + 1)]
                assert len(found) <= log.last
        assert len(await contents(log)) == log.last


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "other"])
@pytest.mark.damaged
async def test_no_ghost_behind_a_successor(folder, equal):
    """The third of four equal records is torn; the fourth must not follow what is appended (L5)."""
    async with Log.open(folder, segment_size=SEGMENT) as log:
        for each in (b"one", b"two", b"bad", b"old"):
            await log.append(each)
    at = places([b"one", b"two", b"bad", b"old"])
    without_control(folder)
    flip(segment_path(folder), at[2] + 25)
    async with Log.open(folder, segment_size=SEGMENT) as log:
        assert (log.recovered.cut_records, log.recovered.sequence) == (1, 2)
        assert log.recovered.cut_bytes == at[4] - at[2]
        assert log.life == 2
        # The OPEN frame takes the place of the torn record and more. Put the old fourth record
        # behind the new one.
        await log.append(b"bad" if equal else b"new")
    without_control(folder)
    overwrite(segment_path(folder), at[3] + 40, _frame_of(folder, at[3]))
    assert (await reopened(folder))[2:] == [b"bad" if equal else b"new"]


def _frame_of(folder, at):
    return segment_path(folder).read_bytes()[at : at + 32]


@pytest.mark.damaged
async def test_ghost_of_an_earlier_life_never_comes_back(folder):
    """All records have one size and content, so only the life tells the old ones from the new."""
    async with Log.open(folder, segment_size=SEGMENT) as log:
        for _ in range(12):
            await log.append(bytes(16))  # frames of 40 bytes, like the OPEN frame
    at = places([bytes(16)] * 12)
    without_control(folder)
    flip(segment_path(folder), at[4] + 30)
    async with Log.open(folder, segment_size=SEGMENT, flush=ALWAYS) as log:
        assert (log.last, log.recovered.cut_records) == (4, 7)
        for _ in range(3):
            await log.append(bytes(16))
    without_control(folder)
    # OPEN is in the place of record 5, and records 5 to 7 in those of 6 to 8. The old record behind
    # them is 9, and the next is 8.
    async with Log.open(folder, segment_size=SEGMENT) as log:
        assert [record.life async for record in log.read()] == [1] * 4 + [2] * 3
        assert log.life == 3
    assert len(pure_records(folder)) == 7


@pytest.mark.damaged
async def test_torn_bytes_may_be_a_whole_log(folder, tmp_path):
    """The frames of a log inside a torn record prove nothing: their place and salt do not fit."""
    await make(tmp_path / "other", *DATA)
    inner = segment_path(tmp_path / "other").read_bytes()[: 8 << 10]
    await make(folder, b"first", inner + b"torn", flush=FlushPolicy.manual())
    without_control(folder)
    flip(segment_path(folder), places([b"first", inner])[1] + 30)
    assert await reopened(folder) == [b"first"]


@pytest.mark.damaged
@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, SEGMENT], ids=hex)
async def test_absurd_length_allocates_nothing(folder, length):
    await make(folder, b"first", b"second", flush=FlushPolicy.manual())
    without_control(folder)
    overwrite(segment_path(folder), places([b"first"])[1] + 4, struct.pack("<I", length))
    assert await reopened(folder) == [b"first"]


async def test_checksum_of_zero_is_a_record(folder):
    async with Log.open(folder, segment_size=SEGMENT, flush=ALWAYS) as log:
        header = segment_path(folder).read_bytes()[:HEADER_BYTES]
        (salt,) = struct.unpack_from("<Q", header, 48)
        claim = 1 | 1 << 24
        covered = struct.pack("<QQIQII", salt, 0, 8, 1, 1, claim) + b"data"
        data = b"data" + _suffix_for_zero(covered)
        await log.append(data)
        await log.append(bytes(64))
    frame = segment_path(folder).read_bytes()[HEADER_BYTES:]
    assert frame[:4] == bytes(4)
    without_control(folder)
    assert await reopened(folder) == [data, bytes(64)]


def _suffix_for_zero(covered):
    """Find four bytes that make the checksum 0, by elimination: the checksum is linear in them."""
    base = crc32c(covered + bytes(4))
    rows = [(crc32c(covered + struct.pack("<I", 1 << bit)) ^ base, 1 << bit) for bit in range(32)]
    wanted, chosen = base, 0
    for bit in reversed(range(32)):
        pivot = next((row for row in rows if row[0] >> bit & 1), None)
        if pivot is None:
            continue
        rows = [
            (r ^ pivot[0], x ^ pivot[1]) if r >> bit & 1 else (r, x)
            for r, x in rows
            if (r, x) != pivot
        ]
        if wanted >> bit & 1:
            wanted, chosen = wanted ^ pivot[0], chosen ^ pivot[1]
    return struct.pack("<I", chosen)


async def test_recovery_reads_a_small_segment_whose_records_are_zeros(folder):
    await make(folder, *[bytes(100)] * 50)
    without_control(folder)
    assert await reopened(folder) == [bytes(100)] * 50


async def test_many_openings_without_a_record(folder):
    """Each leaves an OPEN frame. A segment without records never rolls: the next has its name."""
    async with Log.open(folder, segment_size=SEGMENT):
        pass
    os.truncate(segment_path(folder), HEADER_BYTES + 200)
    for life in range(2, 12):
        async with Log.open(folder, segment_size=SEGMENT) as log:
            assert log.life == life
    await make(folder, b"x")
    assert await reopened(folder) == [b"x"]


async def test_no_room_for_open_rolls_first(folder):
    """The header of the new segment makes the life durable before a record carries it (L5)."""
    async with Log.open(folder, segment_size=SEGMENT) as log:
        await log.append(bytes(SEGMENT - 4096 - 24 - 24 - 48))
        assert log.last == 1
    await make(folder, b"")
    assert len(segments(folder)) == 2
    assert [life for _, life, _ in pure_records(folder)] == [1, 2]
    assert len(await reopened(folder)) == 2


@pytest.mark.damaged
async def test_unflushed_segments_are_set_aside(folder):
    """Only ``never()`` leaves segments behind a torn record; recovery renames and keeps them."""
    async with Log.open(folder, flush=FlushPolicy.never(), segment_size=SEGMENT) as log:
        for i in range(30):
            await log.append(b"%02d" % i * (BIG // 2))
    without_control(folder)
    flip(segment_path(folder), places([bytes(BIG)] * 3)[2] + 100)
    async with Log.open(folder, segment_size=SEGMENT) as log:
        assert log.last == 2
        assert log.recovered.cut_records == 27
        without_control(folder)
        with pytest.raises(anyio.BusyResourceError):
            await Log.open(folder)
        await log.append(b"new")
    assert len(await reopened(folder)) == 3
    assert len([path for path in folder.iterdir() if ".cut-" in path.name]) >= 3


async def test_successor_unlinks_what_was_discarded(folder):
    """A process or system crash between a discard and its unlinks leaves segments behind."""
    await make(folder, *[bytes(BIG)] * 20)
    old = {path: path.read_bytes() for path in segments(folder)}
    async with Log.open(folder, segment_size=SEGMENT) as log:
        await log.discard(15)
        first = log.first
    for path in set(old) - set(segments(folder)):
        path.write_bytes(old[path])
    async with Log.open(folder, segment_size=SEGMENT) as log:
        assert (log.first, log.statistics().segments) == (first, 2)
        assert len(segments(folder)) == 4  # opening deletes nothing (L9)
        await log.discard(log.first)
        assert [int(path.stem) for path in segments(folder)] == [first, 19]
    assert len(await reopened(folder)) == 21 - first


@pytest.mark.parametrize("control", [True, False], ids=["control", "without"])
async def test_times_of_files_mean_nothing(folder, control):
    """Recovery and readers ignore the times of files, and so their order in time (L13)."""
    data = [b"%d" % i * BIG for i in range(20)]
    await make(folder, *data)
    if not control:
        without_control(folder)
    for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        os.utime(path, (number * 86_400, 4_000_000_000 - number))
    async with Log.open(folder, "r") as reader:
        assert await contents(reader) == data
    assert await reopened(folder) == data


@pytest.mark.slow
@pytest.mark.damaged
@pytest.mark.parametrize("kind", ["header", "open", "end"])
async def test_torn_frames_that_are_no_records(folder, in_memory, kind):
    """Cut at each byte: the records before are found, or the error names the damaged file."""
    await make(folder, *DATA)
    await make(folder, *[] if kind != "end" else [bytes(SEGMENT - 4096 - 1000), bytes(2000)])
    at = places(DATA)[-1]
    begin, length = {"header": (0, 92), "open": (at, 40), "end": (0, 24)}[kind]
    if kind == "end":
        begin = places([*DATA, bytes(16), bytes(SEGMENT - 4096 - 1000)])[-1]
        segments(folder)[1].unlink()  # as if power had failed before the segment had its name
    whole = segment_path(folder).read_bytes()
    kept = [*DATA, bytes(SEGMENT - 4096 - 1000)] if kind == "end" else list(DATA)
    for keep in range(length):
        shutil.rmtree(in_memory, ignore_errors=True)
        in_memory.mkdir()
        torn = whole[: begin + keep] + bytes(length - keep) + whole[begin + length :]
        segment_path(in_memory).write_bytes(torn)
        if kind == "header" and torn != whole:
            for mode in ("r", "a"):
                wrong = (aiommap.CorruptLogError, aiommap.UnsupportedError)
                with pytest.raises(wrong, match=segment_path(in_memory).name):
                    await reopened(in_memory, mode)
            continue
        async with Log.open(in_memory, "r") as reader:
            assert await contents(reader) == kept
        for more in ([b"more"], [b"more", b"and more"]):
            await make(in_memory, more[-1])
            assert await reopened(in_memory) == kept + more


@pytest.mark.damaged
async def test_flushed_segments_prove_the_ones_before(folder):
    await make(folder, *[bytes(BIG)] * 30, flush=FlushPolicy.manual())
    without_control(folder)
    flip(segments(folder)[1], 5000)
    async with Log.open(folder, "r") as reader:
        with pytest.raises(aiommap.CorruptRecordError) as caught:
            await contents(reader)
        path = str(segments(folder)[1])
        assert caught.value.path == path
    # Recovery checks only frames that may not be durable; a read of the others finds the damage.
    async with Log.open(folder, segment_size=SEGMENT) as log:
        with pytest.raises(aiommap.CorruptRecordError):
            await contents(log)


async def test_recovery_may_be_cancelled(folder):
    await make(folder, *DATA)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await Log.open(folder)
    assert scope.cancelled_caught
    assert await reopened(folder) == list(DATA)
