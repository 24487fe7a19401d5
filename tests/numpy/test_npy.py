"""Mapping ``.npy`` files as ``numpy.save`` makes them, and refusing others."""

from __future__ import annotations

import gc
import io
import math
import os
import subprocess
import sys

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

import aiommap
from aiommap import Snapshot
from aiommap.numpy import NpyFile, load_npy, open_npy
from tests.support.following import Errors, mappings, replace, until_mapped
from tests.support.strategies import examples

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "saved.npy"
    np.save(made, np.arange(12.0).reshape(3, 4))
    return made


@pytest.fixture
def errors():
    return Errors()


def write(path, array, version):
    with path.open("wb") as file:
        npy.write_array(file, array, version)


def with_header(text, *, version=(1, 0), behind=b""):
    """Make a file whose header may be any text."""
    width = 2 if version == (1, 0) else 4
    raw = text.encode("utf-8")
    return npy.magic(*version) + len(raw).to_bytes(width, "little") + raw + behind


# Loading.


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "dtype", ["<f8", ">i2", "?", "S3", "<U2", "<c16", "<M8[s]", [("a", ">u2"), ("b", "<f4", (2,))]]
)
async def test_load_every_version_and_order(path, version, order, dtype):
    oracle = np.zeros((3, 2, 5), dtype, order=order)
    oracle.reshape(-1, order="A").view("u1")[:] = np.arange(oracle.nbytes) % 2
    write(path, oracle, version)
    async with Snapshot.open(path) as s:
        array = await load_npy(s)
    assert type(array) is np.ndarray
    assert (array.dtype, array.shape, array.strides) == (oracle.dtype, oracle.shape, oracle.strides)
    assert array.tobytes() == oracle.tobytes()
    assert not array.flags.writeable
    assert not array.flags.owndata


async def test_load_names_beyond_latin_1(path):
    oracle = np.array([(1, 2.5)], [("\N{GREEK SMALL LETTER MU}\\'\"é😀", "<i4"), ("b", "<f8")])
    write(path, oracle, (3, 0))
    assert path.read_bytes()[6] == 3
    async with Snapshot.open(path) as s:
        array = await load_npy(s)
    assert array.dtype == np.load(path).dtype == oracle.dtype
    assert array.tolist() == oracle.tolist()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (3, 0, 2)], ids=str)
async def test_load_of_nothing_and_of_one(path, shape):
    np.save(path, np.full(shape, 7.0))
    async with open_npy(path) as opened:
        assert opened.array.shape == shape
        assert opened.array.tolist() == np.full(shape, 7.0).tolist()


@settings(deadline=None, max_examples=examples(60))
@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(["<f8", ">u2", "i1", "S5", "U3"]),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    st.sampled_from("CF"),
)
def test_load_is_what_numpy_loads(tmp_path_factory, shape, dtype, version, order):
    path = tmp_path_factory.mktemp("npy") / "file.npy"
    write(path, np.ones(shape, dtype, order=order), version)
    oracle = np.load(path)

    async def check():
        async with open_npy(path) as opened:
            assert (opened.array.dtype, opened.array.shape) == (oracle.dtype, oracle.shape)
            assert opened.array.tobytes() == oracle.tobytes()

    anyio.run(check)


async def test_load_of_a_part_of_a_file(path):
    """A view is loaded like a file: only its own bytes count."""
    content = path.read_bytes()
    path.write_bytes(b"before" + content + b"behind")
    async with aiommap.open(path) as f:
        array = await load_npy(f.view(6, len(content)))
        assert array.tolist() == np.arange(12.0).reshape(3, 4).tolist()
        with pytest.raises(ValueError, match="the view has no header"):
            await load_npy(f.view(5))


# Opening.


async def test_open_reads_and_stores(path):
    async with open_npy(path, "r+", prewarm=True, flush=aiommap.FlushPolicy.never()) as opened:
        assert isinstance(opened, NpyFile)
        assert opened.file.flush_policy == aiommap.FlushPolicy.never()
        opened.array[1, 2] = -1
        await opened.file.flush()
        assert np.load(path)[1, 2] == -1
        assert repr(opened).startswith("<NpyFile of float64 in the shape (3, 4), <MappedFile")
    assert opened.file.closed


async def test_open_private_stores_stay_private(path):
    async with open_npy(path, "c") as opened:
        opened.array[:] = 0
    assert np.load(path).sum() == 66


async def test_open_array_outlives_the_file(path):
    async with aiommap.Hub() as hub, open_npy(path, hub=hub) as opened:
        array = opened.array
        assert len(hub.files) == 1
    del opened
    assert array.sum() == 66
    del array
    gc.collect()
    await until_mapped(path, 0)


async def test_open_refuses_other_modes(path):
    for mode in ("w+", "x+", "r+b"):
        with pytest.raises(ValueError, match=r"mode is .*: use one of"):
            open_npy(path, mode)


async def test_open_cancelled_leaves_nothing(path):
    with anyio.CancelScope() as scope:
        scope.cancel()
        await open_npy(path)
    await until_mapped(path, 0)


