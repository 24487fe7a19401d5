"""The control file: which of its words are believed, and how they wake readers."""

from __future__ import annotations

import os
import struct

import anyio
import pytest

import aiommap
from aiommap import FlushPolicy, Log
from tests.support.internals import HEADER_BYTES, crc32c, log_reader
from tests.support.logs import (
    SEGMENT,
    adopt_control,
    contents,
    make,
    overwrite,
    places,
    reopened,
    segment_path,
    up_to_damage,
)
from tests.support.waiting import nothing_happens, until

pytestmark = [pytest.mark.anyio, pytest.mark.damaged]

TAIL, DURABLE, DURABLE_SEQUENCE, LAST, FIRST, FUTEX, CLEAN = range(256, 641, 64)
DATA = [b"one", b"two", b"three"]
#: The offset behind the last record.
END = places(DATA)[-1]


def store(folder, at, value):
    overwrite(folder / "control", at, struct.pack("<Q", value))


async def test_words_ahead_of_the_segments_are_damage(folder):
    """In one boot words are stored after the bytes, so bytes are missing: that is an error."""
    await make(folder, *DATA)
    for at, value in ((TAIL, END - HEADER_BYTES + 48), (LAST, 5), (CLEAN, 0)):
        store(folder, at, value)
    before = segment_path(folder).read_bytes()
    with pytest.raises(aiommap.CorruptRecordError) as caught:
        await reopened(folder)
    assert (caught.value.sequence, caught.value.offset) == (4, END)
    assert segment_path(folder).read_bytes() == before
    async with Log.open(folder, "r") as reader:
        assert await up_to_damage(reader) == (DATA, 4)


async def test_words_of_another_boot_are_ahead_of_what_was_written(folder):
    """The kernel wrote the words back before the segment: only the durable sequence is believed."""
    await make(folder, *DATA)
    for at, value in ((TAIL, 1 << 40), (DURABLE, 1 << 40), (LAST, 99), (CLEAN, 0)):
        store(folder, at, value)
    adopt_control(folder, boot=bytes(16))
    async with Log.open(folder, "r") as reader:
        assert (reader.last, reader.durable) == (3, 3)
        assert await contents(reader) == DATA
    assert await reopened(folder) == DATA


@pytest.mark.parametrize("boot", [None, bytes(16)], ids=["this boot", "another"])
async def test_durable_records_that_are_not_there_are_damage(folder, boot):
    """In any boot: the durable sequence is stored after the flush."""
    await make(folder, *DATA)
    store(folder, DURABLE_SEQUENCE, 4)
    adopt_control(folder, boot=boot)
    with pytest.raises(aiommap.CorruptRecordError) as caught:
        await reopened(folder)
    assert (caught.value.sequence, caught.value.offset) == (4, END)


@pytest.mark.parametrize("control", ["this boot", "another", "removed"])
async def test_damage_is_told_to_readers_whatever_control_says(folder, control):
    """Frames behind the damaged record say that it was durable."""
    async with Log.open(folder, flush=aiommap.FlushPolicy.always()) as log:
        for data in DATA:
            await log.append(data)
    overwrite(segment_path(folder), places(DATA)[1] + 24, b"?")
    if control == "removed":
        (folder / "control").unlink()
    else:
        adopt_control(folder, boot=None if control == "this boot" else bytes(16))
    async with Log.open(folder, "r") as reader:
        assert await up_to_damage(reader) == (DATA[:1], 2)
        assert [record.data async for record in reader.read(3)] == DATA[2:]
        tail = reader.tail()
        assert (await anext(tail)).data == DATA[0]
        with pytest.raises(aiommap.CorruptRecordError):
            await anext(tail)


@pytest.mark.parametrize("boot", [None, bytes(16)], ids=["this boot", "another"])
async def test_first_record_ahead_of_the_last_is_damage(folder, boot):
    await make(folder, *DATA)
    store(folder, FIRST, 100)
    adopt_control(folder, boot=boot)
    with pytest.raises(
        aiommap.CorruptLogError,
        match="records before 100 were discarded, and the last one found is 3",
    ):
        await reopened(folder)


@pytest.mark.parametrize("mode", ["a", "r"])
@pytest.mark.parametrize(("at", "match"), [(8, "has version 2 of"), (12, "flags 0x1")])
async def test_later_control_file_is_refused(folder, at, match, mode):
    await make(folder, *DATA)
    before = (folder / "control").read_bytes()
    change_identity(folder, at, 3 if at == 8 else 1)
    forged = (folder / "control").read_bytes()
    with pytest.raises(aiommap.UnsupportedError, match=match) as caught:
        await reopened(folder, mode)
    assert str(folder / "control") in str(caught.value)
    assert (folder / "control").read_bytes() == forged
    (folder / "control").write_bytes(before)
    assert await reopened(folder) == DATA  # the refused opening left no lock


