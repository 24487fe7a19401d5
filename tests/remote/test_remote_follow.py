"""Following an object that is overwritten: what comes into service, and what is reported."""

from __future__ import annotations

import gc
import threading
from contextlib import AsyncExitStack

import anyio
import obstore
import pytest
from anyio.lowlevel import checkpoint
from obstore.store import MemoryStore

from aiommap import StaleSnapshotError
from aiommap.remote import ObstoreSource, RemoteError
from tests.support.objects import BLOCK, DATA

pytestmark = pytest.mark.anyio

#: A poll interval of about one turn of the loop.
SOON = 0.001


async def next_of(iteration):
    with anyio.fail_after(30):
        return await anext(iteration)


async def test_overwritten_object_is_put_in_service(make_cache, objects):
    async with make_cache() as cache, cache.follow(objects, poll_interval=SOON) as live:
        assert (live.generation, live.url) == (1, objects.url)
        old = live.current
        assert await old.read_exact(0, 8) == DATA[:8]
        generations = aiter(live)
        assert await next_of(generations) is old
        objects.put(b"new bytes")
        new = await next_of(generations)
        assert new is live.current
        assert await new.read_exact(0, 9) == b"new bytes"
        assert await old.read_exact(0, 8) == DATA[:8]  # cached
    assert (live.closed, old.closed, new.closed) == (True, True, True)
    with pytest.raises(anyio.ClosedResourceError):
        _ = live.current


async def test_old_generation_is_closed_as_garbage(make_cache, objects):
    async with make_cache() as cache, cache.follow(objects, poll_interval=SOON) as live:
        generations = aiter(live)
        await next_of(generations)
        for number in range(3):
            objects.put(b"%d" % number)
            assert await (await next_of(generations)).read_exact(0, 1) == b"%d" % number
        gc.collect()
        with anyio.fail_after(30):
            while cache.statistics().open_objects > 1:
                await anyio.sleep(SOON)


async def test_hot_ranges_are_fetched_before_the_swap(make_cache, objects):
    async with make_cache() as cache, cache.follow(objects, poll_interval=SOON) as live:
        generations = aiter(live)
        old = await next_of(generations)
        await old.read_many([(2 * BLOCK, 1), (10 * BLOCK, 1)])
        objects.put(bytes(reversed(DATA)))
        new = await next_of(generations)
        found = await new.residency()
        assert found.runs == ((2 * BLOCK, 3 * BLOCK), (10 * BLOCK, len(DATA)))


@pytest.mark.parametrize(("prewarm", "cached"), [("all", len(DATA)), ("none", 0)])
async def test_prewarm_says_what_is_fetched(make_cache, objects, prewarm, cached):
    async with make_cache() as cache, cache.follow(objects, prewarm=prewarm) as live:
        assert (await live.current.residency()).cached == cached


async def test_bad_object_is_reported_once_and_not_served(make_cache, objects):
    errors = []

    async def validate(s):
        return await s.read_exact(0, 3) != b"bad"

    cache = make_cache()
    following = cache.follow(objects, poll_interval=SOON, validate=validate, on_error=errors.append)
    async with cache, following as live:
        objects.put(b"bad object")
        with anyio.fail_after(30):
            while not errors:
                await anyio.sleep(SOON)
        asked = objects.stats
        with anyio.fail_after(30):
            while objects.stats < asked + 5:
                await anyio.sleep(SOON)
        assert (len(errors), live.generation) == (1, 1)
        assert "validate returned False" in str(errors[0])
        objects.put(b"good")
        generations = aiter(live)
        while (await next_of(generations)).size != 4:
            pass


async def test_outage_is_reported_once_and_got_over(make_cache, objects):
    errors = []
    cache = make_cache()
    async with cache, cache.follow(objects, poll_interval=SOON, on_error=errors.append) as live:
        generations = aiter(live)
        await next_of(generations)
        objects.down = RemoteError(objects.url, "no route")
        with anyio.fail_after(30):
            while not errors:
                await anyio.sleep(SOON)
        objects.put(b"new")
        objects.down = None
        assert await (await next_of(generations)).read_exact(0, 3) == b"new"
        assert [str(error) for error in errors] == [str(RemoteError(objects.url, "no route"))]


async def test_load_swaps_the_value_with_the_snapshot(make_cache, objects):
    async def load(s):
        return (await s.read_exact(0, s.size)).decode()

    objects.put(b"one")
    async with make_cache() as cache, cache.follow(objects, poll_interval=SOON, load=load) as live:
        assert live.value == "one"
        generations = aiter(live)
        await next_of(generations)
        objects.put(b"two")
        await next_of(generations)
        assert live.value == "two"


async def test_pointer_names_the_object_to_serve(make_cache):
    store = MemoryStore()
    obstore.put(store, "data/one", b"1")
    obstore.put(store, "data/two", b"22")
    obstore.put(store, "data/LATEST", b"one\n")
    pointer = ObstoreSource(store, "data/LATEST")
    cache = make_cache()
    async with cache, cache.follow(pointer, poll_interval=SOON, pointer=True) as live:
        assert await live.current.read_exact(0, 1) == b"1"
        generations = aiter(live)
        await next_of(generations)
        obstore.put(store, "data/LATEST", b"two")
        new = await next_of(generations)
        assert await new.read_exact(0, 2) == b"22"
        assert new.url.endswith("/data/two")


