"""Durable writes give the device about as many bytes as pwrite and fdatasync do (I13)."""

from __future__ import annotations

import math
import os
import random

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.counted import counted_disk
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

SIZE = 24 << 20
#: The number of records of a case, and of those between two flushes.
RECORDS, GROUP = 48, 4
RATIO = 1.2
#: The file system may write its journal or a tree meanwhile.
SLACK_BYTES = 64 << 10
#: Others may call sync(2) meanwhile (see ``counted``), which only adds bytes: the least of so many
#: counts holds.
COUNTS = 5


@pytest.fixture
def anyio_backend():
    """One loop is enough, because no loop decides what reaches the device."""
    return "asyncio"


@pytest.fixture(
    params=["ext4", "xfs", pytest.param("btrfs", marks=pytest.mark.slow)], scope="module"
)
def disk(request, tmp_path_factory):
    with counted_disk(request.param, tmp_path_factory.mktemp("counted")) as disk:
        yield disk


def in_large_pieces(path):
    """Write a file so that the kernel caches it in large folios."""
    with open(path, "wb", buffering=0) as file:
        file.writelines(bytes(2 << 20) for _ in range(0, SIZE, 2 << 20))
        os.fsync(file.fileno())


def reserved(path):
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE)
        os.fsync(file.fileno())


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(SIZE)
        os.fsync(file.fileno())


LAYOUTS = {"large pieces": in_large_pieces, "reserved": reserved, "sparse": sparse}


def places(order, length):
    """Return the offsets of the records of a case, in groups."""
    drawn = random.Random(14)
    room = SIZE // length
    at = [drawn.randrange(room) if order == "random" else i for i in range(RECORDS)]
    return [[n * length for n in at[i : i + GROUP]] for i in range(0, RECORDS, GROUP)]


def by_pwrite(path, groups, record, *, each):
    """Write the records by pwrite, with a sync for each record or for each group."""
    fd = os.open(path, os.O_RDWR)
    for group in groups:
        for at in group:
            os.pwrite(fd, record, at)
            if each:
                os.fdatasync(fd)
        os.fdatasync(fd)
    os.close(fd)


async def wait_durable(f, group, record):
    for at in group:
        await (await f.write(at, record)).wait_durable()


async def flush(f, group, record):
    for at in group:
        await f.write(at, record)
    await f.flush()


async def flush_range(f, group, record):
    for at in group:
        await f.write(at, record)
    for at in group:
        await f.flush_range(at, len(record))


async def background(f, group, record):
    for at in group:
        await f.write(at, record)
    await until(lambda: f.statistics().oldest_dirty_seconds is None)


#: A policy, the function that writes a group under it, and whether each record has its own flush.
FORMS = {
    "manual-wait_durable": (FlushPolicy.manual(), wait_durable, True),
    "manual-flush": (FlushPolicy.manual(), flush, False),
    "manual-flush_range": (FlushPolicy.manual(), flush_range, True),
    "every_interval": (FlushPolicy.every_interval(0.02), background, True),
    "every_writes": (FlushPolicy.every_writes(GROUP), background, True),
    "every_bytes": (FlushPolicy.every_bytes(GROUP * 128), background, True),
    "always": (FlushPolicy.always(), flush, True),
}


@pytest.mark.parametrize("form", FORMS)
async def test_random_records_in_large_folios(disk, form):
    """The worst case for a store through the mapping, which would cost a megabyte per record."""
    await check(disk, form, "large pieces", "random", 128)


@pytest.mark.slow
@pytest.mark.parametrize("length", [128, PAGE])
@pytest.mark.parametrize("order", ["random", "sequential"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
async def test_device_bytes(disk, form, layout, order, length):
    await check(disk, form, layout, order, length)


async def check(disk, form, layout, order, length):
    """Write the same records by pwrite and by a form, and compare the bytes of the device."""
    groups = places(order, length)
    pages = {at // PAGE for group in groups for at in group}
    least = most = math.inf
    for _ in range(COUNTS):
        own, peer = await count(disk, form, layout, groups, b"r" * length)
        assert own >= len(pages) * PAGE
        least, most = min(least, own), min(most, RATIO * peer + SLACK_BYTES)
        if least <= most:
            break
    assert least <= most


async def count(disk, form, layout, groups, record):
    """Return the bytes that a form gives the device, and those that pwrite gives it."""
    policy, write, each = FORMS[form]
    ours, theirs = disk.folder / "ours", disk.folder / "theirs"
    for path in (ours, theirs):
        LAYOUTS[layout](path)
    with disk.counting() as peer:
        by_pwrite(theirs, groups, record, each=each)
    async with aiommap.open(ours, "r+", flush=policy) as f:
        await f.prewarm(0, SIZE if layout != "sparse" else 0)
        with disk.counting() as own:
            for group in groups:
                await write(f, group, record)
    for path in (ours, theirs):
        path.unlink()
    return own.bytes, peer.bytes
