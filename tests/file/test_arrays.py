"""NumPy arrays over the bytes of files, views and snapshots."""

from __future__ import annotations

import gc
import math
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import OutOfBoundsError, Snapshot, UnsupportedError
from tests.support.following import replace, until_mapped, until_serves

pytestmark = pytest.mark.anyio

SIZE = 16 * PAGE
NATIVE = "<" if sys.byteorder == "little" else ">"
FOREIGN = ">" if NATIVE == "<" else "<"


@asynccontextmanager
async def open_file(path):
    async with aiommap.open(path) as f:
        yield f


@asynccontextmanager
async def open_view(path):
    async with aiommap.open(path) as f:
        yield f.view()


@asynccontextmanager
async def open_snapshot(path):
    async with Snapshot.open(path) as s:
        yield s


OPENERS = {"file": open_file, "view": open_view, "snapshot": open_snapshot}
each_source = pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)


# The contents of arrays.


@pytest.mark.parametrize("name", "i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c16 b1 S4 U2".split(" "))
@pytest.mark.parametrize("order", [NATIVE, FOREIGN], ids=["native", "foreign"])
@pytest.mark.parametrize("offset", [0, 1, 6], ids=["aligned", "odd", "even"])
async def test_array_is_the_bytes_themselves(path, name, order, offset):
    oracle = np.arange(1, 9).astype(order + name)
    async with aiommap.open(path, "r+") as f:
        await f.write(offset, oracle.view("u1"))
        array = f.array(order + name, 8, offset)
        assert type(array) is np.ndarray
        assert array.dtype == oracle.dtype
        assert array.tolist() == oracle.tolist()
        assert not array.flags.owndata
        array[0], array[-1] = oracle[1], oracle[0]
        size = oracle.itemsize
        assert await f.read(offset, size) == oracle[1:2].tobytes()
        assert await f.read(offset + 7 * size, size) == oracle[:1].tobytes()


@each_source
async def test_array_without_shape_is_the_rest(path, opener):
    content = path.read_bytes()
    async with opener(path) as source:
        assert source.array("u1").tobytes() == content
        assert source.array(">u4", offset=8).tobytes() == content[8:]
        assert source.array("u1", offset=SIZE).shape == (0,)


@each_source
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (3, (3,)),
        (np.int64(3), (3,)),
        ((), ()),
        ((2, 3), (2, 3)),
        ([2, 3], (2, 3)),
        ((0, 5), (0, 5)),
        ((-1, PAGE), (2, PAGE)),
        ((PAGE, -1, 2), (PAGE, 1, 2)),
        (-1, (2 * PAGE,)),
    ],
)
async def test_array_in_a_shape(path, opener, shape, expected):
    """-1 stands for the rest of the last four pages, in elements of two bytes."""
    async with opener(path) as source:
        assert source.array("<u2", shape, SIZE - 4 * PAGE).shape == expected


NUMBERS = st.integers(0, 5)
DTYPES = st.sampled_from(["<u1", "<i2", ">i4", "<f8", ">f8", [("a", ">u2"), ("b", "<f4")], "3<u2"])


@settings(deadline=None)
@given(NUMBERS, st.lists(NUMBERS, max_size=4), DTYPES, st.sampled_from("CF"), st.data())
def test_array_is_what_numpy_makes(tmp_path_factory, offset, shape, dtype, order, data):
    """The oracle is an array that NumPy makes of the same bytes in memory."""
    length = math.prod(shape) * np.dtype(dtype).itemsize
    others = [math.prod(shape[:at] + shape[at + 1 :]) for at in range(len(shape))]
    inferable = [at for at, count in enumerate(others) if count]
    asked, behind = list(shape), data.draw(NUMBERS)
    if inferable and data.draw(st.booleans()):
        asked[data.draw(st.sampled_from(inferable))] = -1
        behind = 0
    content = (bytes(range(1, 252)) * 64)[: offset + length + behind]
    expected = np.ndarray(shape, dtype, content[offset:], order=order)
    path = tmp_path_factory.mktemp("oracle") / "file"
    path.write_bytes(content)

    async def check():
        for opener in OPENERS.values():
            async with opener(path) as source:
                array = source.array(dtype, tuple(asked), offset, order=order)
                assert array.dtype == expected.dtype
                assert (array.shape, array.strides) == (expected.shape, expected.strides)
                assert array.tobytes() == expected.tobytes()

    anyio.run(check)


async def test_array_of_records(path):
    async with aiommap.open(path, "r+") as f:
        points = f.array([("time", ">u4"), ("value", ">f8")], 3, 52)
        points["time"], points["value"] = [60, 120, 180], [0.5, 1.5, 2.5]
        assert [*f.view(52, 36).struct("!Ld")] == [(60, 0.5), (120, 1.5), (180, 2.5)]


async def test_array_of_a_view_begins_there(path):
    content = path.read_bytes()
    async with aiommap.open(path) as f:
        view = f.view(PAGE - 1, 40)
        assert view.array("u1", offset=3).tobytes() == content[PAGE + 2 : PAGE + 39]
        assert view.view(8, 8).array("u1").tobytes() == content[PAGE + 7 : PAGE + 15]


# Arguments that are refused.


