"""Reading and writing through the public API, on asyncio, uvloop and trio."""

from __future__ import annotations

import mmap

import anyio
import anyio.lowlevel
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.internals import drop_pages, workers_of
from tests.support.limiters import held
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
SIZE = 16 * PAGE
EDGES = (0, 1, PAGE - 1, PAGE, PAGE + 1, SIZE - 1, SIZE, SIZE + 1, 2**63 - 1, 2**63, -1)

VERBS = {
    "read": lambda f, o, n: f.read(o, n),
    "read_many": lambda f, o, n: f.read_many([(o, n)]),
    "flush_range": lambda f, o, n: f.flush_range(o, n),
    "start_writeback": lambda f, o, n: f.start_writeback(o, n),
    "prewarm": lambda f, o, n: f.prewarm(o, n),
    "residency": lambda f, o, n: f.residency(o, n),
    "advise": lambda f, o, n: f.advise(aiommap.Advice.NORMAL, o, n),
    "view": lambda f, o, n: f.view(o, n),
    "read_nowait": lambda f, o, n: f.read_nowait(o, n),
    "locked": lambda f, o, n: _locked(f, o, n),
    "punch_hole": lambda f, o, n: f.punch_hole(o, n),
}


async def _locked(f, offset, length):
    async with f.locked(offset, length):
        pass


@pytest.mark.parametrize("verb", VERBS)
async def test_every_bounded_verb_has_an_edge_table(path, verb):
    async with aiommap.open(path, "r+", flush=FlushPolicy.never()) as f:
        await f.prewarm()
        for offset in EDGES:
            for length in EDGES:
                inside = offset >= 0 and length >= 0 and offset + length <= SIZE
                if inside:
                    done = VERBS[verb](f, offset, length)
                    if hasattr(done, "__await__"):
                        await done
                    continue
                with pytest.raises(aiommap.OutOfBoundsError) as caught:  # noqa: PT012
                    done = VERBS[verb](f, offset, length)
                    await done
                error = caught.value
                assert (error.offset, error.length, error.limit) == (offset, length, SIZE)


@pytest.mark.parametrize("offset", EDGES)
async def test_write_and_read_into_have_same_edges(path, offset):
    async with aiommap.open(path, "r+") as f:
        for length in (0, 1, PAGE, SIZE, SIZE + 1):
            if offset >= 0 and offset + length <= SIZE:
                assert (await f.write(offset, b"w" * length)).length == length
                assert (await f.write_many([(offset, b"m" * length)])).length == length
                buffer = bytearray(length)
                assert await f.read_into(offset, buffer) == length
                assert buffer == b"m" * length
                continue
            before = path.read_bytes()
            for verb in (
                lambda data: f.write(offset, data),
                lambda data: f.write_many([(0, b"!"), (offset, data)]),
                lambda data: f.read_into(offset, bytearray(data)),
            ):
                with pytest.raises(
                    aiommap.OutOfBoundsError, match=rf"only {SIZE}|cannot be negative"
                ):
                    await verb(b"w" * length)
            assert path.read_bytes() == before


async def test_read_agrees_with_the_file(path):
    content = path.read_bytes()
    async with aiommap.open(path) as f:
        assert (f.size, len(f), f.mode, f.path) == (SIZE, SIZE, "r", str(path))
        assert await f.read(10, 5000) == content[10:5010]
        assert await f.read_many([(0, 3), (PAGE, 3), (SIZE, 0)]) == [b"AAA", b"BBB", b""]
        assert [len(c) async for c in f.chunks(5 * PAGE)] == [5 * PAGE] * 3 + [PAGE]
        assert b"".join([c async for c in f.pages()]) == content
        assert f.read_nowait(PAGE, 2) == b"BB"


async def test_warm_reads_and_writes_are_inline(path):
    async with aiommap.open(path, "r+") as f:
        await f.prewarm(write=True)
        before = f.statistics()
        for _ in range(100):
            await f.read(0, PAGE)
            await f.write(PAGE, b"x" * PAGE)
        after = f.statistics()
        assert after.inline_reads - before.inline_reads == 100
        assert after.inline_writes - before.inline_writes == 100
        assert after.offloaded_reads == before.offloaded_reads


