"""Views: carving, records over their memory, and the objects that keep memory mapped."""

from __future__ import annotations

import gc
import math
import os
import pickle
import random
import struct
import subprocess
import sys
from itertools import pairwise

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import OutOfBoundsError, OverlapError
from tests.support.internals import check_disjoint
from tests.support.strategies import windows

pytestmark = pytest.mark.anyio
NO_DEADLINE = settings(deadline=None)
UNIVERSE = 40


# Carving.


async def test_carve_keeps_names_and_order(path):
    content = path.read_bytes()
    async with aiommap.open(path) as f:
        parts = f.carve({"body": (16, 12 * PAGE), "header": (0, 16), "end": (16 * PAGE, 0)})
        assert list(parts) == ["body", "header", "end"]
        assert {name: (view.offset, view.length) for name, view in parts.items()} == {
            "body": (16, 12 * PAGE),
            "header": (0, 16),
            "end": (16 * PAGE, 0),
        }
        assert parts["header"].memory == content[:16]
        assert await parts["body"].read(0, 4 * PAGE) == content[16 : 16 + 4 * PAGE]


async def test_carve_of_a_view_counts_from_its_start(path):
    async with aiommap.open(path, "r+") as f:
        with f.view(PAGE + 3, 100) as whole:
            parts = whole.carve({0: (0, 7), 1: (7, 93)})
            assert (parts[1].offset, parts[1].length) == (PAGE + 10, 93)
            await parts[1].write(0, b"!")
            assert await whole.read(6, 3) == b"B!B"
        with pytest.raises(anyio.ClosedResourceError, match="released"):
            whole.carve({"any": (0, 1)})


async def test_carve_names_overlapping_parts(path):
    async with aiommap.open(path) as f:
        with pytest.raises(OverlapError, match=r"'points' \[10, 30\) share bytes") as caught:
            f.carve({"header": (0, 16), "points": (10, 20), "far": (50, 1)})
        error = caught.value
        assert (error.first, error.second) == ((0, 16), (10, 30))
        assert error.names == ("header", "points")
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert "'header' [0, 16)" in str(error)
        assert f.statistics().leases == 0


async def test_carve_names_part_out_of_bounds(path):
    async with aiommap.open(path) as f:
        told = rf"^'points': asked .* only {16 * PAGE}"
        with pytest.raises(OutOfBoundsError, match=told) as caught:
            f.carve({"header": (0, 16), "points": (16, 16 * PAGE)})
        error = caught.value
        assert (error.offset, error.length, error.limit) == (16, 16 * PAGE, 16 * PAGE)
        assert f.statistics().leases == 0
    with pytest.raises(anyio.ClosedResourceError, match="closed"):
        f.carve({})


@pytest.mark.parametrize(
    "part",
    [7, None, (), (0,), (0, 8, 16), "ab", (0, None), (None, 8), (0, 8.0), ("0", 8), b"x" * 9999],
    ids=repr,
)
async def test_carve_names_part_that_is_no_pair(path, part):
    async with aiommap.open(path) as f:
        said = r"^part 'points' is .{1,80}: give \(offset, length\), two integers in bytes"
        for subject in (f, f.view(0, 100)):
            with pytest.raises(TypeError, match=said):
                subject.carve({"header": (0, 16), "points": part})
        assert f.statistics().leases == 1


@pytest.mark.parametrize("parts", [[(0, 16)], None, "ab", 7], ids=repr)
async def test_carve_wants_a_mapping(path, parts):
    async with aiommap.open(path) as f:
        with pytest.raises(TypeError, match=r"^parts is .*: give a mapping of names to \(offset"):
            f.carve(parts)


def first_overlap(parts):
    """Return the names of two parts that share a byte, found byte by byte; None if none do."""
    owner = {}
    for name, (offset, length) in parts.items():
        for byte in range(offset, offset + length):
            if owner.setdefault(byte, name) != name:
                return owner[byte], name
    return None


@NO_DEADLINE
@given(st.lists(windows(UNIVERSE), max_size=6))
def test_disjoint_ranges_share_no_byte(drawn):
    parts = {f"part {i}": (low, end - low) for i, (low, end) in enumerate(drawn)}
    if first_overlap(parts) is None:
        assert check_disjoint(parts, UNIVERSE) == parts
        return
    with pytest.raises(OverlapError, match="share bytes") as caught:
        check_disjoint(parts, UNIVERSE)
    error = caught.value
    for name, (low, end) in zip(error.names, (error.first, error.second), strict=True):
        assert parts[name] == (low, end - low)
    assert first_overlap({name: parts[name] for name in error.names}) is not None


