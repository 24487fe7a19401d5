"""A log loses no acknowledged record when the power is cut, and invents none; for real.

Tasks append to a log on the recording file system. The power is then cut again and again, at any
point of the recording and with any choice of what the disk kept, and each time the log is opened.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from itertools import pairwise

import anyio
import anyio.to_thread
import pytest

from aiommap import FlushError, FlushPolicy, Log
from tests.powercut.log_workload import (
    Recording,
    cut_power,
    faults,
    lay_down,
    promise,
    record_appenders,
    recover_each,
)
from tests.powercut.mount import missing, mounted
from tests.powercut.records import DIRECTORY, SyncBegin, Unlink
from tests.powercut.replay import mostly_survives
from tests.powercut.workload import acknowledging
from tests.support.internals import frame_bytes
from tests.support.internals import log_opening as opening
from tests.support.logs import SEGMENT, segments

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(missing() is not None, reason=f"no power cuts here: {missing()}"),
]

#: How many random cuts of each kind one recording gets, besides those that lose most.
CUTS = 100
FEWER_CUTS = 40
LIVES = 4

POLICIES = {
    "always": FlushPolicy.always(),
    "manual": FlushPolicy.manual(),
    "bytes": FlushPolicy.every_bytes(4000),
    "dirty": FlushPolicy.max_dirty(8000),
    "never": FlushPolicy.never(),
}


async def recovered_at_worst(recording, folder):
    cuts = await cut_power(recording, recording.worst())
    return await recover_each(cuts, recording, folder)


async def recovered_at_random(recording, folder, rng, number):
    """Recover after cuts at random moments that keep anything, and after some that keep most."""
    outcomes = []
    for choose in (rng.randrange, mostly_survives(rng, 0.9)):
        for control in (True, False):
            moments = rng.choices(recording.moments(), k=number // 2)
            cuts = await cut_power(recording, moments, choose)
            outcomes += await recover_each(cuts, recording, folder, control=control)
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
async def test_power_cuts_lose_nothing_promised(mount, said, cut_folder, name):
    recording = await record_appenders(mount, said, flush=POLICIES[name], discard=name == "manual")
    outcomes = await recovered_at_worst(recording, cut_folder)
    assert not faults(outcomes), mount.log_path
    outcomes = await recovered_at_random(recording, cut_folder, random.Random(7), CUTS)
    assert not faults(outcomes), mount.log_path
    assert sum(each.torn for each in outcomes) >= CUTS // 10
    assert sum(each.records > each.cut.promised for each in outcomes) >= CUTS // 20


async def test_discard_syncs_each_unlink(mount):
    """A power cut that kept an older segment and not a newer one would leave a gap."""
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        for number in range(200):
            await log.append(b"%1000d" % number)
        await log.discard(log.last)
    log = mount.log()
    unlinks = [at for at, record in enumerate(log) if isinstance(record, Unlink)]
    unlinks = [at for at in unlinks if log[at].name.endswith(".log")]
    assert len(unlinks) > 2
    for before, after in pairwise(unlinks):
        between = log[before:after]
        assert any(isinstance(r, SyncBegin) and r.inode == DIRECTORY for r in between)


@pytest.mark.slow
async def test_power_cuts_of_what_power_cuts_left(tmp_path, cut_folder):
    """In each life the log gets further, and the power may be cut during its recovery, too."""
    rng = random.Random(13)
    left, before = {}, []
    for life in range(LIVES):
        folder = tmp_path / str(life)
        folder.mkdir()
        with mounted(folder) as mount, acknowledging(mount.path) as said:
            await anyio.to_thread.run_sync(lay_on_mount, mount.path, left)
            recording = await record_appenders(mount, said, before=before)
        outcomes = await recovered_at_worst(recording, cut_folder)
        outcomes += await recovered_at_random(recording, cut_folder, rng, FEWER_CUTS)
        assert not faults(outcomes), mount.log_path
        torn = rng.choice([each for each in outcomes if each.torn])
        left, before = torn.cut.left, recording.data[: torn.records]


def lay_on_mount(folder, left):
    """Write files as a power cut left them, and make all of it certain."""
    for name, content in left.items():
        path = folder / name
        path.write_bytes(content)
    for target in (*(folder / name for name in left), folder):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@pytest.mark.slow
async def test_power_cuts_with_equal_records(mount, said, tmp_path, cut_folder):
    """Records have the same size and content in every life: only the life tells an old one (L5)."""
    rng = random.Random(17)
    recording = await record_appenders(mount, said, flush=FlushPolicy.manual(), sizes=(16,))
    outcomes = await recovered_at_random(recording, cut_folder, rng, CUTS)
    # The contents are all equal, so only counts can tell that no record was invented.
    total = len(recording.data)
    assert all(each.records <= total for each in outcomes)
    assert [fault for _, fault in faults(outcomes) if "acknowledged" in fault] == []


async def append_and_fail(mount):
    """Append twenty records whose flush fails."""
    log = await Log.open(mount.path, segment_size=SEGMENT)
    for i in range(20):
        await log.append(b"%d" % i * 100)
    mount.fail("fsync", "00000000000000000001.log")
    with pytest.raises(FlushError):
        await log.flush()
    with pytest.raises(FlushError):
        await log.aclose()


@pytest.mark.slow
async def test_failed_flush_then_successor(mount, said, cut_folder):
    """The next writer writes again what a failed flush left in memory only (R5)."""
    await append_and_fail(mount)
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        assert log.last == log.durable == 20
        assert log.recovered.rewritten > 0
        promise(said, 20)
        data = [record.data async for record in log.read()]
    recording = Recording(data, mount.log())
    outcomes = await recovered_at_worst(recording, cut_folder)
    assert not faults(outcomes)


@pytest.mark.slow
async def test_failed_discard_then_successor(mount, said, cut_folder):
    """It also writes frames again that are no records: else nothing behind one could be read."""
    # The frame of the discard ends where a sector does: no later append writes that sector again.
    data = [*(b"%1000d" % i for i in range(200)), bytes(512 - frame_bytes(8) - frame_bytes(0))]
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        await log.append_many(data)
        await log.flush()
        mount.fail("fsync", segments(mount.path)[-1].name)
        with pytest.raises(FlushError):
            await log.discard(log.last)
        with pytest.raises(FlushError):
            await log.aclose()
    begun = len(mount.log())
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        assert 1 < log.first <= log.last == len(data)
        data += [b"more", b"and more"]
        for each in data[-2:]:
            await (await log.append(each)).wait_durable()
            promise(said, log.last)
        await log.discard(log.last)
        recording = Recording(data, mount.log(), log.first, begun)
    outcomes = await recovered_at_worst(recording, cut_folder)
    outcomes += await recovered_at_random(recording, cut_folder, random.Random(3), FEWER_CUTS)
    assert not faults(outcomes)


@pytest.mark.parametrize("of_directory", [False, True], ids=["file", "directory"])
async def test_on_a_disk_that_ignores_syncs_records_are_lost(mount, said, cut_folder, of_directory):
    """The tests above can fail: without the syncs that the log relies on they would."""
    recording = await record_appenders(mount, said)
    syncs = [record for record in recording.log if isinstance(record, SyncBegin)]
    ignored = {sync.ticket for sync in syncs if (sync.inode == DIRECTORY) == of_directory}
    lying = [r for r in recording.log if getattr(r, "ticket", None) not in ignored]
    recording = replace(recording, log=lying)
    cuts = await cut_power(recording, [len(lying)])
    (found,) = faults(await recover_each(cuts, recording, cut_folder, control=False))
    assert "acknowledged" in found[1] or "damaged" in found[1]


async def test_without_rewriting_a_failed_flush_loses_records(mount, said, cut_folder, monkeypatch):
    """The test of the failed flush depends on step 12 of recovery."""
    monkeypatch.setattr(opening._Recovery, "_rewrite", lambda *_: 0)
    await append_and_fail(mount)
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        promise(said, log.durable)
        data = [record.data async for record in log.read()]
    recording = Recording(data, mount.log())
    assert faults(await recovered_at_worst(recording, cut_folder))


def test_lay_down_is_what_a_reader_would_find(tmp_path):
    lay_down(tmp_path / "log", {"control": b"short"}, control=True)
    assert (tmp_path / "log" / "control").read_bytes() == b"short"
