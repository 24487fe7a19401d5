"""The folder of an open log is renamed, or another log is put at its path."""

from __future__ import annotations

import os
import shutil

import anyio
import pytest

import aiommap
from aiommap import FlushPolicy, Log
from tests.support.internals import log_reader
from tests.support.logs import SEGMENT, contents, make, reopened, segment_path, segments

pytestmark = pytest.mark.anyio

NEVER = FlushPolicy.never()
#: Several segments of old and of new records, whose segments have the same names.
OLD, NEW = ([name + b"%d" % i * 1000 for i in range(100)] for name in (b"old", b"new"))


@pytest.fixture(params=["rename", "link"])
def switch(request, folder, tmp_path):
    """Return the place of the log, and a function that puts another folder at its path."""
    kept = tmp_path / "kept"
    if request.param == "link":
        kept.mkdir()
        folder.symlink_to(kept)

    def switch():
        if request.param == "link":
            (tmp_path / "new").mkdir()
            folder.unlink()
            folder.symlink_to(tmp_path / "new")
        else:
            folder.rename(kept)

    return kept, switch


async def append(log, data):
    for each in data:
        await log.append(each)


@pytest.mark.parametrize("way", ["discard", "retain_bytes"])
async def test_writer_keeps_to_its_folder(folder, switch, way):
    """It began another segment, and discarded old ones, in the log that is at its path now."""
    kept, switch = switch
    retain = SEGMENT if way == "retain_bytes" else None
    async with Log.open(folder, segment_size=SEGMENT, retain_bytes=retain) as log:
        await append(log, OLD[:50])
        switch()
        await make(folder, *NEW)
        await append(log, OLD[50:])
        if way == "discard":
            await log.discard(log.last)
        assert log.first > 1
        assert await contents(log) == OLD[log.first - 1 :]
        assert [each.base for each in await log.segments()] == [
            int(path.stem) for path in segments(kept)
        ]
    assert await reopened(folder) == NEW
    assert await reopened(folder, "r") == NEW
    assert await reopened(kept) == OLD[log.first - 1 :]


@pytest.mark.damaged
async def test_flush_syncs_the_segments_of_its_folder(folder, switch):
    """Under never() it opens the closed segments again: those of the other log are no success."""
    kept, switch = switch
    async with Log.open(folder, segment_size=SEGMENT, flush=NEVER) as log:
        await append(log, OLD)
        switch()
        await make(folder, *NEW)
        segment_path(kept).rename(kept / "elsewhere")
        with pytest.raises(aiommap.FlushError, match="No such file"):
            await log.flush()
        assert log.durable < log.last
        with pytest.raises(aiommap.FlushError):
            await log.aclose()
    (kept / "elsewhere").rename(segment_path(kept))


@pytest.mark.parametrize("standby", [True, False])
async def test_renamed_folder_takes_appends(folder, tmp_path, standby, monkeypatch):
    """Also where standby segments have names, as on file systems without O_TMPFILE."""
    if not standby:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # EISDIR
    async with Log.open(folder, segment_size=SEGMENT, flush=FlushPolicy.always()) as log:
        await append(log, OLD[:50])
        folder.rename(tmp_path / "kept")
        await append(log, OLD[50:])
        assert log.durable == len(OLD)
    assert await reopened(tmp_path / "kept") == OLD
    assert not folder.exists()


async def test_readers_keep_to_their_folder(folder, switch):
    """A reader went on in the next segment of the log that was at its path."""
    async with Log.open(folder, segment_size=SEGMENT) as log, Log.open(folder, "r") as reader:
        await append(log, OLD[:10])
        tail = reader.tail()
        found = [(await anext(tail)).data]
        switch[1]()
        await make(folder, *NEW)
        await append(log, OLD[10:])
        with anyio.fail_after(20):
            while len(found) < len(OLD):
                found.append((await anext(tail)).data)
        assert found == OLD == await contents(reader)
        assert reader.last == len(OLD)


async def test_waiting_reader_is_told_of_another_folder(folder, switch, monkeypatch):
    monkeypatch.setattr(log_reader, "LOOK_SECONDS", 0.05)
    async with Log.open(folder, segment_size=SEGMENT) as log, Log.open(folder, "r") as reader:
        await log.append(b"x")
        switch[1]()
        await make(folder, b"new")
        with anyio.fail_after(20):
            with pytest.raises(aiommap.CorruptLogError, match="another folder is at this path now"):
                await anext(reader.tail(2))
            with anyio.move_on_after(0.3):  # what the writer of the old one reads is no mistake
                await anext(log.tail(2))
        await log.append(b"y")
        assert await contents(reader) == [b"x", b"y"]


async def test_waiting_reader_of_a_renamed_folder_waits(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(log_reader, "LOOK_SECONDS", 0.05)
    async with Log.open(folder) as log, Log.open(folder, "r") as reader:
        await log.append(b"x")
        folder.rename(tmp_path / "kept")
        with anyio.move_on_after(0.3):
            await anext(reader.tail(2))
        await log.append(b"y")
        with anyio.fail_after(20):
            assert (await anext(reader.tail(2))).data == b"y"


@pytest.mark.parametrize("way", ["was deleted", "another folder is at this path now"])
@pytest.mark.parametrize("log", [True, False])
async def test_reader_that_polls_hears_of_another_folder(folder, tmp_path, log, way):
    """A reader without a control file has no log yet, or looks for one that it can believe."""
    folder.mkdir()
    if log:
        await make(folder, b"x")
        (folder / "control").unlink()
    async with Log.open(folder, "r") as reader:
        tail = reader.tail(1)
        assert not log or (await anext(tail)).data == b"x"
        if way == "was deleted":
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / "kept")
            await make(folder, b"new")
        with anyio.fail_after(20), pytest.raises(aiommap.CorruptLogError, match=way):
            await anext(tail)
