"""Kinds of memory: verbs take and refuse the same ones, whichever way a verb goes.

A way is a state of the file that decides whether a verb runs on the loop thread or in a worker. The
tests try every verb that takes memory with every kind of memory, in each way.
"""

from __future__ import annotations

import array
import ctypes
import gc
import io
import mmap
import re
import sys
from contextlib import closing

import anyio.to_thread
import numpy as np
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice, FlushPolicy

pytestmark = pytest.mark.anyio

AT = 3 * PAGE + 5
RAW = bytes(range(1, 49))


class Record(ctypes.Structure):
    _fields_ = (("O", ctypes.c_uint16), ("rest", ctypes.c_uint8 * 46))


class ObjectRecord(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint64), ("item", ctypes.py_object))


def numpy_of(dtype):
    def make(raw):
        made = np.zeros(len(raw) // np.dtype(dtype).itemsize, dtype)
        made.view("u1")[:] = np.frombuffer(raw, "u1")
        return made

    return make


def frozen(made):
    made.flags.writeable = False
    return made


def array_of(code):
    def make(raw):
        made = array.array(code)
        made.frombytes(raw)
        return made

    return make


def ctypes_of(kind):
    return lambda raw: kind.from_buffer(bytearray(raw))


def mapped(raw):
    made = mmap.mmap(-1, len(raw))
    made[:] = raw
    return made


#: Kinds of memory that can be filled; each holds the 48 bytes that it is made of.
KINDS = {
    "bytearray": bytearray,
    "memoryview": lambda raw: memoryview(bytearray(raw)),
    "words": lambda raw: memoryview(bytearray(raw)).cast("I"),
    "table": lambda raw: memoryview(bytearray(raw)).cast("B", (6, 8)),
    "slice": lambda raw: memoryview(bytearray(b"<" + raw + b">"))[1:-1],
    "bytes-io": lambda raw: io.BytesIO(raw).getbuffer(),
    "mmap": mapped,
    **{f"array-{code}": array_of(code) for code in "bHiqfd"},
    "ctypes-array": ctypes_of(ctypes.c_uint32 * 12),
    "ctypes-struct": ctypes_of(Record),
    "ctypes-pointers": ctypes_of(ctypes.c_void_p * 6),
    **{
        f"numpy-{dtype}": numpy_of(dtype)
        for dtype in ("u1", "?", ">u2", "f2", "f8", "g", "c16", "M8[s]", "m8[D]", "S3", "U2", "V16")
    },
    "numpy-record": numpy_of([("O", "u2"), ("when", "M8[us]"), ("rest", "u1", 14)]),
    "numpy-table": lambda raw: numpy_of("M8[s]")(raw).reshape(2, 3),
    "numpy-scalar": lambda raw: numpy_of("V48")(raw).reshape(()),
    "numpy-date-scalar": lambda raw: numpy_of([("", "M8[s]", 6)])(raw).reshape(()),
}
FIXED = {
    "bytes": bytes,
    "readonly-view": memoryview,
    "readonly-dates": lambda raw: frozen(numpy_of("M8[s]")(raw)),
}


EMPTY = {
    "bytearray": bytearray,
    "table": lambda: np.zeros((0, 5), "M8[s]").T,
    "slice": lambda: memoryview(bytearray(5))[2:2],
}


def dates():
    return np.zeros(12, "M8[s]")


OBJECTS = {
    "objects": lambda: np.array([object(), 7]),
    "object-scalar": lambda: np.array(None, dtype=object),
    "object-field": lambda: np.zeros(2, [("n", "i8"), ("item", "O")]),
    "date-and-object": lambda: np.zeros(2, [("when", "M8[s]"), ("item", "O")]),
    "view-of-objects": lambda: memoryview(np.array([object(), 7])),
    "ctypes-object": lambda: (ctypes.py_object * 2)(1, 2),
    "ctypes-field": ObjectRecord,
}
if hasattr(np.dtypes, "StringDType"):
    OBJECTS["strings"] = lambda: np.array(["long enough to lie elsewhere"], np.dtypes.StringDType())

STRIDED = {
    "step": lambda: memoryview(bytearray(16))[::2],
    "backwards": lambda: memoryview(bytearray(16))[::-1],
    "dates": lambda: dates()[::2],
    "fortran": lambda: np.zeros((3, 4), order="F"),
    "column": lambda: np.zeros((3, 4), "M8[s]")[:, 1],
}
RELEASED = memoryview(bytearray(8))
RELEASED.release()

#: Objects that cannot be stored, the error, and a part of its message.
UNFIT = {
    **{name: (make, TypeError, "Python objects") for name, make in OBJECTS.items()},
    **{name: (make, BufferError, "not C-contiguous") for name, make in STRIDED.items()},
    "released": (lambda: RELEASED, ValueError, "released memoryview"),
    "text": (lambda: "text", TypeError, "'text', not bytes or another buffer of them: encode it"),
    "number": (lambda: 7, TypeError, "is 7, not bytes"),
    "none": (lambda: None, TypeError, "is None, not bytes"),
    "list": (lambda: [1, 2], TypeError, "is [1, 2], not bytes"),
}
#: Other objects that cannot be filled.
FULL = {name: (lambda make=make: make(RAW), TypeError, "read-only") for name, make in FIXED.items()}


async def warm(f):
    await f.write(AT, bytes(len(RAW)))


async def cold(f):
    await f.flush()
    await f.advise(Advice.DONT_NEED)


async def durable(f):
    f.flush_policy = FlushPolicy.always()


WAYS = {way.__name__: way for way in (warm, cold, durable)}


async def write_range(f, data):
    with closing(f.allocator(AT, end=AT + len(RAW))) as allocator:
        return await f.write_range(allocator.allocate(len(RAW)), data)


STORES = {
    "write": lambda f, data: f.write(AT, data),
    "write_many": lambda f, data: f.write_many([(0, b"first"), (AT, data)]),
    "write_range": write_range,
    "view_write": lambda f, data: f.view(PAGE).write(AT - PAGE, data),
    "view_write_many": lambda f, data: f.view(PAGE).write_many([(AT - PAGE, data)]),
}
LOADS = {
    "read_into": lambda f, buffer: f.read_into(AT, buffer),
    "view_read_into": lambda f, buffer: f.view(PAGE).read_into(AT - PAGE, buffer),
}


@pytest.fixture(params=WAYS)
async def f(request, path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.manual()) as f:
        await WAYS[request.param](f)
        yield f


@pytest.mark.parametrize("store", STORES)
async def test_write_any_memory(f, store):
    for kind, make in (KINDS | FIXED).items():
        await f.write(AT, bytes(len(RAW)))
        receipt = await STORES[store](f, make(RAW))
        assert receipt.offset + receipt.length == AT + len(RAW), kind
        assert await f.read(AT, len(RAW)) == RAW, kind


@pytest.mark.parametrize("load", LOADS)
async def test_read_into_any_memory(f, load):
    await f.write(AT, RAW)
    for kind, make in KINDS.items():
        buffer = make(bytes(len(RAW)))
        if f.flush_policy == FlushPolicy.manual():
            await cold(f)
        for _ in range(2):  # the first brings the page into memory
            assert await LOADS[load](f, buffer) == len(RAW), kind
            found = buffer if hasattr(buffer, "tobytes") else memoryview(buffer)
            assert found.tobytes() == RAW, kind


async def test_empty_memory_is_nothing_to_do(f):
    for kind, make in EMPTY.items():
        receipt = await f.write(AT, make())
        assert receipt.length == 0, kind
        assert await f.read_into(AT, make()) == 0, kind


@pytest.mark.parametrize("store", STORES)
async def test_write_refuses_unfit_memory(f, store):
    before = await f.read(0, f.size)
    for make, error, words in UNFIT.values():
        with pytest.raises(error, match=re.escape(words)):
            await STORES[store](f, make())
        assert await f.read(0, f.size) == before


@pytest.mark.parametrize("load", LOADS)
async def test_read_into_refuses_unfit_memory(f, load):
    for make, error, words in (UNFIT | FULL).values():
        with pytest.raises(error, match=re.escape(words)):
            await LOADS[load](f, make())


async def test_snapshot_file_takes_the_same(path):
    def fill(file):
        for make in KINDS.values():
            buffer = make(bytes(len(RAW)))
            file.seek(0)
            assert file.readinto(buffer) == len(RAW)
        for make, error, words in (UNFIT | FULL).values():
            with pytest.raises(error, match=re.escape(words)):
                file.readinto(make())

    async with aiommap.Snapshot.open(path) as snapshot:
        with snapshot.file() as file:
            await anyio.to_thread.run_sync(fill, file)


async def test_restore_allocator_from_any_memory(tmp_path):
    async with aiommap.open(tmp_path / "new", "x+", size=PAGE) as f:
        with closing(f.allocator()) as allocator:
            allocator.allocate(100)
            state = allocator.state()
        f.allocator(state=np.frombuffer(state, [("O", "V1")])).close()
        with pytest.raises(BufferError, match="not C-contiguous"):
            f.allocator(state=memoryview(state)[::2])


@pytest.mark.parametrize("take", [lambda f, b: f.write(AT, b), lambda f, b: f.read_into(AT, b)])
async def test_memory_is_released(f, take):
    buffer, when = bytearray(48), dates()
    held = sys.getrefcount(when)
    await take(f, buffer)
    await take(f, when)
    gc.collect()
    buffer.extend(b"can be resized")
    assert sys.getrefcount(when) == held
