"""Reading through the cache: which requests reach the store, and what a read returns."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import OutOfBoundsError, StaleSnapshotError, UnsupportedError
from aiommap.remote import RemoteError, RemoteState
from tests.support.internals import Entry
from tests.support.objects import BLOCK, DATA, Objects
from tests.support.remote import content

pytestmark = pytest.mark.anyio


async def test_read_is_fetched_once_and_then_cached(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(5, 10) == DATA[5:15]
        assert await s.read_exact(5, BLOCK - 5) == DATA[5:BLOCK]
        assert objects.gets == [(0, BLOCK)]
        found = cache.statistics()
        assert (found.hits, found.misses, found.gets, found.heads) == (1, 1, 1, 1)
        assert (found.fetched_bytes, found.stored_blocks) == (BLOCK, 1)


async def test_adjacent_missing_blocks_are_one_request(make_cache, objects):
    async with make_cache() as cache, cache.open(objects, read_ahead=False) as s:
        await s.read_exact(BLOCK, 1)
        assert await s.read_exact(0, len(DATA)) == DATA
        assert sorted(objects.gets) == [
            (0, BLOCK),
            (BLOCK, 2 * BLOCK),
            (2 * BLOCK, 6 * BLOCK),
            (6 * BLOCK, 10 * BLOCK),
            (10 * BLOCK, len(DATA)),
        ]


async def test_second_cache_finds_what_is_there(make_cache, objects):
    async with make_cache() as cache, cache.open(objects, prewarm=True) as s:
        assert s.size == len(DATA)
    asked = len(objects.gets)
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        assert (cache.statistics().gets, len(objects.gets)) == (0, asked)


async def test_two_snapshots_share_fetches(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as one, cache.open(objects) as two:
        objects.gate.clear()
        found = []

        async def read(s):
            found.append(await s.read_exact(0, 8))

        async with anyio.create_task_group() as group:
            group.start_soon(read, one)
            group.start_soon(read, two)
            await anyio.to_thread.run_sync(objects.asked.acquire)
            objects.gate.set()
        assert found == [DATA[:8]] * 2
        assert objects.gets == [(0, BLOCK)]


async def test_read_ahead_follows_sequential_reads(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        for start in range(0, 3 * BLOCK, 1024):
            assert await s.read_exact(start, 1024) == DATA[start : start + 1024]
        assert await s.read_exact(0, len(DATA)) == DATA
        assert objects.fetched == len(DATA)
        assert len(objects.gets) < 8


async def test_chunks_cover_the_object(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        chunks = [chunk async for chunk in s.chunks(3000)]
    assert b"".join(chunks) == DATA
    assert {len(chunk) for chunk in chunks[:-1]} == {3000}
    assert objects.fetched == len(DATA)


async def test_read_many_asks_once(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        wanted = [(BLOCK * n, 3) for n in (0, 1, 2, 7)]
        assert await s.read_many(wanted) == [DATA[a : a + n] for a, n in wanted]
        assert sorted(objects.gets) == [(0, 3 * BLOCK), (7 * BLOCK, 8 * BLOCK)]


async def test_read_many_of_overlapping_ranges(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        wanted = [(BLOCK, 9), (0, 2 * BLOCK), (5, 5), (BLOCK, 9)]
        with anyio.fail_after(30):
            assert await s.read_many(wanted) == [DATA[a : a + n] for a, n in wanted]
        assert objects.gets == [(0, 2 * BLOCK)]


async def test_prewarm_tells_progress(make_cache, objects):
    seen = []
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.prewarm(0, 10, progress=lambda *pair: seen.append(pair)) == 10
        assert await s.prewarm(progress=lambda *pair: seen.append(pair)) == len(DATA)
        assert seen[-1] == (len(DATA), len(DATA))
        assert seen == sorted(seen)
        assert objects.fetched == len(DATA)


async def test_residency_tells_cached_from_remote(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        await s.read_exact(0, 1)
        await s.read_exact(2 * BLOCK, BLOCK + 1)
        found = await s.residency()
        assert (found.cached, found.remote) == (3 * BLOCK, len(DATA) - 3 * BLOCK)
        assert found.runs == ((0, BLOCK), (2 * BLOCK, 4 * BLOCK))
        assert found.resident == 3 * BLOCK


async def test_view_is_filled_and_plain_memory(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        with await s.view(BLOCK - 1, BLOCK + 2) as view:
            assert bytes(view.memory) == DATA[BLOCK - 1 : 2 * BLOCK + 1]
            first, _ = view.split_at(2)
            assert bytes(first.memory) == DATA[BLOCK - 1 : BLOCK + 1]
        with await s.view(5, 0) as view:
            assert len(view) == 0


async def test_file_fetches_in_the_reading_thread(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        with s.file() as file:
            with pytest.raises(RuntimeError, match="worker"):
                file.read()
            assert await anyio.to_thread.run_sync(file.read, 10) == DATA[:10]
            file.seek(-5, os.SEEK_END)
            assert await anyio.to_thread.run_sync(file.read) == DATA[-5:]
            assert (file.tell(), file.size) == (len(DATA), len(DATA))


async def test_hold_outlives_close(make_cache, objects):
    async with make_cache() as cache:
        s = await cache.open(objects)
        async with anyio.create_task_group() as group:
            with s.hold():
                group.start_soon(s.aclose)
                await anyio.lowlevel.checkpoint()
                assert await s.read_exact(0, 3) == DATA[:3]
                with pytest.raises(anyio.ClosedResourceError), s.hold():
                    pass
        assert s.closed


async def test_overwritten_object_is_stale_but_for_cached_blocks(make_cache, objects):
    async with make_cache() as cache, cache.open(objects, read_ahead=False) as s:
        await s.verify()
        await s.read_exact(0, 10)
        objects.put(b"new" + DATA)
        with pytest.raises(StaleSnapshotError, match="was changed") as caught:
            await s.read_exact(BLOCK, 10)
        assert (caught.value.opened_size, caught.value.size) == (len(DATA), len(DATA) + 3)
        with pytest.raises(StaleSnapshotError):
            await s.verify()
        assert await s.read_exact(5, 10) == DATA[5:15]
        async with cache.open(objects) as newer:
            assert await newer.read_exact(0, 10) == b"new" + DATA[:7]


@pytest.mark.parametrize("size", [len(DATA), 100])
async def test_server_that_ignores_if_match_is_found_out(make_cache, objects, size):
    objects.heeds_etag = False
    async with make_cache() as cache, cache.open(objects) as s:
        objects.put(bytes(size))
        with pytest.raises(StaleSnapshotError):
            await s.read_exact(0, 10)
        assert cache.statistics().stored_blocks == 0


async def test_deleted_object_is_stale(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        await s.read_exact(0, 10)
        objects.gone = True
        with pytest.raises(StaleSnapshotError, match="is gone"):
            await s.read_exact(BLOCK, 10)
        with pytest.raises(StaleSnapshotError, match="is gone"):
            await s.verify()
        assert await s.read_exact(0, 10) == DATA[:10]
        with pytest.raises(FileNotFoundError):
            await cache.open(objects)


@pytest.mark.parametrize("got", [0, 1, BLOCK - 1, BLOCK + 1])
async def test_body_of_another_length_is_never_stored(make_cache, objects, got):
    objects.change = lambda start, end: (bytes(got), objects.state)
    async with make_cache() as cache, cache.open(objects) as s:
        with pytest.raises(RemoteError, match=f"{got} bytes came") as caught:
            await s.read_exact(0, 10)
        found = caught.value
        assert (found.offset, found.length, found.attempts) == (0, BLOCK, 3)
        objects.change = None
        assert await s.read_exact(0, 10) == DATA[:10]


async def test_foreign_answer_is_asked_again(make_cache, objects):
    answers = [(bytes(BLOCK), RemoteState(len(DATA), '"foreign"'))]
    objects.change = lambda start, end: answers.pop() if answers else None
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(0, 10) == DATA[:10]
        assert (len(objects.gets), objects.stats) == (2, 2)


async def test_failed_fetch_is_told_to_each_waiter(make_cache, objects):
    def refuse(start, end):
        raise RemoteError(objects.url, "no route")

    objects.change = refuse
    errors = []
    async with make_cache() as cache, cache.open(objects) as s:

        async def read():
            try:
                await s.read_exact(0, 10)
            except RemoteError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(read)
        assert [str(error) for error in errors] == [str(errors[0])] * 3
        assert len({id(error) for error in errors}) == 3
        objects.change = None
        assert await s.read_exact(0, 10) == DATA[:10]


async def test_outage_leaves_no_zeros(make_cache, objects):
    """fsspec's own cache marks blocks before they are fetched, and then serves zeros for good."""

    def refuse(start, end):
        raise RemoteError(objects.url, "connection refused")

    async with make_cache() as cache, cache.open(objects) as s:
        objects.change = refuse
        with pytest.raises(RemoteError):
            await s.read_exact(100, 100)
        objects.change = None
        assert await s.read_exact(100, 100) == DATA[100:200]
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(100, 100) == DATA[100:200]