async def test_write_that_would_wait_counts_once(tmp_path):
    (tmp_path / "cold").write_bytes(bytes(64 * PAGE))
    drop_pages(tmp_path / "cold")
    async with aiommap.open(tmp_path / "cold", "r+") as f:
        counts = []
        for offset, data in (
            (0, b"its page is not in memory"),
            (0, b"it is by now"),
            (8 * PAGE, bytes(32 * PAGE)),  # too large to be tried
        ):
            await f.write(offset, data)
            found = f.statistics()
            counts.append((found.fell_back_writes, found.inline_writes, found.offloaded_writes))
        assert counts == [(1, 0, 1), (1, 1, 1), (1, 1, 2)]
        f.flush_policy = aiommap.FlushPolicy.always()
        await f.write(60 * PAGE, b"not tried either")
        assert f.statistics().fell_back_writes == 1


@pytest.mark.parametrize(
    ("data", "error"),
    [("text", TypeError), (7, TypeError), (memoryview(b"abcd")[::2], BufferError)],
)
async def test_write_refuses_strided_data(path, data, error):
    async with aiommap.open(path, "r+") as f:
        with pytest.raises(error, match=r"."):
            await f.write(0, data)
        with pytest.raises(error, match=r"."):
            await f.write_many([(0, data)])


async def test_read_into_refuses_read_only_buffers(path):
    async with aiommap.open(path) as f:
        with pytest.raises(TypeError, match="read-only buffer"):
            await f.read_into(0, b"fixed")


async def test_copies_are_exact_wherever_they_land_in_a_page(path):
    """A copy to memory a little further into its page than its source is done in pieces."""
    raw = memoryview(mmap.mmap(-1, SIZE + 2 * PAGE))
    expected = path.read_bytes()
    async with aiommap.open(path, "r+") as f:
        await f.prewarm()
        for into in (0, 1, 16, 31, 32, PAGE - 16):
            for length in (2047, 2048, 2049, PAGE, 3 * PAGE + 1, SIZE - 5):
                raw[:] = b"." * len(raw)
                await f.read_into(5, raw[5 + into : 5 + into + length])
                assert raw[5 + into : 5 + into + length] == expected[5 : 5 + length]
                assert raw[: 5 + into].tobytes().strip(b".") == b""
                assert raw[5 + into + length :].tobytes().strip(b".") == b""


async def test_write_to_a_read_only_file(path):
    async with aiommap.open(path) as f:
        for verb in (
            lambda: f.write(0, b"x"),
            lambda: f.write_many([]),
            lambda: f.resize(1),
            lambda: f.punch_hole(0, 1),
            lambda: f.prewarm(write=True),
        ):
            with pytest.raises(aiommap.AccessModeError, match='mode "r"'):
                await verb()


async def test_private_mode_never_changes_the_file(path):
    content = path.read_bytes()
    async with aiommap.open(path, "c") as f, aiommap.open(path) as other:
        await f.write(PAGE - 2, b"mine")
        await f.write(0, b"Z" * 2 * PAGE)
        assert await f.read(0, 2 * PAGE) == b"Z" * 2 * PAGE
        assert await f.read(2 * PAGE - 1, 2) == b"ZC"
        f.view(5 * PAGE, 4).memory[:] = b"view"
        assert await f.read(5 * PAGE, 5) == b"viewF"
        await f.flush()
        assert await other.read(0, SIZE) == content
    assert path.read_bytes() == content


async def test_inline_reads_yield_and_see_cancellation(path):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.sleep(0)

    async with aiommap.open(path) as f:
        await f.prewarm()
        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            while ticks < 5:
                await f.read(0, PAGE)
            group.cancel_scope.cancel()
        with anyio.move_on_after(0.01) as scope:
            while True:
                await f.read(0, PAGE)
        assert scope.cancelled_caught


async def test_resize_within_capacity_keeps_views(path):
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        address = f._mapping.address
        view = f.view(0, 4)
        tail = f.view(15 * PAGE, PAGE).memory
        await f.resize(60 * PAGE)
        await f.write(59 * PAGE, b"end")
        assert f._mapping.address == address
        assert bytes(view.memory) == b"AAAA"
        await f.resize(2 * PAGE)
        assert bytes(tail) == bytes(PAGE)
        with pytest.raises(aiommap.OutOfBoundsError, match=f"only {2 * PAGE}"):
            await f.read(2 * PAGE, 1)
        await f.resize(100 * PAGE)
        await f.write(99 * PAGE, b"far")
        assert await f.read(99 * PAGE, 3) == b"far"
        assert bytes(view.memory) == b"AAAA"
    assert path.stat().st_size == 100 * PAGE


async def test_views_outlive_the_file(path):
    def mapped():
        with open("/proc/self/maps") as maps:
            return sum(str(path) in line for line in maps)

    numpy = pytest.importorskip("numpy")
    async with aiommap.open(path) as f:
        array = numpy.frombuffer(f.view(PAGE, PAGE).memory, dtype=numpy.uint8)
    assert array.sum() == 66 * PAGE
    assert mapped() == 1
    del array
    assert mapped() == 0


