"""The durable log of the examples loses no acknowledged record when the power is cut; for real.

Tasks append to a log on the recording file system. The power is then cut again and again, at any
point of the recording and with any choice of what the disk kept, and each time the log is opened.
"""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from aiommap import FlushPolicy
from tests.powercut.log_workload import (
    APPENDERS,
    NAME,
    RECORDS_EACH,
    DurableLog,
    cut_power,
    example,
    faults,
    lay_down,
    mostly_survives,
    promise,
    record_appenders,
    recover_each,
)
from tests.powercut.mount import missing, mounted
from tests.powercut.records import DIRECTORY, SyncBegin
from tests.powercut.workload import acknowledging

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(missing() is not None, reason=f"no power cuts here: {missing()}"),
]

STEP = 16 << 10
BATCH = 16
#: Random cuts of one recording, of each kind; those that lose most are made beside them.
CUTS = 300
FEWER_CUTS = 60
LIVES = 4
TOTAL = APPENDERS * RECORDS_EACH
#: Of this size, and its header of 28, the tenth record begins with the second sector: so behind
#: new records whole old ones may follow, each at its place and with the next number.
ALIGNED = range(28, 29)
#: The bad record of a torn log.
TORN = 5


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Let a log grow often, and take more than one commit for a round of its appenders."""
    monkeypatch.setattr(example, "STEP_BYTES", STEP)
    monkeypatch.setattr(example, "MAX_BATCH", BATCH)


@pytest.fixture
def cut_path():
    """Where what a cut left is recovered: in memory, where a sync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder, "log")


async def recovered_at_worst(recording, path):
    """Recover after each of the cuts that lose most."""
    cuts = await cut_power(recording, recording.worst())
    return await recover_each(cuts, recording, path)


async def recovered_at_random(recording, path, rng, number):
    """Recover after cuts at random moments that keep anything, and after some that keep most."""
    outcomes = []
    for choose in (rng.randrange, mostly_survives(rng)):
        cuts = await cut_power(recording, rng.choices(recording.moments(), k=number), choose)
        outcomes += await recover_each(cuts, recording, path)
    return outcomes


@pytest.mark.slow
async def test_log_keeps_acknowledged_records(mount, said, cut_path):
    recording = await record_appenders(mount, said)
    assert (mount.path / NAME).stat().st_size >= 4 * STEP
    outcomes = await recovered_at_worst(recording, cut_path)
    assert len(outcomes) >= TOTAL // BATCH
    assert not faults(outcomes), mount.log_path
    outcomes = await recovered_at_random(recording, cut_path, random.Random(7), CUTS)
    assert not faults(outcomes), mount.log_path
    assert sum(each.torn for each in outcomes) >= CUTS // 4
    assert sum(each.records > each.cut.promised for each in outcomes) >= CUTS // 10


@pytest.mark.slow
async def test_log_survives_cuts_after_cuts(tmp_path, cut_path):
    """In each life the log gets further, and the power may be cut during its recovery, too."""
    rng = random.Random(13)
    left, before = b"", []
    for life in range(LIVES):
        folder = tmp_path / str(life)
        folder.mkdir()
        with mounted(folder) as mount, acknowledging(mount.path) as said:
            lay_down(mount.path / NAME, left, synced=True)
            promise(said, len(before))
            recording = await record_appenders(mount, said, before=before)
        outcomes = await recovered_at_worst(recording, cut_path)
        outcomes += await recovered_at_random(recording, cut_path, rng, FEWER_CUTS)
        assert not faults(outcomes), mount.log_path
        torn = rng.choice([each for each in outcomes if each.torn])
        left, before = torn.cut.left, recording.data[: torn.records]


@pytest.mark.slow
@pytest.mark.parametrize("cut_off", [False, True], ids=["torn", "cut-off"])
@pytest.mark.parametrize("synced", [True, False], ids=["power-cut", "crash"])
async def test_log_survives_cuts_once_torn(mount, said, tmp_path, cut_path, synced, cut_off):
    """What lay behind the end never comes back, and what was recovered is kept (D2).

    A crash of the process alone leaves all that it had written, and none of it is certain. It may
    have come after recovery had cut off what lies behind the end.
    """
    left, before = await torn_log(tmp_path / "torn")
    lay_down(mount.path / NAME, left, synced=synced)
    if synced:
        promise(said, len(before))
    if cut_off:
        end = len(example.SIGNATURE) + TORN * (example.HEADER.size + ALIGNED[0])
        os.truncate(mount.path / NAME, end)
    recording = await record_appenders(mount, said, sizes=ALIGNED, before=before)
    assert not faults(await recovered_at_worst(recording, cut_path)), mount.log_path
    outcomes = await recovered_at_random(recording, cut_path, random.Random(11), FEWER_CUTS)
    assert not faults(outcomes), mount.log_path


async def torn_log(path):
    """Make a log with a bad record amid its only commit; return it, and the records before that."""
    data = [(b"stale %d" % number).ljust(ALIGNED[0]) for number in range(BATCH)]
    async with DurableLog.open(path) as log, anyio.create_task_group() as group:
        for each in data:
            group.start_soon(log.append, each)
    return path.read_bytes().replace(data[TORN], bytes(ALIGNED[0])), data[:TORN]


async def test_log_survives_its_creators_death(mount, said, cut_path):
    """The name that the other process gave the file is not certain yet, and has to become so."""
    (mount.path / NAME).touch()
    recording = await record_appenders(mount, said)
    assert not faults(await recovered_at_worst(recording, cut_path)), mount.log_path


@pytest.mark.parametrize(
    ("of_directory", "expected"),
    [
        pytest.param(False, f"{TOTAL} records were acknowledged, 0 recovered", id="file"),
        pytest.param(True, "the file is missing", id="directory"),
    ],
)
async def test_log_on_a_disk_ignoring_syncs_loses(mount, said, cut_path, of_directory, expected):
    """The tests above can fail: without the syncs that the log relies on they would."""
    recording = await record_appenders(mount, said)
    syncs = [record for record in recording.log if isinstance(record, SyncBegin)]
    ignored = {sync.ticket for sync in syncs if (sync.inode == DIRECTORY) == of_directory}
    lying = [r for r in recording.log if getattr(r, "ticket", None) not in ignored]
    recording = replace(recording, log=lying)
    cuts = await cut_power(recording, [len(lying)])
    assert faults(await recover_each(cuts, recording, cut_path)) == [(len(lying), expected)]


async def test_log_without_flushes_loses(mount, said, cut_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(example, "FlushPolicy", SimpleNamespace(always=FlushPolicy.never))
        recording = await record_appenders(mount, said)
    found = faults(await recovered_at_worst(recording, cut_path))
    assert found[-1] == (len(recording.log), f"{TOTAL} records were acknowledged, 0 recovered")


@pytest.mark.slow
async def test_log_without_checksums_recovers_torn(mount, said, cut_path, monkeypatch):
    """The cuts do tear records, and nothing but the checksum tells."""
    monkeypatch.setattr(example, "checksum", lambda *covered: 0)
    recording = await record_appenders(mount, said)
    outcomes = await recovered_at_random(recording, cut_path, random.Random(17), FEWER_CUTS)
    never = [fault for _, fault in faults(outcomes) if "never appended" in fault]
    assert len(never) >= FEWER_CUTS // 4
