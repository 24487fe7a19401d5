"""Allocators of a file: their beginning, their state, verbs of ranges, and threads."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from itertools import pairwise

import anyio
import pytest
from anyio.lowlevel import checkpoint

import aiommap
from aiommap import PAGE_SIZE as PAGE

pytestmark = pytest.mark.anyio
SIZE = 16 * PAGE


@pytest.fixture
async def file(path):
    async with aiommap.open(path, "r+") as f:
        yield f


@pytest.fixture
def alloc(file):
    """An allocator of a hundred bytes, from 1000 on."""
    return file.allocator(1000, end=1100)


# The beginning of an allocator.


@pytest.mark.parametrize("mode", ["w+", "x+"])
async def test_new_file_is_free_from_its_start(tmp_path, mode):
    async with aiommap.open(tmp_path / "new", mode, size=SIZE) as f:
        alloc = f.allocator(alignment=PAGE)
        assert (alloc.start, alloc.end, alloc.alignment) == (0, SIZE, PAGE)
        assert (alloc.remaining, alloc.largest, alloc.unclaimed) == (SIZE, SIZE, ())
        assert alloc.allocate(1).offset == 0
        alloc.close()
        with pytest.raises(ValueError, match=r"handed out before: pass state=.* or start="):
            f.allocator()


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
async def test_existing_file_is_never_free(path, mode):
    async with aiommap.open(path, mode) as f:
        for options in ({}, {"alignment": PAGE}, {"end": SIZE}):
            with pytest.raises(ValueError, match=r"handed out before: pass state=.* or start="):
                f.allocator(**options)
        alloc = f.allocator(5 * PAGE)
        assert (alloc.start, alloc.end, alloc.alignment) == (5 * PAGE, SIZE, 1)


@pytest.mark.parametrize(
    ("start", "end"),
    [(-1, None), (SIZE + 1, None), (0, SIZE + 1), (10, 9), (2**64, None), (0, 2**64)],
)
async def test_span_outside_the_file_is_refused(file, start, end):
    with pytest.raises(aiommap.OutOfBoundsError, match=r"only 65536|cannot be negative"):
        file.allocator(start, end=end)
    assert file.allocator(0).remaining == SIZE


async def test_open_allocators_have_disjoint_spans(file):
    first = file.allocator(PAGE, end=2 * PAGE)
    for start, end in ((0, PAGE + 1), (PAGE, 2 * PAGE), (2 * PAGE - 1, SIZE), (0, SIZE)):
        with pytest.raises(aiommap.OverlapError, match="share bytes") as caught:
            file.allocator(start, end=end)
        assert (caught.value.first, caught.value.second) == ((start, end), (PAGE, 2 * PAGE))
    file.allocator(0, end=PAGE)
    file.allocator(2 * PAGE)
    first.close()
    file.allocator(PAGE, end=2 * PAGE)


@pytest.mark.parametrize("alignment", [0, 3, -PAGE, PAGE + 1])
async def test_odd_alignment_is_refused(file, alignment):
    with pytest.raises(ValueError, match=f"alignment is {alignment}: use a power of two"):
        file.allocator(0, alignment)


async def test_allocator_of_what_a_file_grew_by(file):
    old = file.allocator(0)
    await file.resize(SIZE + PAGE)
    new = file.allocator(SIZE)
    assert (old.end, new.end) == (SIZE, SIZE + PAGE)
    receipt = await file.write_range(new.allocate(PAGE), bytes(PAGE))
    assert (receipt.offset, receipt.length) == (SIZE, PAGE)


def test_align_helpers_round_to_pages():
    assert [aiommap.align_up(n) for n in (0, 1, PAGE, PAGE + 1)] == [0, PAGE, PAGE, 2 * PAGE]
    assert [aiommap.align_down(n) for n in (0, PAGE - 1, PAGE + 1)] == [0, 0, PAGE]
    assert (aiommap.align_up(2**64 - 1), aiommap.align_up(9, 8)) == (2**64, 16)
    for align in (aiommap.align_up, aiommap.align_down):
        with pytest.raises(ValueError, match="alignment is 12"):
            align(5, 12)


# State.


async def test_restore_never_hands_out_live_bytes(path):
    rng = random.Random(3)
    async with aiommap.open(path, "r+") as f:
        alloc = f.allocator(100, 8)
        live = [alloc.allocate(rng.randrange(1, 900)) for _ in range(60)]
        for allocated in rng.sample(live, 30):
            alloc.free(allocated)
            live.remove(allocated)
        content = {}
        for number, allocated in enumerate(live):
            content[allocated.offset, allocated.length] = bytes([number]) * allocated.length
            await f.write_range(allocated, bytes([number]) * allocated.length)
    state = alloc.state()  # this also works after the file was closed

    async with aiommap.open(path, "r+") as f:
        again = f.allocator(state=state)
        assert (again.remaining, again.largest) == (alloc.remaining, alloc._table.largest())
        assert again.unclaimed == tuple(sorted(content))
        while again.largest:
            allocated = again.allocate(again.largest)
            await f.write_range(allocated, b"\xff" * allocated.length)
        for span, data in content.items():
            assert await f.read_range(again.claim(*span)) == data
        assert again.unclaimed == ()


async def test_restore_refuses_state_up_front(path):
    async with aiommap.open(path, "r+") as f:
        alloc = f.allocator(PAGE)
        alloc.allocate(10)
        state = alloc.state()
        alloc.close()
        flipped = state[:20] + bytes([state[20] ^ 1]) + state[21:]
        for bad, match in (
            (flipped, "is damaged"),
            (state[:-1], "is damaged"),
            (b"", "not the saved state"),
        ):
            with pytest.raises(ValueError, match=match):
                f.allocator(state=bad)
        for extra in ({"start": 0}, {"alignment": 1}, {"end": SIZE}):
            with pytest.raises(ValueError, match="pass state alone"):
                f.allocator(**extra, state=state)
        await f.resize(SIZE - 1)
        with pytest.raises(ValueError, match=r"at least 65536 bytes, and .* has 65535"):
            f.allocator(state=state)
        await f.resize(SIZE)
        assert f.allocator(state=bytearray(state)).unclaimed == ((PAGE, 10),)


# Verbs of ranges.


async def test_write_range_receipt_covers_its_bytes(file, path, alloc):
    low, high = alloc.allocate(50).split_at(20)
    receipt = await file.write_range(high, b"h" * 30)
    assert (receipt.offset, receipt.length) == (1020, 30)
    await file.write_range(low, memoryview(b"l" * 20))
    assert await file.read_range(low) + await file.read_range(high) == b"l" * 20 + b"h" * 30
    await file.flush_range(receipt)
    assert receipt.durable
    assert path.read_bytes()[999:1051] == b"A" + b"l" * 20 + b"h" * 30 + b"A"


@pytest.mark.parametrize("length", [0, 1, 49, 51, 100, PAGE], ids=str)
async def test_write_range_refuses_other_lengths(file, path, alloc, length):
    before = path.read_bytes()
    allocated = alloc.allocate(50)
    with pytest.raises(aiommap.OutOfBoundsError, match=f"^{length} bytes .*exactly 50") as caught:
        await file.write_range(allocated, b"!" * length)
    error = caught.value
    assert (error.offset, error.length, error.limit) == (1000, length, 50)
    assert path.read_bytes() == before


async def test_write_range_counts_bytes_not_items(file, alloc):
    allocated = alloc.allocate(8)
    with pytest.raises(aiommap.OutOfBoundsError, match=r"^32 bytes"):
        await file.write_range(allocated, memoryview(bytes(32)).cast("I"))
    await file.write_range(allocated, memoryview(b"12345678").cast("I"))
    assert await file.read_range(allocated) == b"12345678"


async def test_invalid_ranges_are_refused(file, path, tmp_path):
    before = path.read_bytes()
    other_path = tmp_path / "other"
    other_path.write_bytes(before)
    async with aiommap.open(other_path, "r+") as other:
        alloc, elsewhere = file.allocator(0, end=PAGE), other.allocator(0)
        closed = file.allocator(PAGE)
        split, freed, lost = alloc.allocate(50), alloc.allocate(50), closed.allocate(50)
        split.split_at(25)
        alloc.free(freed)
        alloc.allocate(50)  # the same bytes again; the old range stays invalid
        closed.close()
        for allocated, match in (
            (split, "freed or split"),
            (freed, "freed or split"),
            (lost, "allocator closed"),
            (elsewhere.allocate(50), "no open allocator of .*file$"),
        ):
            for use in (lambda r: file.write_range(r, b"!" * 50), file.read_range):
                with pytest.raises(aiommap.ReceiptError, match=match):
                    await use(allocated)
        for use in (lambda r: file.write_range(r, b"!" * 50), file.read_range):
            with pytest.raises(TypeError, match="no AllocatedRange"):
                await use((0, 50))
    assert path.read_bytes() == other_path.read_bytes() == before


async def test_read_range_in_read_only_file(path):
    async with aiommap.open(path) as f:
        allocated = f.allocator(PAGE).allocate(2)
        assert await f.read_range(allocated) == b"BB"
        with pytest.raises(aiommap.AccessModeError, match='mode "r"'):
            await f.write_range(allocated, b"!!")


async def test_concurrent_writers_stay_in_their_ranges(file, path):
    alloc = file.allocator(0)
    live = {}

    async def write(letter):
        for _ in range(20):
            allocated = await alloc.acquire(1 + letter * 37)
            await file.write_range(allocated, bytes([letter]) * allocated.length)
            await checkpoint()
            assert await file.read_range(allocated) == bytes([letter]) * allocated.length
            live[allocated] = letter
            if len(live) % 3:
                alloc.free(allocated)
                del live[allocated]

    async with anyio.create_task_group() as group:
        for letter in range(1, 9):
            group.start_soon(write, letter)
    content = path.read_bytes()
    for allocated, letter in live.items():
        assert set(content[allocated.offset : allocated.end]) == {letter}


# Threads.


def allocate_and_free(alloc, marks, me):
    """Mark the bytes of held ranges; the mark of another thread among them shows an overlap."""
    rng, mine = random.Random(me), []
    for _ in range(1000):
        if mine and rng.random() < 0.5:
            allocated = mine.pop(rng.randrange(len(mine)))
            assert marks[allocated.offset : allocated.end] == bytes([me]) * allocated.length
            if allocated.length > 1 and rng.random() < 0.3:
                mine += allocated.split_at(rng.randrange(1, allocated.length))
                continue
            marks[allocated.offset : allocated.end] = bytes(allocated.length)
            alloc.free(allocated)
            continue
        try:
            allocated = alloc.allocate(rng.randrange(1, 100))
        except aiommap.OutOfBoundsError:
            continue
        assert marks[allocated.offset : allocated.end] == bytes(allocated.length)
        marks[allocated.offset : allocated.end] = bytes([me]) * allocated.length
        mine.append(allocated)
    return mine


@pytest.fixture
def threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.usefixtures("threads_take_turns_often")
async def test_allocate_in_eight_threads(file):
    alloc, marks, kept = file.allocator(0, 4, end=2000), bytearray(2000), []

    async def in_a_thread(me):
        kept.extend(await anyio.to_thread.run_sync(allocate_and_free, alloc, marks, me))

    async with anyio.create_task_group() as group:
        for me in range(1, 9):
            group.start_soon(in_a_thread, me)
    held = sorted((allocated.offset, allocated.end) for allocated in kept)
    assert all(low[1] <= high[0] for low, high in pairwise(held))
    assert alloc.remaining == 2000 - sum(end - offset for offset, end in held)
    for allocated in kept:
        alloc.free(allocated)
    assert (alloc.remaining, alloc.largest) == (2000, 2000)


@pytest.mark.slow
@pytest.mark.usefixtures("threads_take_turns_often")
async def test_acquire_is_served_by_freeing_threads(file):
    alloc, handed = file.allocator(0, end=100), []
    ready = threading.Semaphore(0)

    def free_what_is_handed_over(count):
        for _ in range(count):
            assert ready.acquire(timeout=10)
            alloc.free(handed.pop())

    async def acquire(length):
        for _ in range(50):
            handed.append(await alloc.acquire(length))
            ready.release()

    # A forgotten task then fails the test instead of hanging it.
    with anyio.fail_after(100):
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(anyio.to_thread.run_sync, free_what_is_handed_over, 200)
            for length in (100, 60, 50, 7, 60, 100, 1, 33):
                group.start_soon(acquire, length)
    assert (handed, alloc.remaining, alloc.largest) == ([], 100, 100)


async def test_fork_child_is_refused_without_lock(alloc):
    allocated = alloc.allocate(10)
    alloc._mutex.acquire()  # as if another thread held it at the moment of the fork
    child = None
    try:
        child = os.fork()
    finally:
        if child != 0:
            alloc._mutex.release()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)  # ends a child that waits all the same
        verbs = (
            lambda: alloc.allocate(1),
            lambda: alloc.free(allocated),
            lambda: allocated.split_at(5),
            lambda: alloc.claim(0, 1),
            lambda: alloc.largest,
            alloc.state,
        )
        for verb in verbs:
            try:
                verb()
            except aiommap.ForkedError:
                continue
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