@pytest.mark.parametrize("seed", range(20))
async def test_carved_views_show_the_same_file(path, seed):
    draw = random.Random(seed)
    bounds = sorted(draw.sample(range(16 * PAGE + 1), 12))
    parts = {i: (low, end - low) for i, (low, end) in enumerate(pairwise(bounds))}
    model = bytearray(path.read_bytes())
    async with aiommap.open(path, "r+") as f:
        views = f.carve(parts)
        for i, (offset, length) in parts.items():
            data = draw.randbytes(length)
            model[offset : offset + length] = data
            if i % 2:
                await views[i].write(0, data)
            else:
                views[i].memory[:] = data
            await views[i].flush()
        assert await f.read(0, f.size) == model
    assert path.read_bytes() == model


async def test_flush_of_part_leaves_others_dirty(path):
    async with aiommap.open(path, "r+") as f:
        low, high = f.carve({"low": (1, PAGE), "high": (4 * PAGE + 1, PAGE)}).values()
        await low.write(0, b"l" * PAGE)
        await high.write(0, b"h" * PAGE)
        assert f.statistics().dirty_bytes == 4 * PAGE  # each touches two pages
        await low.flush()
        assert f.statistics().dirty_bytes == 2 * PAGE
        assert await high.prewarm() == PAGE
        await high.advise(aiommap.Advice.RANDOM)


# Records.


LAYOUTS = ["!LfL", "!Ld", "<hq", ">d", "=i3xB", "@bd", "5s", "?e"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [0, 1, 3], ids=["aligned", "odd", "three"])
async def test_records_agree_with_struct(path, layout, offset):
    size = struct.calcsize(layout)
    async with aiommap.open(path) as f:
        with f.view(PAGE - 20 + offset, 10 * size) as view:
            records = view.struct(layout)
            expected = list(struct.iter_unpack(layout, view.memory))
    assert (records.layout, records.itemsize, len(records)) == (layout, size, 10)
    assert repr([*records]) == repr(expected)  # as text, because NaN is not equal to itself
    assert repr([records[i] for i in range(-10, 10)]) == repr(expected * 2)
    assert repr([*reversed(records)]) == repr(expected[::-1])
    assert repr([*records[2:9][::-3]]) == repr(expected[2:9][::-3])


async def test_records_are_packed_in_place(path):
    async with aiommap.open(path, "r+") as f:
        records = f.view(3, 120).struct("!Ld")
        records[0] = 60, 1.5
        records[-1] = [120, math.inf]
        records[3:6][1] = (7, 8.0)
        assert await f.read(3, 12) == struct.pack("!Ld", 60, 1.5)
        assert await f.read(3 + 108, 12) == struct.pack("!Ld", 120, math.inf)
        assert await f.read(3 + 48, 12) == struct.pack("!Ld", 7, 8.0)
        assert records[4] == (7, 8.0)
        assert (60, 1.5) in records
        await f.flush()
        assert path.read_bytes()[3:15] == struct.pack("!Ld", 60, 1.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1,), "expected 2 items"),
        ((1, 2.0, 3), "expected 2 items"),
        ((-1, 2.0), "argument out of range|<="),
        ((1, "x"), "not a float"),
    ],
)
async def test_records_refuse_values_that_do_not_fit(path, values, message):
    async with aiommap.open(path, "r+") as f:
        records = f.view(0, 24).struct("!Ld")
        with pytest.raises(struct.error, match=message):
            records[1] = values
        assert await f.read(0, 24) == b"A" * 24


@pytest.mark.parametrize("index", [-3, 2, 2**70], ids=["below", "end", "beyond"])
async def test_records_out_of_range_raise_index_error(path, index):
    async with aiommap.open(path, "r+") as f:
        records = f.view(0, 24).struct("!Ld")
        assert repr(records) == "<2 records of '!Ld', 12 bytes each>"
        with pytest.raises(IndexError, match=r"of <2 records of '!Ld'"):
            records[index]
        with pytest.raises(IndexError, match=r"of <2 records of '!Ld'"):
            records[index] = (1, 2.0)


@pytest.mark.parametrize("lay", ["struct", "array"])
async def test_records_of_a_partial_item_are_refused(path, lay):
    async with aiommap.open(path, "r+") as f:
        view = f.view(0, 30)
        with pytest.raises(ValueError, match=r"30 bytes,? is no whole .* 24 (or 32 )?bytes"):
            getattr(view, lay)({"struct": "<d", "array": "<f8"}[lay])
        with pytest.raises(ValueError, match="describes no bytes"):
            getattr(view, lay)({"struct": "", "array": "S0"}[lay])
        assert f.statistics().dirty_bytes == 0
        empty = f.view(0, 0)
        assert len(empty.struct("!Ld")) == len(empty.array("<f8")) == 0


async def test_records_of_a_bad_format_are_refused(path):
    async with aiommap.open(path) as f:
        with pytest.raises(struct.error, match="bad char"):
            f.view(0, 8).struct("Z")
        with pytest.raises(TypeError, match="not understood"):
            f.view(0, 8).array("nonsense")