async def test_later_minor_version_of_the_control_file_is_read(folder):
    await make(folder, *DATA)
    change_identity(folder, 10, 7)
    async with Log.open(folder, "r") as reader:
        assert (reader.last, reader.durable) == (3, 3)
    async with Log.open(folder, segment_size=SEGMENT) as log:
        assert (await contents(log), log.recovered) == (DATA, None)


def change_identity(folder, at, bits):
    block = bytearray((folder / "control").read_bytes()[:64])
    block[at] ^= bits
    overwrite(folder / "control", 0, bytes(block) + struct.pack("<I", crc32c(bytes(block))))


async def test_tail_is_woken_as_the_futex_word_wraps(folder, monkeypatch):
    """A reader waits for each value of the word in turn, and 0 is like any other."""
    monkeypatch.setattr(log_reader, "LOOK_SECONDS", 1000.0)  # only the futex wakes it
    async with (
        Log.open(folder, segment_size=SEGMENT) as log,
        Log.open(folder, "r") as reader,
        anyio.create_task_group() as group,
    ):
        overwrite(folder / "control", FUTEX, b"\xfd\xff\xff\xff")
        found = []

        async def follow():
            async for record in reader.tail(1):
                found.append(record.data)
                if record.data == b"end":
                    return

        group.start_soon(follow)
        for i in range(8):
            await nothing_happens()
            await log.append(b"%d" % i)
            await until(lambda: len(found) == log.last)
        await log.append(b"end")
    (word,) = struct.unpack_from("<I", (folder / "control").read_bytes(), FUTEX)
    assert word < 100
    assert found == [*(b"%d" % i for i in range(8)), b"end"]


@pytest.mark.parametrize("mode", ["a", "r"])
@pytest.mark.parametrize("name", ["control", "00000000000000000001.log"])
@pytest.mark.parametrize("make_it", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
async def test_what_is_no_file_is_not_waited_for(folder, name, mode, make_it):
    await make(folder, *DATA)
    (folder / name).unlink()
    make_it(folder / name)
    with pytest.raises(aiommap.CorruptLogError, match=f"{name} is no regular file: move it away"):
        await reopened(folder, mode)


async def test_closed_segment_that_became_a_pipe_is_no_success(folder):
    async with Log.open(folder, segment_size=SEGMENT, flush=FlushPolicy.never()) as log:
        for _ in range(3):
            await log.append(bytes(30_000))
        segment_path(folder).unlink()
        os.mkfifo(segment_path(folder))
        with pytest.raises(aiommap.FlushError, match="unlinked by somebody else"):
            await log.flush()
        with pytest.raises(aiommap.FlushError):
            await log.aclose()
    segment_path(folder).unlink()


@pytest.mark.parametrize("mode", ["a", "r"])
@pytest.mark.parametrize("dangles", [True, False])
async def test_control_that_leads_elsewhere_is_not_followed(folder, tmp_path, mode, dangles):
    await make(folder, *DATA)
    target = tmp_path / "elsewhere"
    if not dangles:
        target.write_bytes(b"precious")
    (folder / "control").unlink()
    (folder / "control").symlink_to(target)
    with pytest.raises(aiommap.CorruptLogError, match="control is a symbolic link: move it away"):
        await reopened(folder, mode)
    assert (target.read_bytes() == b"precious") if not dangles else not target.exists()


@pytest.mark.parametrize("forged", ["block", "holder"])
async def test_refusal_tells_of_no_writer_that_nobody_noted(folder, forged):
    """The bytes may be anything, even sequences that a terminal would obey."""
    async with Log.open(folder):
        noise = b"\xc3\x1b[2J" * 400
        overwrite(folder / "control", *((0, noise) if forged == "block" else (140, noise[:60])))
        with pytest.raises(anyio.BusyResourceError) as caught:
            await Log.open(folder)
    assert "is written by another process, and a log has one" in str(caught.value)


async def test_opening_that_fails_leaves_the_standbys_of_others(folder):
    """A writer that has no segment locked cannot tell whether another one is making a segment."""
    await make(folder, *DATA)
    segment_path(folder).unlink()
    (folder / "standby-0123abcd.tmp").touch()
    with pytest.raises(aiommap.CorruptLogError, match="it has no segment"):
        await reopened(folder)
    assert (folder / "standby-0123abcd.tmp").exists()
