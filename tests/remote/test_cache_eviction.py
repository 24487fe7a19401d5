"""Room for new blocks: which blocks are evicted, which stay, and that the budget always holds."""

from __future__ import annotations

import os
import random
import subprocess
import threading

import anyio
import anyio.to_thread
import pytest

from tests.support.internals import budget, entry, eviction
from tests.support.objects import BLOCK, DATA, Objects
from tests.support.remote import content

pytestmark = pytest.mark.anyio

#: How many blocks of an object the cache has room for, besides its map and its list of extents.
ROOM = 6
MAX = (ROOM + 6) * BLOCK


def used(folder):
    total = 0
    for path in [*folder.glob("*.data"), *folder.glob("*.map")]:
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


async def test_budget_holds_under_random_reads(make_cache, objects, tmp_path):
    draw = random.Random(7)
    async with make_cache(max_bytes=MAX) as cache, cache.open(objects, read_ahead=False) as s:
        for _ in range(60):
            start = draw.randrange(len(DATA))
            length = min(draw.randrange(2 * BLOCK), len(DATA) - start)
            assert await s.read_exact(start, length) == DATA[start : start + length]
            assert used(tmp_path / "cache") <= MAX
        found = cache.statistics()
        assert found.evicted_blocks > 0
        assert found.used_bytes <= MAX


async def test_recount_leaves_room_for_the_list_of_extents(make_cache, objects):
    """The list grows when the kernel writes blocks back to scattered places, after the recount."""
    draw = random.Random(7)
    async with make_cache(max_bytes=MAX) as cache, cache.open(objects, read_ahead=False) as s:
        for _ in range(60):
            await s.read_exact(draw.randrange(len(DATA) - 9), 9)
        assert cache.statistics().evicted_blocks > 0
        (found,) = await cache.entries()
    the_map, the_list = 2 * BLOCK, 2 * BLOCK
    assert 0 < found.cached_bytes <= MAX - the_map - the_list


async def test_budget_holds_with_much_reserved_ahead(make_cache, tmp_path, monkeypatch):
    """A process uses the bytes that it has reserved ahead, or gives them back: none are lost."""
    monkeypatch.setattr(budget, "AHEAD_SHARE", 8)
    folder, most, draw = tmp_path / "cache", 128 * BLOCK, random.Random(3)
    big = Objects(content(1, 200 * BLOCK))
    async with (
        make_cache(max_bytes=most) as one,
        make_cache(max_bytes=most) as two,
        one.open(big, read_ahead=False) as first,
        two.open(big, read_ahead=False) as second,
    ):
        for _ in range(150):
            for snapshot in (first, second):
                start = draw.randrange(len(big.data) - 9)
                assert await snapshot.read_exact(start, 9) == big.data[start : start + 9]
            assert used(folder) <= most
        assert one.statistics().evicted_blocks + two.statistics().evicted_blocks > 0
        await one.clear()
        for snapshot in (first, second):  # there is room to reserve ahead
            assert await snapshot.read_exact(0, 9) == big.data[:9]
            assert await snapshot.read_exact(9 * BLOCK, 9) == big.data[9 * BLOCK :][:9]
    async with make_cache(max_bytes=most) as cache:
        await cache.entries()
        assert used(folder) <= cache.statistics().used_bytes <= used(folder) + 8 * BLOCK


async def test_bytes_reserved_ahead_count_as_free(make_cache, objects):
    async with make_cache() as cache, cache.open(objects, prewarm=True):
        assert len(DATA) <= cache.statistics().used_bytes <= len(DATA) + 8 * BLOCK


async def test_block_that_is_read_again_stays(make_cache, objects):
    async with make_cache(max_bytes=MAX) as cache, cache.open(objects, read_ahead=False) as s:
        for block in range(1, 11):
            await s.read_exact(0, 8)
            await s.read_exact(block * BLOCK, 8)
        assert objects.gets.count((0, BLOCK)) <= 2
        assert cache.statistics().evicted_blocks > 0


