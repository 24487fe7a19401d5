"""Stores beyond the end through a growable view: the file grows; closing keeps the used bytes."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import socket
import threading
from functools import partial

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.support.strategies import examples

pytestmark = pytest.mark.anyio

KIB, MIB = 1 << 10, 1 << 20
CAPACITY = 256 * MIB
FIRST_STEP = 64 * KIB


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def grown(path, **options):
    return aiommap.open(path, "w+", size=0, capacity=CAPACITY, **options)


@pytest.mark.parametrize("sparse", [False, True])
async def test_store_makes_the_file_longer(path, sparse):
    async with grown(path, sparse=sparse) as f:
        with f.view(growable=True) as view:
            memory = view.memory
            assert (len(memory), view.length, f.size) == (CAPACITY, CAPACITY, 0)
            memory[0:5] = b"first"
            assert f.size == path.stat().st_size == FIRST_STEP
            assert path.stat().st_blocks * 512 >= (PAGE if sparse else FIRST_STEP)
            assert sparse or path.stat().st_blocks * 512 >= f.size
            memory[FIRST_STEP + 7] = 1
            assert f.size == 2 * FIRST_STEP
            memory[10 * MIB : 10 * MIB + 3] = b"far"
            assert f.size == path.stat().st_size == 10 * MIB + PAGE
            assert await f.read(10 * MIB, 3) == b"far"
            assert await f.read(0, 5) == b"first"
            assert await f.read(5, 100) == bytes(100)
            memory.release()
        assert f.statistics().faults == 0
    content = path.read_bytes()
    assert len(content) == 10 * MIB + PAGE
    assert (content[:5], content[FIRST_STEP + 7], content[10 * MIB :][:3]) == (b"first", 1, b"far")


async def test_growth_steps_have_a_bound(path):
    async with grown(path, sparse=True) as f:
        with f.view(growable=True) as view:
            memory, sizes = view.memory, []
            while not sizes or f.size > sizes[-1]:
                sizes.append(f.size)
                if f.size < CAPACITY:
                    memory[f.size] = 1
            memory.release()
    steps = [after - before for before, after in itertools.pairwise(sizes)]
    assert steps[:3] == [FIRST_STEP, FIRST_STEP, 2 * FIRST_STEP]
    assert max(steps) == 64 * MIB
    assert sizes[-1] == CAPACITY  # the last step ends at the capacity


@pytest.mark.parametrize("exact", [True, False])
async def test_growth_reserves_blocks_and_returns_them(path, exact):
    used = 10 * MIB
    async with grown(path) as f:
        with f.view(growable=True) as view:
            for at in range(0, used, 100 * PAGE):
                view.memory[at] = 1
            view.memory[used - 1] = 1
            assert used <= f.size <= used + 512 * KIB
            assert path.stat().st_blocks * 512 >= f.size + 5 * MIB
        if exact:
            await f.resize(f.size)
    found = path.stat()
    assert found.st_size >= used
    assert found.st_blocks * 512 <= found.st_size + 64 * KIB


async def test_load_beyond_the_end_reads_zeros(path):
    async with grown(path) as f:
        with f.view(growable=True) as view:
            assert view.memory[MIB] == 0
            assert f.size == MIB + PAGE
        assert f.statistics().faults == 0
    assert path.stat().st_size == 0


@pytest.mark.parametrize("used", [0, 1, PAGE - 1, PAGE, 3 * PAGE + 5, 5 * MIB + 1])
async def test_resize_sets_used_length_under_views(path, used):
    async with grown(path) as f:
        view = f.view(growable=True)
        memory = view.memory
        memory[: 6 * MIB] = b"x" * 6 * MIB
        await f.resize(used)
        assert f.size == used
        assert await f.read(0, used) == b"x" * used
        assert not any(memory[used : used + PAGE])  # zeros; this load grows the file again
        await f.resize(used)
    assert path.read_bytes() == b"x" * used
    assert memory[:used].tobytes() == b"x" * used  # still mapped
    memory[CAPACITY - 1] = 1  # lost, and without a signal
    assert path.stat().st_size == used


async def test_close_trims_to_last_nonzero_page(path):
    async with grown(path) as f:
        with f.view(growable=True) as view:
            view.memory[9 * PAGE + 3] = 1
            view.memory[20 * PAGE] = 0
    assert path.stat().st_size == 10 * PAGE


async def test_ensured_and_written_zeros_are_used(path):
    async with grown(path) as f:
        await f.ensure(100 * PAGE + 1)
        assert f.size == 100 * PAGE + 1
        with f.view(growable=True) as view:
            view.memory[200 * PAGE] = 0
            assert f.size > 200 * PAGE
            await f.write(150 * PAGE, bytes(10))
        await f.flush()
    assert path.stat().st_size == 150 * PAGE + 10


async def test_atomic_zeros_are_used(path):
    async with grown(path) as f:
        with f.view(growable=True) as view:
            view.memory[0] = 1
            f.atomic_u64(9 * PAGE).fetch_add(0)
    assert path.stat().st_size == 9 * PAGE + 8


async def test_store_behind_an_odd_size_is_kept(path):
    """Stores in the last page do not fault, so the file ends at a page boundary meanwhile."""
    async with grown(path) as f:
        with f.view(growable=True) as view:
            view.memory[0:10] = b"x" * 10
            await f.resize(10)
            view.memory[11] = 7
            await f.flush()
    assert path.read_bytes() == b"x" * 10 + b"\0\7" + bytes(PAGE - 12)


@pytest.mark.parametrize("size", [10, 15])
async def test_resize_cuts_stores_behind_the_size(path, size):
    async with grown(path) as f:
        with f.view(growable=True) as view:
            await f.resize(10)
            view.memory[11] = view.memory[20] = 7
            await f.resize(size)
            assert view.memory[20] == 0
    assert path.read_bytes() == (b"\0" * 11 + b"\7").ljust(15, b"\0")[:size]


async def test_odd_size_needs_ensure_first(path):
    path.write_bytes(b"o" * 100)
    async with aiommap.open(path, "r+", capacity=CAPACITY) as f:
        with pytest.raises(aiommap.AlignmentError, match=r"call ensure\(100\) first"):
            f.view(growable=True)
        await f.ensure(100)
        with f.view(growable=True) as view:
            view.memory[100:103] = b"new"
            view.memory[PAGE] = 1
        await f.resize(103)
    assert path.read_bytes() == b"o" * 100 + b"new"


@pytest.mark.parametrize("mode", ["r", "c"])
async def test_growable_view_of_fixed_file(path, mode):
    path.write_bytes(bytes(PAGE))
    async with aiommap.open(path, mode) as f:
        with pytest.raises(aiommap.AccessModeError, match=r'use "r\+"|open it with "r\+"'):
            f.view(growable=True)
        with pytest.raises(aiommap.AccessModeError):
            await f.ensure(0)


async def test_growable_view_ends_at_capacity(path):
    async with grown(path) as f:
        view = f.view(CAPACITY - 10, growable=True)
        assert (view.offset, view.length) == (CAPACITY - 10, 10)
        for offset, length in ((0, CAPACITY + 1), (CAPACITY, 1), (-1, 1), (0, -1)):
            with pytest.raises(aiommap.OutOfBoundsError):
                f.view(offset, length, growable=True)
        with pytest.raises(aiommap.OutOfBoundsError):
            await f.ensure(CAPACITY + 1)
        with pytest.raises(aiommap.OutOfBoundsError):
            await f.read(0, 1)  # verbs see what the file has
        low, high = f.view(0, 2 * MIB, growable=True).split_at(MIB)
        high.memory[5] = 5
        assert await low.read(0, 1) == b"\0"
        assert await f.read(MIB + 5, 1) == b"\5"


@pytest.mark.parametrize("size", [0, 100, PAGE, 3 * PAGE], ids=str)
async def test_growable_view_needs_capacity(path, size):
    """Without capacity, such a view could not store beyond the end."""
    async with aiommap.open(path, "w+", size=size) as f:
        said = rf"opened without capacity.* its {size} bytes: open it with capacity="
        for part in ((), (0, 0), (0, CAPACITY)):
            with pytest.raises(aiommap.OutOfBoundsError, match=said) as caught:
                f.view(*part, growable=True)
        assert (caught.value.offset, caught.value.limit) == (size, f.capacity)
        assert f.statistics().leases == 0


async def test_growable_view_of_used_up_capacity(path):
    async with aiommap.open(path, "w+", size=0, capacity=2 * PAGE) as f:
        with f.view(growable=True) as view:
            view.memory[2 * PAGE - 1] = 1
        assert f.size == 2 * PAGE
        with f.view(growable=True) as view:
            assert len(view.memory) == 2 * PAGE
    async with aiommap.open(path, "r+", capacity=2 * PAGE) as f:
        with f.view(growable=True) as view:
            view.memory[0] = 2
    async with aiommap.open(path, "r+") as f:
        await f.resize(PAGE)
        with f.view(growable=True) as view:  # its room is the size when the file was opened
            view.memory[PAGE] = 3
    assert path.read_bytes()[PAGE] == 3


async def test_system_call_needs_ensured_range(path):
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"from afar")
        async with grown(path) as f:
            with f.view(growable=True) as view:
                part = view.memory[MIB : MIB + 9]
                with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
                    right.recv_into(part)
                assert f.size == 0
                await f.ensure(MIB + 9)
                left.sendall(b"from afar")
                assert right.recv_into(part) == 9
                part.release()
            await f.flush()
    assert path.read_bytes()[MIB:] == b"from afar"


async def test_growth_keeps_addresses_and_views(path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with aiommap.open(path, "w+", size=0, capacity=1 << 40) as f:
        assert f.capacity == 1 << 40
        with f.view(growable=True) as view:
            array = np.frombuffer(view.memory, dtype="u1")
            address = array.ctypes.data
            for at in range(0, 8 * MIB, 100 * KIB):
                array[at] = 1
            assert np.frombuffer(view.memory, dtype="u1").ctypes.data == address
            assert array[: f.size].sum() == len(range(0, 8 * MIB, 100 * KIB))
            del array
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * KIB  # in KiB


async def test_flush_covers_growth_by_stores(path):
    async with grown(path) as f:
        with f.view(growable=True) as view:
            view.memory[MIB] = 1
            assert f.statistics().dirty_bytes >= MIB
            await f.flush()
            assert f._mapping.cachestat(0, f.size)[1] == 0  # dirty pages, says the kernel
            view.memory[2 * MIB] = 1
        await f.flush()  # the last store through the view
        assert f.statistics().dirty_bytes == 0
        assert f._mapping.cachestat(0, f.size)[1] == 0


async def test_plain_views_of_cut_tail_stay_zeros(path):
    async with grown(path) as f:
        growable = f.view(growable=True)
        growable.memory[: 40 * PAGE] = b"x" * 40 * PAGE
        plain = f.view(0, 40 * PAGE)
        assert bytes(plain.memory) == b"x" * 40 * PAGE
        await f.resize(4 * PAGE)
        assert bytes(plain.memory) == b"x" * 4 * PAGE + bytes(36 * PAGE)
        assert f.size == 4 * PAGE  # loads through a plain view do not grow the file
        growable.memory[39 * PAGE] = ord("y")
        assert await f.read(0, 40 * PAGE) == b"x" * 4 * PAGE + bytes(35 * PAGE) + b"y" + bytes(
            PAGE - 1
        )
        assert plain.memory[39 * PAGE] == ord("y")
        assert f.statistics().faults == 0


async def test_resize_beyond_capacity_keeps_views(path):
    async with aiommap.open(path, "w+", size=0, capacity=MIB) as f:
        old = f.view(growable=True)
        old.memory[0] = 1
        await f.resize(3 * MIB)
        new = f.view(growable=True)
        assert (len(old.memory), len(new.memory)) == (MIB, 3 * MIB)
        new.memory[2 * MIB] = 2
        old.memory[1] = 3
        assert bytes(new.memory[:2]) == b"\1\3"
    assert path.stat().st_size == 3 * MIB


async def test_growth_in_many_threads(path):
    blocks = 64
    async with grown(path, flush=FlushPolicy.never()) as f:
        with f.view(growable=True) as view:
            ready = threading.Barrier(8)

            def store(number):
                array = np.frombuffer(view.memory, dtype="u1")
                ready.wait()
                for block in range(number, blocks, 8):
                    # NumPy releases the GIL for this many bytes.
                    array[block * MIB : (block + 1) * MIB].fill(block + 1)

            in_threads(*(partial(store, i) for i in range(8)))
            array = np.frombuffer(view.memory, dtype="u1")
            sums = array[: blocks * MIB].reshape(blocks, MIB).sum(axis=1)
            assert sums.tolist() == [(i + 1) * MIB for i in range(blocks)]
            del array
        assert f.statistics().faults == 0
    assert path.stat().st_size == blocks * MIB


def in_threads(*functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.slow
async def test_growth_during_resize_loses_nothing(path):
    """A worker changes the size while a thread stores beyond the end."""
    async with grown(path, flush=FlushPolicy.never()) as f:
        await f.ensure(MIB)
        with f.view(growable=True) as view:
            view.memory[:MIB] = b"\x09" * MIB
            stop = threading.Event()

            def store():
                at = MIB
                while not stop.is_set():
                    view.memory[at % (8 * MIB) + MIB] = 1
                    at += 77 * PAGE

            thread = threading.Thread(target=store)
            thread.start()
            try:
                for _ in range(8):
                    await f.resize(MIB)
                    await f.ensure(3 * MIB)
                    await f.flush()
            finally:
                stop.set()
                thread.join()
            await f.resize(MIB)
            assert f.statistics().faults == 0
    assert path.read_bytes() == b"\x09" * MIB


async def test_growth_of_others_is_not_cut_off(path):
    async with grown(path) as f:
        with f.view(growable=True) as view:
            view.memory[0] = 1
            os.truncate(path, 10 * MIB)
    assert path.stat().st_size == 10 * MIB


async def test_ensure_keeps_what_others_appended(path):
    async with grown(path) as f:
        os.truncate(path, 10 * MIB)
        await f.ensure(MIB)
        assert path.stat().st_size == 10 * MIB


@settings(deadline=None, max_examples=examples(100))
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["store", "write", "resize", "ensure", "flush"]),
            st.integers(0, 600_000),
            st.integers(1, 255),
        ),
        max_size=12,
    )
)
def test_growth_agrees_with_a_bytearray(tmp_path_factory, steps):
    """The file has the stored bytes and zeros, and ends where the rules of growth say."""
    path = tmp_path_factory.mktemp("growth") / "file"

    async def run():
        content, floor = bytearray(), 0

        def reach(end):
            content.extend(bytes(max(0, end - len(content))))

        async with grown(path, sparse=True, flush=FlushPolicy.never()) as f:
            with f.view(growable=True) as view:
                for kind, at, value in steps:
                    if kind == "store":
                        view.memory[at] = value
                        reach(at + 1)
                        content[at] = value
                    elif kind == "write" and at < f.size:
                        await f.write(at, bytes([value]))
                        reach(at + 1)
                        content[at] = value
                        floor = max(floor, at + 1)
                    elif kind == "resize":
                        await f.resize(at)
                        del content[at:]
                        reach(at)
                        floor = at
                    elif kind == "ensure":
                        await f.ensure(at)
                        reach(at)
                        floor = max(floor, at)
                    elif kind == "flush":
                        await f.flush()
                    # A store into the rest of the last page does not move ``size``.
                    found = await f.read(0, f.size)
                    assert found == bytes(content[: f.size]).ljust(f.size, b"\0")
        used = len(content.rstrip(b"\0"))
        return content, max(floor, -(-used // PAGE) * PAGE if used > floor else 0)

    content, end = anyio.run(run)
    found = path.read_bytes()
    assert len(found) == end
    assert found == bytes(content).ljust(end, b"\0")[:end]
