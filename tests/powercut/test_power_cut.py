"""Whatever was called durable survives a power cut at any moment; for real, on a recorded disk.

Each test records what arrives at a file system of its own while writers run, and then cuts the
power again and again: at any point of the log, with any choice of what the disk kept.
"""

from __future__ import annotations

import errno
import random
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiommap
from aiommap import FlushPolicy
from tests.powercut.mount import missing
from tests.powercut.records import DIRECTORY, SyncBegin, SyncEnd
from tests.powercut.replay import Disk, nothing_survives
from tests.powercut.workload import (
    ASKING,
    SLOT_BYTES,
    Promise,
    Writer,
    ask_nothing,
    broken,
    content,
    flush_range,
    promises,
    wait_durable,
)
from tests.support.internals import RangeSet

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(missing() is not None, reason=f"no power cuts here: {missing()}"),
]

POLICIES = [
    pytest.param(FlushPolicy.never(), id="never"),
    pytest.param(FlushPolicy.manual(), id="manual"),
    pytest.param(FlushPolicy.always(), id="always"),
    pytest.param(FlushPolicy.every_bytes(5000), id="every_bytes"),
    pytest.param(FlushPolicy.every_writes(3), id="every_writes"),
    pytest.param(FlushPolicy.every_interval(0.002), id="every_interval"),
    pytest.param(FlushPolicy.every_writes(7) | FlushPolicy.max_dirty(8192), id="max_dirty"),
]

#: How many random cuts each policy gets, besides those that lose most.
CUTS = 80
#: Slots a writer, and how often it writes each.
SLOTS_EACH = 4
GENERATIONS = 5


async def write_and_ask(path, policy, ways, said, *, sparse):
    """Fill a new file with one writer for each way, and what it grows by with as many more."""
    half = len(ways) * SLOTS_EACH * SLOT_BYTES
    options = {"capacity": 2 * half, "sparse": sparse, "flush": policy}
    async with aiommap.open(path, "x+", size=half, **options) as file:
        writers = [
            Writer(file, range(number * SLOTS_EACH, (number + 1) * SLOTS_EACH), way, said)
            for number, way in enumerate(2 * ways)
        ]
        try:
            async with anyio.create_task_group() as group:
                for writer in writers[: len(ways)]:
                    group.start_soon(writer.run, GENERATIONS)
                await file.resize(2 * half)
                for writer in writers[len(ways) :]:
                    group.start_soon(writer.run, GENERATIONS)
        finally:
            for writer in writers:
                writer.acknowledge_durable()


async def record_writers(mount, policy, said):
    """Record concurrent writers of two files.

    Nobody flushes all of the one whose blocks are not reserved, so pages stay dirty there beside
    those that are flushed.
    """
    async with anyio.create_task_group() as group:
        for name, sparse, ways in (
            ("reserved", False, (*ASKING, ask_nothing)),
            ("sparse", True, (wait_durable, flush_range, ask_nothing)),
        ):
            write = partial(write_and_ask, sparse=sparse)
            group.start_soon(write, mount.path / name, policy, ways, said)
    return mount.log()


async def broken_promises(log, positions, choose=nothing_survives):
    """Cut the power at each position; find the promises that are then broken."""
    # In a thread, where the watch over the loop does not slow it down to a third.
    return await anyio.to_thread.run_sync(replay, log, positions, choose)


def replay(log, positions, choose):
    made = list(promises(log))
    found = []
    disk = Disk()
    for position in sorted(positions):
        disk.follow(log[disk.position : position])
        before = [promise for at, promise in made if at < position]
        found += [(position, promise) for promise in broken(before, disk.power_cut(choose))]
    return found


def worst_cuts(log):
    """Find positions so that any promise that is ever broken is broken at one of them.

    While nothing unsynced survives, the disk changes only where a sync ends; promises only add up.
    """
    return [i for i, record in enumerate(log) if isinstance(record, SyncEnd)] + [len(log)]


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
async def test_cuts_lose_nothing_durable(mount, said, policy):
    log = await record_writers(mount, policy, said)
    assert len(list(promises(log))) >= 2 * (3 + 2) * SLOTS_EACH * GENERATIONS
    assert not await broken_promises(log, worst_cuts(log)), mount.log_path
    rng = random.Random(5)
    cuts = rng.choices(range(len(log) + 1), k=CUTS)
    assert not await broken_promises(log, cuts, rng.randrange), mount.log_path


async def create(hub, path, policy, way, said):
    """Make a file of one slot, which is promised."""
    async with hub.open(path, "x+", size=SLOT_BYTES, flush=policy) as file:
        await Writer(file, [0], way, said).run(1)


