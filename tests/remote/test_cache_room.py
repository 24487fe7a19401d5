"""Too little room: what views pin, what is kept of a request, and what the cache tells of it."""

from __future__ import annotations

import errno
import logging

import anyio
import pytest

from tests.support.internals import eviction, requests_ahead
from tests.support.objects import BLOCK, DATA, Objects
from tests.support.remote import content
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

#: Two objects of 40 blocks; maps and lists of extents take 4 blocks each.
SIZE = 40 * BLOCK
MAX = 32 * BLOCK
PINNED = 16 * BLOCK


@pytest.fixture
def pinned():
    return Objects(content(1, SIZE), url="test://host/pinned")


@pytest.fixture
def other():
    return Objects(content(2, SIZE), url="test://host/other")


async def test_pinned_range_stays_cached_while_another_object_needs_room(make_cache, pinned, other):
    async with (
        make_cache(max_bytes=MAX) as cache,
        cache.open(pinned, read_ahead=False) as s,
        cache.open(other, read_ahead=False) as t,
    ):
        view = await s.view(0, PINNED)
        for _ in range(3):
            kept = await t.prewarm(0, 20 * BLOCK)
            assert 0 < kept < 20 * BLOCK
            assert (await s.residency()).runs == ((0, PINNED),)
            before = cache.statistics()
            assert await s.read_exact(PINNED - 9, 9) == pinned.data[PINNED - 9 : PINNED]
            after = cache.statistics()
            assert (after.gets, after.verified_blocks) == (before.gets, before.verified_blocks)
        view.release()