async def test_unused_object_goes_first(make_cache, objects, tmp_path):
    other = Objects(DATA[: 4 * BLOCK], url="test://h/other")
    async with make_cache(max_bytes=MAX) as cache:
        async with cache.open(other, prewarm=True):
            pass
        async with cache.open(objects) as s:
            for _ in range(2):
                await s.read_exact(0, len(DATA))
            urls = [entry.url for entry in await cache.entries() if entry.cached_bytes]
            assert urls == [objects.url]
            assert used(tmp_path / "cache") <= MAX


async def test_view_keeps_its_blocks(make_cache, objects):
    async with make_cache(max_bytes=MAX) as cache, cache.open(objects, read_ahead=False) as s:
        view = await s.view(0, 2 * BLOCK)
        memory = view.memory[BLOCK:]
        view.release()
        for _ in range(3):
            for block in range(2, 11):
                await s.read_exact(block * BLOCK, 100)
        assert bytes(memory) == DATA[BLOCK : 2 * BLOCK]
        assert cache.statistics().evicted_blocks > 0
        assert await cache.clear() > 0
        assert bytes(memory) == DATA[BLOCK : 2 * BLOCK]
        del memory


async def test_view_without_room_says_so(make_cache, objects):
    async with make_cache(max_bytes=MAX) as cache, cache.open(objects) as s:
        with pytest.raises(OSError, match="max_bytes"):
            await s.view()
        assert await s.read_exact(0, len(DATA)) == DATA


async def test_cache_without_room_stores_nothing(make_cache, objects, tmp_path):
    async with make_cache(max_bytes=0) as cache, cache.open(objects) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        assert (await s.residency()).cached == 0
        assert await s.prewarm(0, BLOCK) == 0
        assert used(tmp_path / "cache") == 0
        assert cache.statistics().unstored_blocks >= 11


async def test_dead_reservation_is_found_by_a_recount(make_cache, objects, tmp_path):
    """A process that died with bytes reserved leaves the count too high until room is needed."""
    state = tmp_path / "cache" / "aiommap-cache"
    async with make_cache(max_bytes=MAX) as cache, cache.open(objects, read_ahead=False) as s:
        await s.read_exact(0, 8)
        with state.open("r+b") as file:
            file.seek(64)
            file.write((MAX).to_bytes(8, "little"))
            file.seek(128 + 8 * 300)
            file.write((BLOCK).to_bytes(8, "little"))
        await s.read_exact(BLOCK, 8)
        assert (await s.residency()).cached == 2 * BLOCK


@pytest.mark.slow
async def test_readers_beside_an_evictor_get_true_bytes(make_cache, tmp_path):
    data = os.urandom(64 * BLOCK)
    objects = Objects(data)
    limit = 24 * BLOCK
    over = threading.Event()
    most = 0

    def sample():
        nonlocal most
        while not over.is_set():
            most = max(most, used(tmp_path / "cache"))

    async def read(s, seed):
        draw = random.Random(seed)
        for _ in range(150):
            start = draw.randrange(len(data))
            length = min(draw.randrange(1, 3 * BLOCK), len(data) - start)
            assert await s.read_exact(start, length) == data[start : start + length]

    async with make_cache(max_bytes=limit) as cache, cache.open(objects) as s:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, sample)
            async with anyio.create_task_group() as readers:
                for seed in range(16):
                    readers.start_soon(read, s, seed)
            over.set()
        assert cache.statistics().evicted_blocks > 100
    assert 0 < most <= limit


async def test_read_of_a_block_that_is_being_given_up(make_cache, objects, monkeypatch):
    """The evictor looks at words, then makes the hole: bytes stored in between would be lost."""
    arrived, go = threading.Event(), threading.Event()
    punch = eviction.punch_hole

    def held(*args):
        arrived.set()
        assert go.wait(30)
        punch(*args)

    monkeypatch.setattr(entry, "HEDGE_SECONDS", 0.2)
    async with make_cache() as cache, cache.open(objects, read_ahead=False) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        async with anyio.create_task_group() as group:
            monkeypatch.setattr(eviction, "punch_hole", held)
            group.start_soon(cache.clear)
            assert await anyio.to_thread.run_sync(arrived.wait, 30)
            assert await s.read_exact(0, BLOCK) == DATA[:BLOCK]
            go.set()
        assert await s.read_exact(0, len(DATA)) == DATA