@each_source
@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        (("<f8", SIZE // 8 + 1), OutOfBoundsError, r"bytes \[0, \d+\) but there are only"),
        (("<f8", SIZE // 8, 1), OutOfBoundsError, "but there are only"),
        (("<f8", (2**40, 2**40)), OutOfBoundsError, "but there are only"),
        (("u1", None, SIZE + 1), OutOfBoundsError, r"from \d+ on"),
        (("u1", None, -1), OutOfBoundsError, "negative"),
        (
            ("<f8", None, 1),
            ValueError,
            r"from offset 1 on, \d+ bytes, is no whole",
        ),
        (("<f8", (-1, 3)), ValueError, r"in the shape \(-1, 3\), 24 bytes each"),
        (("<f8", (-1, 0)), ValueError, "any number where another is 0"),
        (("<f8", (-1, -1)), ValueError, "at most one of them -1"),
        (("<f8", -2), ValueError, "numbers from 0"),
        ((None,), TypeError, "dtype is None: name one"),
        (("u1", True), TypeError, "shape is True: give a number of elements"),
        (("u1", (1, False)), TypeError, r"shape\[1\] is False"),
        (("u1", (0, 2**63)), ValueError, r"shape is \(0, 9223372036854775808\): "),
        (("<f8", (0, 2**61)), ValueError, r"so much of '<f8'"),
        (("u1", (1,) * 100), ValueError, r"shape is \(1, 1, .*dimension"),
        (("<f8", "2"), TypeError, "give a number of elements, or a tuple"),
        (("<f8", 2.0), TypeError, "give a number of elements, or a tuple"),
        (("<f8", (2, 1.5)), TypeError, r"shape\[1\] is 1.5"),
        (("<f8", 1, 0.5), TypeError, "offset is 0.5"),
        (("nonsense",), TypeError, "not understood"),
        (("S0",), ValueError, "describes no bytes"),
        (([],), ValueError, "describes no bytes"),
        (("O",), UnsupportedError, "'O' over a file: .* addresses of Python objects"),
        (([("a", "O")],), UnsupportedError, "addresses of Python objects"),
    ],
)
async def test_array_refuses(path, opener, arguments, kind, match):
    async with opener(path) as source:
        with pytest.raises(kind, match=match):
            source.array(*arguments)


async def test_array_refuses_an_order(path):
    async with aiommap.open(path) as f:
        with pytest.raises(ValueError, match="""order is 'A': use "C" or "F\""""):
            f.array("u1", order="A")


async def test_array_refused_makes_nothing_dirty(path):
    async with aiommap.open(path, "r+") as f:
        for arguments in (("O",), ("<f8", SIZE), ("S0",)):
            with pytest.raises((ValueError, UnsupportedError)):
                f.array(*arguments)
        assert (f.statistics().dirty_bytes, f.statistics().leases) == (0, 0)


@each_source
async def test_array_without_numpy_is_refused(path, opener, monkeypatch):
    """The verb neither returns something else nor imports NumPy on the loop thread (I1)."""
    said = 'has not imported NumPy: write "import aiommap.numpy"'
    async with opener(path) as source:
        monkeypatch.delitem(sys.modules, "numpy")
        with pytest.raises(UnsupportedError, match=re.escape(said)):
            source.array("<f8")
        assert "numpy" not in sys.modules


def test_array_does_not_load_numpy(path):
    code = "import sys, aiommap, aiommap._file.arrays; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=150)


# The life of arrays.


@each_source
async def test_array_in_mode_r_is_read_only(path, opener):
    async with opener(path) as source:
        array = source.array("u1", 4)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


async def test_array_in_mode_c_is_private(path):
    before = path.read_bytes()
    async with aiommap.open(path, "c") as f:
        array = f.array("u1", 4)
        array[:] = 7
        assert await f.read(0, 4) == bytes([7] * 4)
    assert path.read_bytes() == before


@each_source
async def test_array_outlives_what_it_was_made_of(path, opener):
    content = path.read_bytes()
    async with opener(path) as source:
        array = source.array("u1", 4 * PAGE, PAGE)[::2]
        del source
    gc.collect()
    assert array.tobytes() == content[PAGE : 5 * PAGE : 2]
    await until_mapped(path, 1)
    del array
    gc.collect()
    await until_mapped(path, 0)


async def test_array_is_dirty_while_it_lives(path):
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        array = f.array("<u8", PAGE // 8, PAGE)
        assert (f.statistics().leases, f.statistics().dirty_bytes) == (1, PAGE)
        await f.resize(64 * PAGE)  # in place: the address stays
        array[:] = 7
        await f.flush()
        assert path.read_bytes()[PAGE : 2 * PAGE] == (7).to_bytes(8, sys.byteorder) * (PAGE // 8)
        assert f.statistics().dirty_bytes == PAGE
        del array
        await f.flush()
        assert (f.statistics().leases, f.statistics().dirty_bytes) == (0, 0)


@each_source
async def test_array_of_what_is_closed(path, opener):
    async with opener(path) as source:
        if isinstance(source, aiommap.View):
            source.release()
            with pytest.raises(anyio.ClosedResourceError, match="released"):
                source.array("u1")
            return
    with pytest.raises(anyio.ClosedResourceError):
        source.array("u1")


async def test_array_of_a_poisoned_file(path):
    f = await aiommap.open(path)
    array = f.array("u1")
    os.truncate(path, PAGE)
    assert array[PAGE * 2] == 0  # and the process still lives (I6)
    with pytest.raises(aiommap.MappingFaultError):
        f.array("u1")
    with pytest.raises(aiommap.MappingFaultError):
        await f.aclose()


async def test_array_of_a_generation_keeps_its_pages(path):
    content = path.read_bytes()
    async with aiommap.follow(path) as live:
        array = live.current.array("u1")
        replace(path, b"next")
        await until_serves(live, b"next")
        await until_mapped(path, 2)  # the first file is closed, and its pages are still mapped
        assert array.tobytes() == content
        del array
        await until_mapped(path, 1)