async def test_cancelled_reader_leaves_the_fetch_to_others(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        objects.gate.clear()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(s.read_exact, 0, 10)
                await anyio.to_thread.run_sync(objects.asked.acquire)
                scope.cancel()
        objects.gate.set()
        assert await s.read_exact(0, 10) == DATA[:10]
        assert len(objects.gets) == 1


async def test_close_waits_for_no_fetch(make_cache, objects):
    async with make_cache() as cache:
        s = await cache.open(objects)
        objects.gate.clear()
        refused = []

        async def read():
            try:
                await s.read_exact(0, 10)
            except anyio.ClosedResourceError as error:
                refused.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.to_thread.run_sync(objects.asked.acquire)
            await s.aclose()
            assert not refused
            objects.gate.set()
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(0, 10) == DATA[:10]
        assert len(objects.gets) == 1


async def test_cache_closes_while_a_fetch_hangs(make_cache, objects):
    before = threading.active_count()
    objects.gate.clear()
    async with anyio.create_task_group() as group:
        async with make_cache() as cache:
            s = await cache.open(objects)
            group.start_soon(s.read_exact, 0, 10)
            await anyio.to_thread.run_sync(objects.asked.acquire)
            group.cancel_scope.cancel()
        objects.gate.set()
    assert cache.closed
    assert threading.active_count() >= before  # the fetch ends later, in a thread of its own


class SlowToAsk(Objects):
    """An object whose ``stat`` waits until its gate is open."""

    def stat(self, known):
        self.asked.release()
        assert self.gate.wait(30)
        return super().stat(known)


async def test_an_opening_that_was_left_behind_makes_no_folder_of_a_closed_cache(
    make_cache, tmp_path
):
    objects = SlowToAsk(DATA)
    asked, gate, alive = objects.asked, objects.gate, weakref.ref(objects)
    gate.clear()
    async with make_cache() as cache, anyio.create_task_group() as group:
        group.start_soon(cache.open(objects).__aenter__)
        await anyio.to_thread.run_sync(asked.acquire)
        group.cancel_scope.cancel()
    gate.set()
    del objects, group
    with anyio.fail_after(30):
        while alive() is not None:  # until its thread has ended
            gc.collect()
            await anyio.sleep(0.01)
    assert not (tmp_path / "cache").exists()


async def test_closed_cache_is_no_garbage_of_a_cycle(make_cache, objects):
    gc.disable()
    try:
        async with make_cache() as cache, cache.open(objects) as s:
            await s.read_exact(0, 10)
        alive = weakref.ref(cache)
        del cache, s
        with anyio.fail_after(30):
            while alive() is not None:  # until its threads have ended
                await anyio.sleep(0.001)
    finally:
        gc.enable()


async def test_chunks_are_fetched_ahead_in_whole_requests(make_cache):
    request, size = 4 * BLOCK, 40 * BLOCK
    big = Objects(content(3, size))
    async with make_cache() as cache, cache.open(big) as s:
        chunks = s.chunks(3000)
        found = [await anext(chunks)]
        assert max(end for _, end in big.gets) <= size // 2
        found += [chunk async for chunk in chunks]
    assert b"".join(found) == big.data
    assert sorted(big.gets) == [(at, at + request) for at in range(0, size, request)]


async def test_bounds_are_checked(make_cache, objects):
    async with make_cache() as cache, cache.open(objects) as s:
        for call in (s.read_exact, s.prewarm, s.view):
            with pytest.raises(OutOfBoundsError):
                await call(0, len(DATA) + 1)
        with pytest.raises(OutOfBoundsError):
            await s.read_many([(0, 1), (len(DATA), 1)])
        with pytest.raises(ValueError, match="size is 0"):
            s.chunks(0)
        assert objects.gets == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"block_size": 5000}, "block_size"),
        ({"block_size": 2048}, "block_size"),
        ({"request_size": 100}, "request_size"),
        ({"min_free": 1.0}, "min_free"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"workers": 0}, "workers"),
    ],
)
def test_options_that_cannot_be_meant(make_cache, options, match):
    with pytest.raises(ValueError, match=match):
        make_cache(**options)