# Files that are refused.

HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }"
REFUSED = {
    "empty": (b"", "no header"),
    "text": (b"good 0, and long enough", "no header .* magic"),
    "cut in the magic": (npy.magic(1, 0)[:5], "no header"),
    "cut in the length": (npy.magic(1, 0) + b"\x10", "no header"),
    "cut in the header": (with_header(HEADER)[:-3], "no header"),
    "version 4": (with_header(HEADER, version=(4, 0)), "version .4, 0.; 1.0, 2.0 and 3.0"),
    "version 1.1": (with_header(HEADER, version=(1, 1)), "version .1, 1."),
    "no bytes": (with_header(HEADER), "67 bytes, and its header tells of 91"),
    "too few bytes": (with_header(HEADER, behind=bytes(23)), "was it written to its end"),
    "too many bytes": (with_header(HEADER, behind=bytes(25)), "does something follow the array"),
    "truth for a number": (with_header(HEADER.replace("3", "True"), behind=bytes(8)), "no number"),
    "too long and empty": (
        with_header(HEADER.replace("3", f"0, {2**63 - 1}")),
        r"saved.npy cannot be laid out: shape is \(0, ",
    ),
    "longer and empty": (
        with_header(HEADER.replace("3", f"0, {2**63}")),
        r"saved.npy cannot be laid out: shape is \(0, ",
    ),
    "too many dimensions": (
        with_header(HEADER.replace("3", "1," * 69 + "1"), behind=bytes(8)),
        "saved.npy cannot be laid out: shape is .* dimension",
    ),
    "no literal": (with_header("__import__('os').abort()"), "no header"),
    "no closing": (with_header("{'descr': (((("), "no header"),
    "no dictionary": (with_header("(1, 2)"), "no header"),
    "no keys": (with_header("{}"), "no header"),
    "negative": (with_header(HEADER.replace("3", "-3, -1"), behind=bytes(24)), "negative"),
    "no shape": (with_header(HEADER.replace("(3,)", "3")), "no header"),
    "huge": (with_header(HEADER.replace("3", "2**70")), "no header"),
    "very large": (with_header(HEADER.replace("3", str(2**70))), "its header tells of"),
    "no dtype": (with_header(HEADER.replace("<f8", "nonsense")), "no header"),
    "no utf-8": (with_header("x", version=(3, 0))[:-1] + b"\xff", "no header"),
    "long": (with_header(HEADER + " " * 10_000), "more than 10000 are refused"),
    "longer": (with_header(HEADER + " " * 70_000, version=(2, 0)), "more than 10000"),
    "no size": (with_header(HEADER.replace("<f8", "<U0")), "describes no bytes"),
}


@pytest.mark.parametrize(("content", "match"), REFUSED.values(), ids=REFUSED)
async def test_refuses(path, content, match):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match):
        await open_npy(path)
    assert mappings(path) == 0


class Trap:
    def __reduce__(self):
        return os.abort, ()


async def test_refuses_objects_and_runs_nothing(path):
    array = np.empty(1, object)
    array[0] = Trap()
    write(path, array, (1, 0))
    with pytest.raises(ValueError, match=r"holds Python objects, .* allow_pickle=True"):
        await open_npy(path)


@settings(deadline=None, max_examples=examples(200))
@given(st.data())
def test_any_bytes_are_refused_or_read(tmp_path_factory, data):
    """Whichever bytes of a file are changed: it is refused, or read as NumPy reads it."""
    file = io.BytesIO()
    version = data.draw(st.sampled_from([(1, 0), (2, 0), (3, 0)]))
    npy.write_array(file, np.arange(3.0), version)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, 90))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.sampled_from([None, None, None, 5, 11, 60, -1]))])
    path = tmp_path_factory.mktemp("npy") / "file.npy"
    path.write_bytes(content)

    async def check():
        try:
            async with open_npy(path) as opened:
                found = opened.array
        except (ValueError, aiommap.UnsupportedError):
            return
        oracle = np.load(path)
        assert (found.dtype, found.shape) == (oracle.dtype, oracle.shape)
        assert found.tobytes() == oracle.tobytes()
        assert math.prod(found.shape) * found.itemsize == found.nbytes

    anyio.run(check)


# Following.


async def test_follow_loads_each_generation(path, errors):
    def saved(array):
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    async with aiommap.follow(path, load=load_npy, on_error=errors) as live:
        first = live.value
        assert first.shape == (3, 4)
        replace(path, saved(np.ones(5))[:-1])
        await errors.wait(ValueError, "was it written to its end")
        assert live.value is first
        replace(path, saved(np.ones(5)))
        async for _ in live:
            if live.value.shape == (5,):
                break
        assert (live.value.sum(), first.sum()) == (5, 66)
        del first, _
        await until_mapped(path, 1)


def test_numpy_missing_is_told():
    code = "import sys; sys.modules['numpy'] = None; import aiommap.numpy"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=False
    )
    assert 'aiommap.numpy needs NumPy: pip install "aiommap[numpy]"' in done.stderr
