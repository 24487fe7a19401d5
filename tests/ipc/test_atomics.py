"""Atomic words: the effect of each operation, refusals, and the accounting of changes."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.internals import core_of, workers_of
from tests.support.limiters import held, until_queued

pytestmark = pytest.mark.anyio
WIDTHS = [pytest.param(4, id="u32"), pytest.param(8, id="u64")]
UPDATES = ("swap", "fetch_add", "fetch_sub", "fetch_and", "fetch_or", "fetch_xor")
ORDERS = ("seq_cst", "acq_rel", "acquire", "release", "relaxed")


def word_of(f, width, offset=0):
    return f.atomic_u32(offset) if width == 4 else f.atomic_u64(offset)


def array_of(f, width, offset=0, count=8):
    return (f.atomic_u32_array if width == 4 else f.atomic_u64_array)(offset, count)


def stored(path, width, offset=0):
    """Read a word without the mapping."""
    with open(path, "rb") as file:
        file.seek(offset)
        return struct.unpack("=I" if width == 4 else "=Q", file.read(width))[0]


@pytest.fixture
def zeros(tmp_path):
    made = tmp_path / "zeros"
    made.write_bytes(bytes(4 * PAGE))
    return made


@pytest.mark.parametrize("width", WIDTHS)
async def test_operations_return_old_and_store_new(zeros, width):
    top = (1 << 8 * width) - 1
    async with aiommap.open(zeros, "r+") as f:
        word = word_of(f, width, 16)
        steps = [
            (lambda: word.store(5), None, 5),
            (lambda: word.fetch_add(3), 5, 8),
            (lambda: word.fetch_sub(9), 8, top),
            (lambda: word.fetch_add(2), top, 1),
            (lambda: word.swap(0b1100), 1, 0b1100),
            (lambda: word.fetch_and(0b0110), 0b1100, 0b0100),
            (lambda: word.fetch_or(0b0011), 0b0100, 0b0111),
            (lambda: word.fetch_xor(0b0101), 0b0111, 0b0010),
            (lambda: word.compare_exchange(1, top), (False, 0b0010), 0b0010),
            (lambda: word.compare_exchange(2, top), (True, 2), top),
            (lambda: word.compare_exchange(top, 0), (True, top), 0),
        ]
        for act, returned, left in steps:
            assert act() == returned
            assert word.load() == stored(zeros, width, 16) == left


@pytest.mark.parametrize("width", WIDTHS)
async def test_array_touches_the_named_word_only(zeros, width):
    async with aiommap.open(zeros, "r+") as f:
        array = array_of(f, width, PAGE - 4 * width)
        for index in range(len(array)):
            assert array.fetch_add(index, index + 1) == 0
        assert array.compare_exchange(3, 4, 40) == (True, 4)
        assert [array.load(index) for index in range(8)] == [1, 2, 3, 40, 5, 6, 7, 8]
        assert [array[index].load() for index in range(8)] == [1, 2, 3, 40, 5, 6, 7, 8]
        assert array[4].offset == PAGE
        for index in (-1, 8, 2**63):
            with pytest.raises(IndexError, match=r"word|fit"):
                array.load(index)
            with pytest.raises(IndexError, match=r"word|fit"):
                array[index]
        assert stored(zeros, width, PAGE + 4 * width) == 0


@pytest.mark.parametrize("order", ORDERS)
async def test_every_order_does_the_same(zeros, order):
    async with aiommap.open(zeros, "r+") as f:
        for width in (4, 8):
            word, array = word_of(f, width), array_of(f, width)
            word.store(6)
            assert word.fetch_add(1, order=order) == 6
            assert word.compare_exchange(7, 9, order=order) == (True, 7)
            assert word.compare_exchange(7, 9, order=order) == (False, 9)
            assert array.fetch_or(0, 6, order=order) == 9
            assert word.swap(1, order=order) == 15
            for act, refused in (
                (lambda order=order, word=word: word.load(order=order), ("acq_rel", "release")),
                (lambda order=order, word=word: word.store(3, order=order), ("acq_rel", "acquire")),
            ):
                if order in refused:
                    with pytest.raises(ValueError, match=f"'{order}' means nothing for .*: use"):
                        act()
                else:
                    act()
            assert word.load() in (1, 3)


async def test_bad_orders_values_and_arguments(zeros):
    async with aiommap.open(zeros, "r+") as f:
        small, large = f.atomic_u32(0), f.atomic_u64(8)
        with pytest.raises(ValueError, match=r"'SEQ_CST' is unknown to fetch_add: use \"seq_cst\""):
            small.fetch_add(1, order="SEQ_CST")
        with pytest.raises(TypeError, match="it is a string"):
            small.load(order=5)
        with pytest.raises(TypeError, match="no argument 'ordre'"):
            small.load(ordre="relaxed")
        for value in (-1, 2**32, 2**64):
            with pytest.raises(OverflowError, match=r"32 bits: use 0 to 2\*\*32 - 1"):
                small.store(value)
        for value in (-1, 2**64):
            with pytest.raises(OverflowError, match="64 bits"):
                large.compare_exchange(value, 0)
            with pytest.raises(OverflowError, match="64 bits"):
                large.compare_exchange(0, value)
        with pytest.raises(TypeError, match=r"value is 1\.0: give an integer"):
            small.fetch_add(1.0)
        for arguments in ((), (1, 2)):
            with pytest.raises(TypeError, match="fetch_add takes 1 positional"):
                small.fetch_add(*arguments)
        with pytest.raises(TypeError, match="load takes 1 positional"):
            f.atomic_u32_array(0, 4).load()
        assert (small.load(), large.load()) == (0, 0)
        assert not f.statistics().dirty_bytes


async def test_words_of_a_view_are_within_it(zeros):
    async with aiommap.open(zeros, "r+") as f:
        view = f.view(PAGE + 4, 16)
        assert view.atomic_u32(0).offset == PAGE + 4
        assert view.atomic_u64(4).offset == PAGE + 8
        with pytest.raises(aiommap.AlignmentError, match="multiple of 8"):
            view.atomic_u64(0)
        with pytest.raises(aiommap.OutOfBoundsError, match="only 16"):
            view.atomic_u64(12)
        assert len(view.atomic_u32_array(0, 4)) == 4
        view.release()
        with pytest.raises(anyio.ClosedResourceError, match="released"):
            view.atomic_u32(0)


async def test_read_only_file_allows_loads_only(path):
    async with aiommap.open(path) as f:
        word = f.atomic_u32(PAGE)
        assert word.load() == int.from_bytes(b"BBBB", "little")
        for act in (
            lambda: word.store(1),
            lambda: word.compare_exchange(0, 1),
            *(lambda name=name: getattr(word, name)(1) for name in UPDATES),
        ):
            with pytest.raises(aiommap.AccessModeError, match=r'change a word of .* mode "r"'):
                act()
    assert path.read_bytes()[PAGE : PAGE + 4] == b"BBBB"


async def test_words_of_a_private_file_stay_private(path):
    before = path.read_bytes()
    async with aiommap.open(path, "c") as f:
        f.atomic_u64(PAGE).store(7)
        assert f.atomic_u64(PAGE).fetch_add(1) == 7
        assert int.from_bytes(await f.read(PAGE, 8), sys.byteorder) == 8
        with pytest.raises(aiommap.AccessModeError, match="notify"):
            f.atomic_u32(0).notify()
        with pytest.raises(aiommap.AccessModeError, match="wait"):
            await f.atomic_u32(0).wait(0)
    assert path.read_bytes() == before


async def test_change_dirties_its_page(zeros):
    async with aiommap.open(zeros, "r+") as f:
        word = f.atomic_u64(2 * PAGE + 8)
        assert word.load() == 0
        assert word.compare_exchange(1, 2) == (False, 0)
        assert f.statistics().dirty_bytes == 0  # nothing was changed
        word.fetch_add(1)
        assert f._mapping.dirty_runs() == [(2 * PAGE, 3 * PAGE)]
        cached = f._mapping.cachestat(2 * PAGE, PAGE)
        assert cached[1] == 1, "the page is dirty for the kernel, too"
        await f.flush()
        assert f.statistics().dirty_bytes == 0
        assert f._mapping.cachestat(2 * PAGE, PAGE)[1:3] == (0, 0)
        word.fetch_add(1)
        assert f.statistics().dirty_bytes == PAGE


async def test_change_counts_for_the_policy(zeros):
    async with aiommap.open(zeros, "r+", flush=FlushPolicy.every_writes(100)) as f:
        word = f.atomic_u64(0)
        for _ in range(99):
            word.fetch_add(1)
        assert f.statistics().flushes == 0
        word.fetch_add(1)
        with anyio.fail_after(100):
            while not f.statistics().flushes:
                await anyio.sleep(0.001)
    async with aiommap.open(zeros, "r+", flush=FlushPolicy.every_bytes(800)) as f:
        array = f.atomic_u64_array(0, 512)
        for index in range(100):
            array.store(index, index)
        with anyio.fail_after(100):
            while not f.statistics().flushes:
                await anyio.sleep(0.001)
    async with aiommap.open(zeros, "r+", flush=FlushPolicy.every_interval(0.01)) as f:
        f.atomic_u32(0).fetch_add(1)
        with anyio.fail_after(100):
            while not f.statistics().flushes:
                await anyio.sleep(0.001)


async def test_change_in_another_thread_counts(zeros):
    async with aiommap.open(zeros, "r+", flush=FlushPolicy.every_writes(10)) as f:
        array = f.atomic_u32_array(0, 4)

        def work():
            for _ in range(1000):
                array.fetch_add(1, 1)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        with anyio.fail_after(100):
            while not f.statistics().flushes:
                await anyio.sleep(0.001)
        for thread in threads:
            thread.join()
        assert array.load(1) == 3000


async def test_change_after_failed_flush_is_refused(zeros):
    f = await aiommap.open(zeros, "r+")
    word = f.atomic_u64(0)
    word.store(1)
    zeros.unlink()
    with pytest.raises(aiommap.FlushError, match="orphaned"):
        await f.flush()
    with pytest.raises(aiommap.FlushError, match="orphaned"):
        word.fetch_add(1)
    assert word.load() == 1
    with pytest.raises(aiommap.FlushError, match="orphaned"):
        await f.aclose()


async def test_closed_file_has_no_words(zeros):
    f = await aiommap.open(zeros, "r+")
    word, array = f.atomic_u64(0), f.atomic_u32_array(0, 4)
    await f.aclose()
    for act in (word.load, lambda: word.store(1), lambda: array.fetch_add(0, 1)):
        with pytest.raises(anyio.ClosedResourceError, match="closed"):
            act()
    with pytest.raises(anyio.ClosedResourceError, match="closed"):
        f.atomic_u32(0)


async def test_resize_moves_and_cuts_words(zeros):
    async with aiommap.open(zeros, "r+", capacity=4 * PAGE) as f:
        word, last = f.atomic_u64(8), f.atomic_u64(4 * PAGE - 8)
        word.store(1)
        address = f._mapping.address
        await f.resize(600 * PAGE)  # beyond its capacity, so it is mapped again
        assert f._mapping.address != address
        assert word.fetch_add(1) == 1
        far = f.atomic_u32(600 * PAGE - 4)
        far.store(9)
        await f.resize(4 * PAGE - 8)
        for gone, width in ((far, 4), (last, 8)):
            with pytest.raises(aiommap.OutOfBoundsError, match="only") as caught:
                gone.load()
            error = caught.value
            assert (error.offset, error.length, error.limit) == (gone.offset, width, 4 * PAGE - 8)
        assert word.load() == 2
        await f.resize(600 * PAGE)
        assert (last.load(), far.load()) == (0, 0)


async def test_change_waits_for_write_under_way(zeros):
    """I9: a queued write to the word comes first; the call cannot wait, so it raises."""
    async with aiommap.open(zeros, "r+") as f:
        word, other = f.atomic_u64(PAGE), f.atomic_u64(0)
        big = b"\xff" * (2 * PAGE) * 40  # too long to be stored inline
        await f.resize(len(big) + 2 * PAGE)
        async with anyio.create_task_group() as group:
            with core_of(f).resize_mutex:  # the worker needs it to store
                group.start_soon(f.write, PAGE, big)
                while not f._open.writer.storing(PAGE, PAGE + 8):
                    await anyio.lowlevel.checkpoint()
                for act in (lambda: word.store(1), lambda: word.fetch_add(1)):
                    with pytest.raises(anyio.BusyResourceError, match="write to"):
                        act()
                other.store(1)
                assert word.load() == 0
        assert word.load() == 2**64 - 1
        word.store(3)
        assert (word.load(), other.load()) == (3, 1)


@pytest.mark.parametrize("verb", ["write", "write_many"])
async def test_change_waits_for_queued_durable_write(zeros, verb):
    async with aiommap.open(zeros, "r+", flush=FlushPolicy.always()) as f:
        word, other, workers = f.atomic_u64(PAGE), f.atomic_u64(0), workers_of(f)
        store = (PAGE, b"\xff" * 8)
        async with anyio.create_task_group() as group:
            with held(workers, workers.flushes):
                group.start_soon(
                    *((f.write, *store) if verb == "write" else (f.write_many, [store]))
                )
                await until_queued(workers.flushes)
                with pytest.raises(anyio.BusyResourceError, match="write to"):
                    word.store(1)
                other.store(1)
        assert word.load() == 2**64 - 1
        word.store(3)
        assert (word.load(), other.load()) == (3, 1)


async def test_change_under_always_waits_for_flush(zeros):
    async with aiommap.open(zeros, "r+", flush=FlushPolicy.always()) as f:
        f.atomic_u64(0).store(5)
        assert f.statistics().dirty_bytes == PAGE
        await f.flush_range(0, 8)
        assert f.statistics().dirty_bytes == 0


async def test_cold_page_is_waited_for_without_gil(zeros):
    async with aiommap.open(zeros, "r+") as f:
        await f.flush()
        os.posix_fadvise(f._mapping.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert f.atomic_u64(3 * PAGE).fetch_add(4) == 0
        assert f.atomic_u64(3 * PAGE).load() == 4


COUNT = """
import sys, anyio, aiommap
path, times = sys.argv[1], int(sys.argv[2])

async def main():
    async with aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never()) as f:
        add, small = f.atomic_u64(8).fetch_add, f.atomic_u32_array(16, 4)
        for _ in range(times):
            add(1)
        for _ in range(1000):
            small.fetch_add(3, 1)

anyio.run(main)
"""


def count(path, processes, times):
    """Let several processes count up the same words, and return the sums."""
    running = [
        subprocess.Popen([sys.executable, "-c", COUNT, str(path), str(times)])
        for _ in range(processes)
    ]
    assert [process.wait() for process in running] == [0] * processes
    return stored(path, 8, 8), stored(path, 4, 28)


def test_count_in_processes(zeros):
    assert count(zeros, 2, 20_000) == (40_000, 2000)


@pytest.mark.slow
def test_count_in_eight_processes(zeros):
    assert count(zeros, 8, 1_000_000) == (8_000_000, 8000)