async def test_view_verbs_stay_inside_the_view(path):
    async with aiommap.open(path, "r+") as f:
        low, high = f.view(PAGE, 2 * PAGE).split_at(PAGE)
        assert await high.read(0, 2) == b"CC"
        await low.write(PAGE - 1, b"!")
        with pytest.raises(aiommap.OutOfBoundsError, match=f"only {PAGE}"):
            await low.write(PAGE - 1, b"!!")
        await low.flush()
        assert await f.read(2 * PAGE - 1, 2) == b"!C"
        low.release()
        with pytest.raises(anyio.ClosedResourceError, match="released"):
            await low.read(0, 1)


@pytest.mark.parametrize("policy", ["always", "manual"])
async def test_write_in_pieces_lands_in_place(path, policy):
    """Some pieces adjoin, some do not; there are more than one call takes, and one is too long."""
    async with aiommap.open(path, "r+", flush=getattr(FlushPolicy, policy)()) as f:
        size = 10 << 20
        await f.resize(size)
        model = bytearray(size)
        model[: 16 * PAGE] = path.read_bytes()[: 16 * PAGE]
        offsets = [i * 100 + (i > 70) * 50 + (i > 150) for i in range(200)]
        items = [(offset, bytes([i + 1]) * 100) for i, offset in enumerate(offsets)]
        items += [(1 << 20, b"l" * (5 << 20)), (6 << 20, b"m" * 100), (7 << 20, b"n" * 100)]
        await f.write_many(items)
        for offset, data in items:
            model[offset : offset + len(data)] = data
        assert path.read_bytes() == model


async def test_write_many_cancelled_half_way_goes_on(path):
    """I8: a part was stored inline, so the rest cannot be withdrawn although it has not begun."""
    async with aiommap.open(path, "r+") as f:
        workers, long, scope = workers_of(f), b"y" * 17 * PAGE, anyio.CancelScope()

        async def write():
            with scope:
                await f.write_many([(0, b"part"), (PAGE, long)])

        await f.resize(64 * PAGE)
        await f.write(0, b"x")
        async with anyio.create_task_group() as group:
            with held(workers, workers.stores):
                group.start_soon(f.write, 40 * PAGE, long)
                await until(lambda: submitted(f) == 1)
                group.start_soon(write)
                await until(lambda: submitted(f) == 2)
                scope.cancel()
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert await f.read(0, 4) == b"part"
        assert await f.read(PAGE, len(long)) == long


LONG = 17 * PAGE  # too long to be stored inline


@pytest.mark.parametrize(
    "queued",
    [
        pytest.param([(0, LONG)], id="one"),
        pytest.param([(0, LONG), (40 * PAGE, LONG)], id="below_the_last"),
        pytest.param([(40 * PAGE, LONG), (0, LONG)], id="above_the_last"),
    ],
)
async def test_write_does_not_pass_one_that_waits(path, queued):
    """I9, writing.1: a queued write would overwrite an earlier inline store to its range."""
    async with aiommap.open(path, "r+") as f:
        workers = workers_of(f)
        await f.resize(64 * PAGE)
        async with anyio.create_task_group() as group:
            with held(workers, workers.stores):
                for count, (offset, length) in enumerate(queued):
                    group.start_soon(f.write, offset, b"a" * length)
                    await until(lambda count=count: submitted(f) > count)
                for count, (offset, _) in enumerate(queued, len(queued)):
                    group.start_soon(f.write, offset, b"b")
                    await until(lambda count=count: submitted(f) > count)
        for offset, _ in queued:
            assert await f.read(offset, 2) == b"ba"


async def test_write_does_not_pass_one_in_a_batch(path):
    async with aiommap.open(path, "r+") as f:
        workers = workers_of(f)
        await f.resize(64 * PAGE)

        async def write_twice():
            await f.write(40 * PAGE, b"a" * LONG)
            await f.write(0, b"b")  # the batch of the other task has not begun

        async with anyio.create_task_group() as group:
            with held(workers, workers.stores):
                group.start_soon(write_twice)
                await until(lambda: submitted(f) == 1)
                group.start_soon(f.write, 0, b"a" * LONG)
                await until(lambda: submitted(f) == 2)
        assert await f.read(0, 2) == b"ba"
        before = f.statistics().inline_writes
        await f.write(0, b"c")
        assert f.statistics().inline_writes == before + 1


def submitted(f):
    """Count the writes in the store queue."""
    return len(f._open.writer._queue.unfinished())