@pytest.mark.parametrize("text", [b"", b"nowhere"])
async def test_first_pointer_has_to_be_good(make_cache, text):
    store = MemoryStore()
    obstore.put(store, "LATEST", text)
    async with make_cache() as cache:
        with pytest.raises((ValueError, FileNotFoundError)):
            await cache.follow(ObstoreSource(store, "LATEST"), pointer=True)


async def test_all_who_follow_a_key_share_its_polls(make_cache, objects):
    interval, followers = 0.02, 8
    async with make_cache() as cache, AsyncExitStack() as stack:
        began, asked = anyio.current_time(), objects.stats
        lives = [
            await stack.enter_async_context(cache.follow(objects, poll_interval=interval))
            for _ in range(followers)
        ]
        opened = objects.stats - asked
        for number in range(5):
            objects.put(b"%d" % number)
            with anyio.fail_after(30):
                while any(live.generation < number + 2 for live in lives):
                    await anyio.sleep(interval / 4)
        reopened = 5 * followers
        polls = objects.stats - asked - opened - reopened
        turns = (anyio.current_time() - began) / interval
    assert {live.generation for live in lives} == {6}
    assert 5 <= polls <= turns + 1


async def test_follower_of_a_key_that_another_follows_rarely(make_cache, objects):
    async with make_cache() as cache, cache.follow(objects, poll_interval=3600) as rarely:
        async with cache.follow(objects, poll_interval=SOON) as often:
            generations = aiter(often)
            await next_of(generations)
            objects.put(b"new")
            assert await (await next_of(generations)).read_exact(0, 3) == b"new"
        assert rarely.generation == 1


async def test_poll_goes_on_when_the_follower_that_asked_ends(make_cache, objects):
    """The state is asked for by one of them, and that one ends before the answer comes."""
    began, answer = threading.Semaphore(0), threading.Event()

    class Slow:
        url = objects.url
        fetch = objects.fetch

        def stat(self, known):
            began.release()
            assert answer.wait(30)
            return objects.stat(known)

    answer.set()
    slow = Slow()
    async with make_cache() as cache:
        first = await cache.follow(slow, poll_interval=SOON)
        second = await cache.follow(slow, poll_interval=SOON)
        answer.clear()
        while began.acquire(blocking=False):
            pass
        await anyio.to_thread.run_sync(began.acquire)
        await first.aclose()
        objects.put(b"new")
        answer.set()
        generations = aiter(second)
        while (await next_of(generations)).size != 3:
            pass
        await second.aclose()


async def test_equal_sources_are_of_one_store_and_object():
    store, other = MemoryStore(), MemoryStore()
    source = ObstoreSource(store, "a")
    assert source == ObstoreSource(store, "a")
    assert hash(source) == hash(ObstoreSource(store, "a"))
    assert source not in (
        ObstoreSource(store, "b"),
        ObstoreSource(other, "a"),
        source.at_version("1"),
        "a",
    )


async def test_held_generation_outlives_following(make_cache, objects):
    async with make_cache() as cache:
        live = await cache.follow(objects, poll_interval=SOON)
        s = live.current
        async with anyio.create_task_group() as group:
            with s.hold():
                group.start_soon(live.aclose)
                await anyio.lowlevel.checkpoint()
                assert await s.read_exact(0, 4) == DATA[:4]
        assert s.closed


async def test_follow_refuses_what_it_cannot_mean(make_cache, objects):
    async with make_cache() as cache:
        for options in ({"poll_interval": 0}, {"prewarm": "warm"}):
            with pytest.raises(ValueError, match=next(iter(options))):
                cache.follow(objects, **options)
        with pytest.raises(TypeError, match="validate"):
            cache.follow(objects, validate=3)


@pytest.mark.slow
async def test_readers_get_one_version_each(make_cache, objects):
    """Sixty overwrites under sixteen readers: the bytes of each read are of one version."""
    over = anyio.Event()
    wrong = []

    def version(number):
        return number.to_bytes(4, "little") * (BLOCK // 2)

    async def read(live):
        while not over.is_set():
            with live.current.hold() as s:
                try:
                    data = await s.read_exact(0, s.size)
                except StaleSnapshotError:  # overwritten, and its blocks evicted for newer ones
                    continue
            if len(set(zip(*[iter(data)] * 4, strict=True))) != 1:
                wrong.append(data[:16])
            # Without this each step of following would wait for sixteen time slices.
            await checkpoint()

    objects.put(version(0))
    cache = make_cache(max_bytes=100 * BLOCK)
    following = cache.follow(objects, poll_interval=SOON, prewarm="all", on_error=list)
    async with cache, following as live, anyio.create_task_group() as group:
        for _ in range(16):
            group.start_soon(read, live)
        generations = aiter(live)
        for number in range(1, 61):
            objects.put(version(number))
            await next_of(generations)
        over.set()
    assert wrong == []