@pytest.fixture
def earlier(tmp_path):
    """A folder of the layout before this one, with one object, and a stranger's file."""
    folder = tmp_path / "cache"
    below = folder / "ab"
    below.mkdir(parents=True, mode=0o700)
    (folder / "aiommap-cache").write_bytes(b"A cache of aiommap.remote. It may be deleted.\n")
    for name in ("state", "leases"):
        (folder / name).write_bytes(bytes(100))
    for suffix in ("data", "map"):
        (below / f"{'ab' * 32}.{suffix}").write_bytes(os.urandom(2 * BLOCK))
    (folder / "cd").mkdir()
    (folder / "cd" / "notes").write_bytes(b"a stranger's")
    return folder


def used_earlier(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.glob("ab/*"))


async def test_earlier_layout_counts_and_goes_first(make_cache, objects, earlier):
    before = await anyio.to_thread.run_sync(used_earlier, earlier)
    assert before
    async with make_cache(max_bytes=MAX) as cache, cache.open(objects, read_ahead=False) as s:
        assert cache.statistics().used_bytes >= before
        await s.read_exact(0, 8)
        assert used(earlier) + used_earlier(earlier) <= MAX
        for _ in range(2):
            await s.read_exact(0, len(DATA))
            assert used(earlier) + used_earlier(earlier) <= MAX
    assert sorted(os.listdir(earlier / "cd")) == ["notes"]
    assert not {"ab", "state", "leases"} & {*os.listdir(earlier)}


async def test_clear_gives_up_the_earlier_layout(make_cache, objects, earlier):
    before = await anyio.to_thread.run_sync(used_earlier, earlier)
    async with make_cache() as cache:
        assert await cache.clear(objects) == 0
        assert used_earlier(earlier) == before
        assert await cache.clear() == before
        assert cache.statistics().used_bytes == 0
    assert sorted(os.listdir(earlier)) == ["aiommap-cache", "cd"]


@pytest.fixture
def undeletable(earlier):
    """The folder with the earlier layout, whose object cannot be deleted."""
    below = earlier / "ab"
    if os.geteuid():
        below.chmod(0o500)
    elif subprocess.run(["chattr", "+i", below], capture_output=True).returncode:
        pytest.skip("root deletes everything, and this file system makes nothing immutable")
    yield earlier
    if os.geteuid():
        below.chmod(0o700)
    else:
        subprocess.run(["chattr", "-i", below], check=True)


async def test_earlier_files_that_cannot_be_deleted_count(make_cache, objects, undeletable):
    before = await anyio.to_thread.run_sync(used_earlier, undeletable)
    async with make_cache(max_bytes=MAX) as cache:
        async with cache.open(objects, read_ahead=False) as s:
            for _ in range(3):
                assert await s.read_exact(0, len(DATA)) == DATA
                assert used(undeletable) + used_earlier(undeletable) <= MAX
                assert before < cache.statistics().used_bytes <= MAX
        taken = used(undeletable)
        assert (await cache.clear(), used(undeletable)) == (taken, 0)
        assert cache.statistics().used_bytes >= before
    assert used_earlier(undeletable) == before
    assert {"state", "leases"} < {*os.listdir(undeletable)}


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes single files immutable")
async def test_earlier_files_go_when_the_last_one_can(make_cache, earlier):
    """``state`` and ``leases`` stay until no file of an object is left."""
    kept = min(earlier.glob("ab/*"))
    size = kept.stat().st_blocks * 512
    before = await anyio.to_thread.run_sync(used_earlier, earlier)
    async with make_cache() as cache:
        if subprocess.run(["chattr", "+i", kept], capture_output=True).returncode:
            pytest.skip("this file system makes nothing immutable")
        try:
            assert await cache.clear() == before - size
            assert used_earlier(earlier) == size
            assert {"state", "leases"} < {*os.listdir(earlier)}
        finally:
            subprocess.run(["chattr", "-i", kept], check=True)
        assert await cache.clear() == size
    assert sorted(os.listdir(earlier)) == ["aiommap-cache", "cd"]