@NO_DEADLINE
@given(st.text("bBhHiIlLqQ", min_size=1, max_size=5), st.sampled_from("@=<>!"), st.data())
def test_records_round_trip_as_in_struct(codes, order, data):
    layout = order + codes
    whole = struct.Struct(layout)
    memory = bytearray(5 * whole.size)
    model = bytearray(memory)
    records = aiommap.Records(whole, memoryview(memory))
    for _ in range(data.draw(st.integers(0, 8))):
        place = data.draw(st.integers(0, 4))
        values = []
        for code in codes:
            bits = 8 * struct.calcsize(order + code)
            low = -(1 << (bits - 1)) if code.islower() else 0
            values.append(data.draw(st.integers(low, low + (1 << bits) - 1)))
        records[place] = values
        struct.pack_into(layout, model, place * whole.size, *values)
        assert records[place] == tuple(values)
    assert memory == model
    assert [*records] == [*struct.iter_unpack(layout, model)]


# Memory, whichever way a program got it.


MAKERS = {
    "memory": lambda view: view.memory,
    "frombuffer": lambda view: np.frombuffer(view.memory, ">f8"),
    "array": lambda view: view.array(">f8"),
    "struct": lambda view: view.struct(">d"),
}


def store(made):
    if isinstance(made, memoryview):
        made[:8] = struct.pack(">d", 2.5)
    else:
        made[0] = (2.5,) if isinstance(made, aiommap.Records) else 2.5


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
async def test_memory_is_read_only_in_mode_r(path, make):
    async with aiommap.open(path) as f:
        made = make(f.view(8, 80))
        with pytest.raises((TypeError, ValueError), match="read-only"):
            store(made)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
async def test_memory_held_is_dirty_and_pins_pages(path, make):
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        made = make(f.view(PAGE + 3, 80))  # the view itself is garbage at once
        gc.collect()
        assert (f.statistics().leases, f.statistics().dirty_bytes) == (1, PAGE)
        await f.flush()
        assert f.statistics().dirty_bytes == PAGE
        store(made)
        await f.resize(64 * PAGE)
        await f.flush()
        assert path.read_bytes()[PAGE + 3 : PAGE + 11] == struct.pack(">d", 2.5)
    store(made)  # I7: the pages stay after the file was closed
    assert f.statistics().leases == 1
    del made
    gc.collect()
    assert f.statistics().leases == 0


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
async def test_memory_stores_in_mode_c_are_private(path, make):
    before = path.read_bytes()
    async with aiommap.open(path, "c") as f:
        store(make(f.view(0, 80)))
        assert await f.read(0, 8) == struct.pack(">d", 2.5)
    assert path.read_bytes() == before


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
async def test_memory_of_a_released_view(path, make):
    async with aiommap.open(path) as f:
        view = f.view(0, 80)
        view.release()
        with pytest.raises(anyio.ClosedResourceError, match="released"):
            make(view)


async def test_memory_is_not_copied(path):
    async with aiommap.open(path) as f:
        view = f.view(7, 16 * 8)
        at = np.frombuffer(view.memory, "u1").__array_interface__["data"]
        assert view.array("<f8").__array_interface__["data"] == at
        assert view.view(8, 8).array("<f8").__array_interface__["data"][0] == at[0] + 8


async def test_close_with_typed_views_out(path):
    async with aiommap.open(path, "r+") as f:
        parts = f.carve({"a": (0, 8), "b": (8, 16)})
        made = parts["a"].array("<f8"), parts["b"].struct("<d")
    assert f.closed
    assert made[0].tobytes() == b"A" * 8
    assert len(made[1]) == 2
    assert os.path.getsize(path) == 16 * PAGE


# Objects that still hold memory.


async def test_statistics_name_the_oldest_leases(path):
    async with aiommap.open(path) as f:
        views = [f.view(i, 2 * i) for i in range(100)]
        found = f.statistics()
        assert (found.leases, len(found.leased)) == (100, 64)
        assert [(each.offset, each.end) for each in found.leased] == [(i, 3 * i) for i in range(64)]
        assert {each.taken_at for each in found.leased} == {None}
    del views[1:]
    assert f.statistics().leased == (aiommap.LeasedRange(0, 0, None),)


DEVELOPER = """
import asyncio, sys
import aiommap.numpy

async def main(path):
    async with aiommap.open(path, "r+") as f:
        def forgetful():
            return f.view(5, 10)
        kept = forgetful()
        array = f.carve({"a": (0, 4)})["a"].array("u1")
    for lease in f.statistics().leased:
        print(lease.offset, lease.end, lease.taken_at)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.slow
def test_leases_know_their_origin_in_dev_mode(path, tmp_path):
    script = tmp_path / "app.py"
    script.write_text(DEVELOPER)
    done = subprocess.run(
        [sys.executable, "-X", "dev", str(script), str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr  # not compared: on a busy machine asyncio warns
    assert done.stdout.splitlines() == [
        f"5 15 {script}:8 in main.<locals>.forgetful",
        f"0 4 {script}:10 in main",
    ]
