"""Operations that do not change a word leave the file clean and its times as they are."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE

pytestmark = pytest.mark.anyio


async def wait(f):
    with suppress(TimeoutError):
        await f.atomic_u32(0).wait(f.atomic_u32(0).load(), timeout=0.01)


async def notify(f):
    f.atomic_u32(0).notify()


async def fail_to_exchange(f):
    assert f.atomic_u32(0).compare_exchange(5, 6)[0] is False
    assert f.atomic_u64_array(8, 2).compare_exchange(1, 5, 6)[0] is False


async def fail_to_lock(f):
    async with f.file_lock(0, 8):
        with pytest.raises(TimeoutError):
            await aiommap.AsyncLock(f, 0).acquire(timeout=0)


QUIET = {"wait": wait, "notify": notify, "exchange": fail_to_exchange, "lock": fail_to_lock}


@pytest.fixture
def old(path):
    """A clean file whose times would move if anything touched it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    os.utime(path, ns=(1, 1))
    return path


@pytest.mark.parametrize("quiet", QUIET.values(), ids=QUIET)
@pytest.mark.parametrize("resized", [False, True])
async def test_unchanged_word_dirties_nothing(old, quiet, resized):
    async with aiommap.open(old, "r+") as f, aiommap.Snapshot.open(old) as snapshot:
        if resized:
            await quiet(f)
            await f.resize(64 * PAGE)  # moves the mapping
            await f.flush()
            os.utime(old, ns=(1, 1))
        before = os.stat(old)
        await quiet(f)
        after = os.stat(old)
        assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
        assert f.statistics().dirty_bytes == 0
        if not resized:
            await snapshot.verify()