async def test_open_refuses_what_it_cannot_mean(make_cache, objects):
    async with make_cache() as cache:
        with pytest.raises(TypeError, match="URL"):
            cache.open(3)
        with pytest.raises(ValueError, match="validator"):
            cache.open(objects, validator="mtime")
        with pytest.raises(TypeError, match="versions"):
            await cache.open(objects, version="1")


async def test_object_without_validator_is_refused(make_cache, objects):
    objects.etag = None
    async with make_cache() as cache:
        with pytest.raises(UnsupportedError, match='validator="modified"'):
            await cache.open(objects)
        with pytest.raises(UnsupportedError, match="modified"):
            await cache.open(objects, validator="modified")
        objects.modified = "then"
        async with cache.open(objects, validator="modified") as s:
            assert await s.read_exact(0, 4) == DATA[:4]
            assert s.etag is None
        async with cache.open(objects, validator="none") as s:
            assert await s.read_exact(0, 4) == DATA[:4]


async def test_offline_asks_nothing(make_cache, objects):
    async with make_cache() as cache:
        with pytest.raises(FileNotFoundError, match="cached"):
            await cache.open(objects, offline=True)
        async with cache.open(objects) as s:
            await s.read_exact(0, 4)
        objects.put(b"other")
        async with cache.open(objects) as s:
            await s.read_exact(0, 4)
        asked = objects.stats
        async with cache.open(objects, offline=True) as s:
            assert s.size == 5
            assert await s.read_exact(0, 4) == b"othe"
        assert objects.stats == asked


