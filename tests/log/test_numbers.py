"""Sequences, lives and claims near their largest values, in logs with forged headers."""

from __future__ import annotations

import os
import shutil
import struct

import pytest

import aiommap
from aiommap import Log
from tests.support.devices import fill
from tests.support.disks import disk_with
from tests.support.internals import HEADER_BYTES, SegmentHeader, crc32c
from tests.support.logs import (
    ALWAYS,
    SEGMENT,
    contents,
    make,
    overwrite,
    pure_records,
    reopened,
    segment_path,
    without_control,
)


@pytest.fixture
def anyio_backend():
    return "asyncio"


pytestmark = pytest.mark.anyio


async def test_sequences_and_lives_at_their_ends(folder):
    """Sequences beyond 2**32 and near 2**63, and the last life."""
    await make(folder, b"x")
    for base, life in ((1 << 32, 5), ((1 << 63) - 3, 0xFFFFFFFE)):
        shutil.rmtree(folder)
        folder.mkdir()
        forge(folder, base, life)
        async with Log.open(folder, segment_size=SEGMENT) as log:
            assert (log.first, log.last, log.life) == (base, base - 1, life + 1)
            receipt = await log.append(b"y")
            assert receipt.sequence == base
            if base >> 62:
                with pytest.raises(OSError, match="all sequence numbers"):
                    await log.append_many([b"z"] * 5)
        assert [(s, d) for s, _, d in pure_records(folder)] == [(base, b"y")]
    with pytest.raises(aiommap.UnsupportedError, match=r"opened 2\*\*32 times"):
        await reopened(folder)


async def test_last_sequence_is_given_out_once(folder):
    """Also by inline appends; a refused append stores nothing."""
    folder.mkdir()
    forge(folder, (1 << 63) - 4, 1)
    async with Log.open(folder, segment_size=SEGMENT) as log:
        assert [(await log.append(b"x")).sequence - (1 << 63) for _ in range(3)] == [-4, -3, -2]
        before = log.statistics().appended_bytes
        for verb in (log.append, log.append, lambda data: log.append_many([data, data])):
            with pytest.raises(OSError, match="all sequence numbers"):
                await verb(b"y")
        await log.flush()
        assert (log.last, log.statistics().appended_bytes) == ((1 << 63) - 2, before)
        assert log.life == 2
    assert await reopened(folder) == [b"x"] * 3


async def test_claims_around_their_largest_number(folder):
    """One record has the largest claim, the next claims nothing: each proves that, and no more."""
    folder.mkdir()
    base = (1 << 40) + 1
    at = segment_path(folder, base)
    frames, position = b"", 1 << 40
    for sequence, claim in ((base, 0xFFFFFE), (base + 1, 0xFFFFFF), (base + 2, 2)):
        body = struct.pack("<IQII", 0, sequence, 1, claim | 1 << 24)
        frames += struct.pack("<I", crc32c(struct.pack("<QQ", 7, position) + body)) + body
        position += 24
    forge(folder, base, 1)
    overwrite(at, HEADER_BYTES, frames)
    async with Log.open(folder, "r") as reader:
        assert (reader.last, reader.durable) == (base + 2, base)
    assert await reopened(folder) == [b""] * 3
    shutil.rmtree(folder)
    folder.mkdir()
    forge(folder, base, 1)
    overwrite(at, HEADER_BYTES, bytes(24) + frames[24:48])  # torn; the frame behind claims nothing
    async with Log.open(folder, segment_size=SEGMENT) as log:
        assert (log.last, log.recovered.cut_records) == (base - 1, 1)


async def test_store_that_fails_in_the_last_life_ends_the_log(tmp_path):
    """No life is left to cover what the failed store left: no later append is stored."""
    with disk_with("full_tmpfs", tmp_path) as disk:
        folder = disk / "log"
        folder.mkdir()
        forge(folder, 1, 0xFFFFFFFE)
        os.truncate(segment_path(folder), HEADER_BYTES)
        os.truncate(segment_path(folder), SEGMENT)  # a hole: no room is reserved
        async with Log.open(folder, segment_size=SEGMENT, flush=ALWAYS) as log:
            await log.append(b"kept")
            assert log.life == 0xFFFFFFFF
            fill(disk / "filler")
            with pytest.raises(OSError, match="No space left"):
                await log.append(b"x" * 5000)
            (disk / "filler").unlink()
            for _ in range(2):
                with pytest.raises(OSError, match=r"begun again 2\*\*32 times"):
                    await log.append(b"lost")
            assert (log.last, log.durable) == (1, 1)
            assert await contents(log) == [b"kept"]
        for _ in range(2):
            with pytest.raises(aiommap.UnsupportedError, match=r"opened 2\*\*32 times"):
                await reopened(folder)
            assert await reopened(folder, "r") == [b"kept"]
            without_control(folder)
        assert [data for _, _, data in pure_records(folder)] == [b"kept"]


def forge(folder, base, life):
    header = SegmentHeader(bytes(16), base, 1 << 40, 7, base, base, life, 0, 1 << 40)
    segment_path(folder, base).write_bytes(header.pack(crc32c).ljust(SEGMENT, b"\0"))