@pytest.mark.parametrize("policy", POLICIES)
async def test_cuts_keep_names_of_new_files(mount, said, policy):
    async with aiommap.Hub() as hub, anyio.create_task_group() as group:
        for name, way in zip("abcdef", 2 * ASKING, strict=True):
            group.start_soon(create, hub, mount.path / name, policy, way, said)
    log = mount.log()
    assert {promise.name for _, promise in promises(log)} == set("abcdef")
    assert not await broken_promises(log, worst_cuts(log))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param("fsync", "reserved", id="fsync"), pytest.param("write", "sparse", id="write")],
)
async def test_failure_amid_writers_breaks_no_promise(mount, said, policy, kind, name):
    """The device works again at once, but what it failed to take stays lost (I5)."""
    # The failure may come before the writers are promised anything.
    await create(aiommap, mount.path / "before", policy, wait_durable, said)
    # Twice: a write(2) of several requests that stopped short is tried again, and might succeed.
    mount.fail(kind, name, nth=9, times=2)
    with pytest.raises(ExceptionGroup) as caught:
        await record_writers(mount, policy, said)
    # Where a store goes through the descriptor, the write itself fails, and no flush does.
    assert caught.group_contains((aiommap.FlushError, aiommap.MappingFaultError))
    log = mount.log()
    assert list(promises(log))
    assert not await broken_promises(log, worst_cuts(log))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("fsync", "data", id="fsync"),
        pytest.param("write", "data", id="write-back"),
        pytest.param("fsync", ".", id="fsync-of-the-directory"),
    ],
)
async def test_flush_failure_tells_all_and_latches(mount, policy, kind, name):
    path, slots = mount.path / "data", range(8)
    size = len(slots) * SLOT_BYTES
    async with aiommap.open(path, "x+", size=size, sparse=True, flush=policy) as file:
        if kind == "write":  # the flush writes stores to pages that are there
            await file.prewarm(write=True)
        mount.fail(kind, name)
        await expect_all_to_fail(file, slots)
        for verb in (lambda: file.write(0, b"x"), file.flush, lambda: file.flush_range(0, 1)):
            with pytest.raises(aiommap.FlushError, match="flush failed"):
                await verb()
        with pytest.raises(aiommap.FlushError, match="flush failed"):
            await file.aclose()
    disk = Disk()
    disk.follow(mount.log())
    left = disk.power_cut(nothing_survives)
    assert not any(Promise("data", slot, 1).kept(left) for slot in slots)


async def expect_all_to_fail(file, slots):
    """Write and ask for durability in one task for each slot; all of them get the same failure."""
    receipts, told = [], []

    async def write(slot):
        receipts.append(await file.write(slot * SLOT_BYTES, content(slot, 1)))
        await receipts[-1].wait_durable()

    async def expect_failure(slot):
        with pytest.raises(aiommap.FlushError, match="Input/output error") as caught:
            await write(slot)
        told.append(caught.value)

    async with anyio.create_task_group() as group:
        for slot in slots:
            group.start_soon(expect_failure, slot)
    assert [error.errno for error in told] == [errno.EIO] * len(slots)
    assert not any(receipt.durable for receipt in receipts)


async def test_flush_failure_names_stores_under_way(mount):
    """The ranges that the error names have to cover every store that has a receipt."""
    far = range(1 << 16, 4 << 20, 1 << 16)  # each page has to be fetched, which takes a while
    receipts = []

    async def store():
        receipts.append(await file.write_many([(offset, b"late") for offset in far]))

    async with aiommap.open(mount.path / "data", "x+", size=4 << 20, sparse=True) as file:
        await file.write(0, b"early")
        mount.fail("fsync", "data")
        async with anyio.create_task_group() as group:
            group.start_soon(store)
            await anyio.lowlevel.checkpoint()
            with pytest.raises(aiommap.FlushError, match="Input/output error"):
                await file.flush()
        with pytest.raises(aiommap.FlushError, match="flush failed"):
            await receipts[0].wait_durable()
        with pytest.raises(aiommap.FlushError, match="flush failed") as caught:
            await file.aclose()
    doubtful = RangeSet(caught.value.ranges)
    assert all(doubtful.covers(offset, offset + 4) for offset in (0, *far)), doubtful


@pytest.mark.parametrize("policy", POLICIES)
async def test_close_makes_durable_by_policy(mount, policy):
    async with aiommap.open(mount.path / "data", "x+", size=SLOT_BYTES, flush=policy) as file:
        receipt = await file.write(0, content(0, 1))
        called_durable = receipt.durable
    disk = Disk()
    disk.follow(mount.log())
    kept = Promise("data", 0, 1).kept(disk.power_cut(nothing_survives))
    assert kept is (policy.flush_at_close or called_durable)


@pytest.mark.slow
@pytest.mark.parametrize("of_directory", [False, True], ids=["file", "directory"])
async def test_disk_ignoring_syncs_loses_durable(mount, said, of_directory):
    """The tests above can fail: without the syncs that they rely on they would."""
    log = await record_writers(mount, FlushPolicy.manual(), said)
    syncs = [record for record in log if isinstance(record, SyncBegin)]
    ignored = {sync.ticket for sync in syncs if (sync.inode == DIRECTORY) == of_directory}
    lying = [record for record in log if getattr(record, "ticket", None) not in ignored]
    lost = await broken_promises(lying, worst_cuts(lying))
    assert {promise.name for _, promise in lost} == {"reserved", "sparse"}


async def test_visible_only_is_lost(mount, said):
    early = Promise("data", 0, 2)
    async with aiommap.open(mount.path / "data", "x+", size=SLOT_BYTES) as file:
        await (await file.write(0, content(0, 1))).wait_durable()
        await file.write(0, content(0, 2))
        await file.start_writeback()
        said.say(early)
        log = mount.log()
    assert await broken_promises(log, worst_cuts(log)) == [(len(log), early)]