async def test_view_over_a_range_in_the_middle_lets_the_others_go(make_cache, pinned, other):
    async with (
        make_cache(max_bytes=MAX) as cache,
        cache.open(pinned, read_ahead=False) as s,
        cache.open(other, read_ahead=False) as t,
    ):
        views = [await s.view(at * BLOCK, BLOCK) for at in (3, 9, 14)]
        await s.prewarm(0, 20 * BLOCK)
        assert await t.prewarm(0, 18 * BLOCK) > 8 * BLOCK  # 4 blocks were free
        found = await s.residency()
        kept = {at for start, end in found.runs for at in range(start // BLOCK, end // BLOCK)}
        assert {3, 9, 14} <= kept
        assert len(kept) < 20
        for view in views:
            view.release()


async def test_room_of_a_released_view_is_free_at_once(make_cache, pinned, other):
    async with (
        make_cache(max_bytes=MAX) as cache,
        cache.open(pinned, read_ahead=False) as s,
        cache.open(other, read_ahead=False) as t,
    ):
        view = await s.view(0, 20 * BLOCK)
        view.release()
        assert await t.prewarm(0, PINNED) == PINNED


async def test_room_that_another_thread_takes_is_made_again(make_cache, pinned, other, monkeypatch):
    """While an evictor makes room, another thread reserves without waiting for it."""
    evict, taken = eviction.FolderRoom._evict, []

    def evict_and_lose(room, wanted):
        made = evict(room, wanted)
        if True not in taken:
            taken.append(room._folder.budget.reserve(wanted))
        return made

    monkeypatch.setattr(eviction.FolderRoom, "_evict", evict_and_lose)
    async with (
        make_cache(max_bytes=MAX) as cache,
        cache.open(pinned, read_ahead=False) as s,
        cache.open(other, read_ahead=False) as t,
    ):
        await s.prewarm(0, 20 * BLOCK)
        await t.prewarm(0, PINNED)
        assert cache.statistics().unstored_blocks == 0
    assert True in taken


async def test_what_fits_of_a_request_is_kept(make_cache, other):
    async with make_cache(max_bytes=MAX, request_size=64 * BLOCK) as cache, cache.open(other) as s:
        assert await s.read_exact(0, SIZE) == other.data
        assert 20 * BLOCK <= (await s.residency()).cached < SIZE
        assert cache.statistics().used_bytes <= MAX


def test_at_most_a_quarter_of_the_cache_is_fetched_ahead():
    assert [requests_ahead(limit, 8) for limit in (0, 31, 32, 95, 128, 1 << 40)] == [
        0,
        0,
        1,
        2,
        4,
        4,
    ]


async def test_disk_without_room_is_told_once(make_cache, pinned, other):
    failures = []
    async with make_cache(min_free=0.99999, on_error=failures.append) as cache:
        for objects in (pinned, other):
            async with cache.open(objects) as s:
                assert await s.read_exact(0, SIZE) == objects.data
                assert await s.prewarm() == 0
                with pytest.raises(OSError, match=r"disk has \d+ of \d+ bytes free.*min_free=0.99"):
                    await s.view(0, BLOCK)
        await until(lambda: failures)
        assert cache.statistics().errors == 1
    (failure,) = failures
    assert failure.errno == errno.ENOSPC
    assert "smaller min_free" in str(failure)
    assert str(cache.folder) in str(failure)


async def test_disk_without_room_is_logged(make_cache, pinned, caplog):
    caplog.set_level(logging.WARNING, "aiommap.remote")
    async with make_cache(min_free=0.99999) as cache, cache.open(pinned) as s:
        assert await s.read_exact(0, SIZE) == pinned.data
        await until(lambda: caplog.records)
        assert await s.read_exact(0, SIZE) == pinned.data
    (record,) = caplog.records
    assert "Make room on the disk" in record.getMessage()


async def test_small_limit_is_no_failure(make_cache, objects):
    failures = []
    async with make_cache(max_bytes=0, on_error=failures.append) as cache, cache.open(objects) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        with pytest.raises(OSError, match=r"max_bytes=0.*larger max_bytes"):
            await s.view(0, BLOCK)
        assert cache.statistics().errors == 0
    assert failures == []


async def test_cache_with_a_smaller_limit_gives_up_the_rest(make_cache, pinned, other):
    async with make_cache() as cache:
        for objects in (pinned, other):
            await (await cache.open(objects, prewarm=True)).aclose()
        held = cache.statistics().used_bytes
        assert held >= 2 * SIZE
    async with make_cache(max_bytes=2 * held) as cache:
        assert cache.statistics().used_bytes >= 2 * SIZE
        assert cache.statistics().evicted_blocks == 0
    async with make_cache(max_bytes=MAX) as cache, cache.open(pinned) as s:
        await until(lambda: cache.statistics().used_bytes <= MAX)
        assert sum(entry.cached_bytes for entry in await cache.entries()) > 0
        assert await s.read_exact(0, SIZE) == pinned.data
        assert cache.statistics().errors == 0


async def test_cache_with_no_room_at_all_gives_up_everything(make_cache, pinned):
    async with make_cache() as cache, cache.open(pinned, prewarm=True):
        pass
    async with make_cache(max_bytes=0) as cache:
        await until(lambda: cache.statistics().used_bytes == 0)
        assert await cache.entries() == ()


async def test_smaller_limit_leaves_what_a_view_pins(make_cache, pinned):
    async with (
        make_cache() as first,
        first.open(pinned, prewarm=True) as s,
    ):
        with await s.view(0, PINNED) as view:
            async with make_cache(max_bytes=4 * BLOCK) as second:
                await until(lambda: second.statistics().evicted_blocks >= (SIZE - PINNED) // BLOCK)
                assert bytes(view.memory) == pinned.data[:PINNED]
                assert (await s.residency()).runs == ((0, PINNED),)


async def test_disk_without_room_gives_up_nothing_by_opening(make_cache, pinned):
    """A cache that is only read, as offline, keeps its blocks."""
    async with make_cache() as cache, cache.open(pinned, prewarm=True):
        pass
    async with (
        make_cache(min_free=0.99999) as cache,
        cache.open(pinned, offline=True) as s,
    ):
        assert await s.read_exact(0, SIZE) == pinned.data
        assert (cache.statistics().gets, cache.statistics().evicted_blocks) == (0, 0)


async def test_entering_makes_no_folder(make_cache):
    async with make_cache() as cache:
        assert cache.statistics().used_bytes == 0
    assert not await anyio.Path(cache.folder).exists()
