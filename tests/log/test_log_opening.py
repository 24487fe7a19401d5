"""How many bytes recovery reads."""

from __future__ import annotations

import struct

import anyio
import anyio.to_thread
import pytest

from aiommap import Log
from tests.support.internals import frame_bytes
from tests.support.logs import (
    bytes_read,
    contents,
    overwrite,
    places,
    script,
    segment_path,
    without_control,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """One loop is enough: all of this runs in a worker."""
    return "asyncio"


CRASH = """
import os, sys, anyio, aiommap
async def main():
    log = await aiommap.Log.open(sys.argv[1])
    await log.append_many([bytes(1024)] * 500)
    await log.flush()
    await log.append_many([bytes(1024)] * 500)
    os._exit(0)
anyio.run(main)
"""


@pytest.mark.parametrize("control", [True, False], ids=["control", "without"])
async def test_frames_are_read_once(folder, control):
    """Only frames that nothing proves durable are read again, to write them once more."""
    await anyio.to_thread.run_sync(script, CRASH, folder)
    if not control:
        without_control(folder)
    before = bytes_read()
    async with Log.open(folder) as log:
        walked = 1000 * frame_bytes(1024)
        assert log.recovered.rewritten == walked // 2
        assert bytes_read() - before < walked + log.recovered.rewritten + (1 << 18)


@pytest.mark.damaged
async def test_search_reads_no_room_that_was_never_written(folder):
    """What looks like the header of a long record claims 60 MiB, which are zeros."""
    async with Log.open(folder, segment_size=64 << 20) as log:
        await log.append(b"x")
    at = places([b"x"])[-1]
    overwrite(segment_path(folder), at, bytes(range(1, 33)))  # a torn record
    header = struct.pack("<IIQII", 1, 60 << 20, 2, 1, 1 << 24)
    overwrite(segment_path(folder), at + 32, header)
    without_control(folder)
    before = bytes_read()
    async with Log.open(folder) as log:
        assert log.recovered.cut_records == 0
        assert await contents(log) == [b"x"]
    assert bytes_read() - before < 8 << 20