async def test_hub_reads_what_is_cached(make_cache, objects):
    async with aiommap.Hub() as hub, make_cache() as cache:
        async with cache.open(objects, hub=hub) as s:
            await s.read_exact(0, 4)
            assert len(hub.files) == 1
        assert hub.files == ()


async def test_entries_list_the_last_opened_first(make_cache, objects):
    async with make_cache() as cache:
        async with cache.open(objects) as s:
            await s.read_exact(0, 4)
        objects.put(DATA[:100])
        async with cache.open(objects) as s:
            await s.read_exact(0, 4)
            found = await cache.entries()
            assert [entry.state.size for entry in found] == [100, len(DATA)]
            assert [entry.in_use for entry in found] == [True, False]
            assert [entry.cached_bytes for entry in found] == [100, BLOCK]
            assert {entry.url for entry in found} == {objects.url}


async def test_clear_gives_the_disk_back(make_cache, objects):
    async with make_cache() as cache:
        async with cache.open(objects, prewarm=True) as s:
            assert await cache.clear(objects) >= len(DATA) - BLOCK
            assert await s.read_exact(0, 9) == DATA[:9]
        assert await cache.clear() > 0
        assert await cache.entries() == ()
        assert cache.statistics().used_bytes == 0


async def test_closed_snapshots_leave_nothing_behind(make_cache, objects):
    """Of twenty openings nothing remains, but for what a thread has not let go yet."""

    def count():
        gc.collect()
        return sum(isinstance(found, Entry) for found in gc.get_objects())

    async with make_cache() as cache:
        before = count()
        for _ in range(20):
            async with cache.open(objects) as s:
                await s.read_exact(0, 8)
        assert count() - before <= 2
