"""One table of offsets and lengths, tried with every verb that takes a range (I3).

The test finds these verbs by inspecting the classes, so that none can be forgotten.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice, FlushPolicy, MappedFile, View

pytestmark = pytest.mark.anyio
SIZE = 16 * PAGE
#: The place of the view under test; neither end is on a page boundary.
VIEW_OFFSET, VIEW_LENGTH = PAGE + 5, 3 * PAGE


def edges(end):
    """Return the offsets and lengths to try on a file or view of ``end`` bytes."""
    around_page = (PAGE - 1, PAGE, PAGE + 1)
    around_end = (end - 1, end, end + 1)
    around_word = (2**63 - 1, 2**63, 2**64, -1, -(2**63))
    return (0, 1, *around_page, *around_end, *around_word)


@dataclass
class Subject:
    """A file, or a view of it, and its expected contents."""

    target: MappedFile | View
    offset: int
    content: bytes


class Verb(NamedTuple):
    """A function that calls a verb on a range and checks its effect.

    ``length`` says where the length comes from: an "argument", a "buffer" (only sizes that a buffer
    can have), "nothing" (a position has no length), "u32" or "u64" (the width of a word), or
    "words" (a number of words).
    """

    call: Callable[[Subject, object, object], Awaitable[None]]
    length: str = "argument"


async def read(subject, offset, length):
    assert await subject.target.read(offset, length) == part(subject, offset, length)


async def read_nowait(subject, offset, length):
    assert subject.target.read_nowait(offset, length) == part(subject, offset, length)


async def read_many(subject, offset, length):
    found = await subject.target.read_many([(0, 1), (offset, length)])
    assert found == [subject.content[:1], part(subject, offset, length)]


async def read_into(subject, offset, length):
    buffer = bytearray(b"?" * length)
    try:
        assert await subject.target.read_into(offset, buffer) == length
    except BaseException:
        assert buffer == b"?" * length
        raise
    assert buffer == part(subject, offset, length)


async def write(subject, offset, length):
    data = b"w" * length
    receipt = await subject.target.write(offset, data)
    assert (receipt.offset - subject.offset, receipt.length) == (int(offset), length)
    assert await subject.target.read(offset, length) == data


async def write_many(subject, offset, length):
    data = b"m" * length
    receipt = await subject.target.write_many([(0, b"!"), (offset, data)])
    assert (receipt.offset, receipt.length) == (subject.offset, max(1, offset + length))
    assert await subject.target.read(offset, length) == data


async def flush_range(subject, offset, length):
    await subject.target.flush_range(offset, length)


async def start_writeback(subject, offset, length):
    await subject.target.start_writeback(offset, length)


async def prewarm(subject, offset, length):
    assert await subject.target.prewarm(offset, length) == int(length)
    await subject.target.prewarm(offset, length, write=True)


async def residency(subject, offset, length):
    found = await subject.target.residency(offset, length)
    assert (found.offset - subject.offset, found.length) == (int(offset), int(length))
    assert found.fraction == 1.0


async def advise(subject, offset, length):
    await subject.target.advise(Advice.NORMAL, offset, length)


async def locked(subject, offset, length):
    async with subject.target.locked(offset, length):
        await read(subject, offset, length)


async def punch_hole(subject, offset, length):
    await subject.target.punch_hole(offset, length)
    assert await subject.target.read(offset, length) == bytes(int(length))


async def view(subject, offset, length):
    with subject.target.view(offset, length) as made:
        assert made.memory == part(subject, offset, length)


def word(name, width):
    """Return a function that makes atomic words, or checks that unaligned ones are refused."""

    async def make(subject, offset, length):
        verb = getattr(subject.target, name)
        arguments = (length // width,) if name.endswith("array") else ()
        start = subject.offset + int(offset)
        if start % width and 0 <= int(offset) <= len(subject.content) - length and length >= 0:
            with pytest.raises(aiommap.AlignmentError, match="multiple") as caught:
                verb(offset, *arguments)
            assert (caught.value.required, caught.value.offset) == (width, start)
            return
        made = verb(offset, *arguments)
        assert made.offset == start
        if arguments:
            assert len(made) == length // width
            seen = [made.load(index) for index in range(min(len(made), 4))]
        else:
            seen = [made.load()]
        found = part(subject, offset, width * len(seen))
        assert b"".join(value.to_bytes(width, sys.byteorder) for value in seen) == found

    return make


async def file_lock(subject, offset, length):
    async with subject.target.file_lock(offset, length):
        await read(subject, offset, length)


async def split_at(subject, offset, length):
    whole = subject.target.view()
    try:
        low, high = whole.split_at(offset)
    except aiommap.OutOfBoundsError:
        assert whole.memory == subject.content  # it stays as it was
        raise
    with low, high:
        assert bytes(low.memory) + bytes(high.memory) == subject.content
        assert low.length == int(offset)


async def array(subject, offset, length):
    made = subject.target.array("u1", length, offset)
    assert made.tobytes() == part(subject, offset, length)


async def carve(subject, offset, length):
    # An empty part shares no byte with any other.
    made = subject.target.carve({"none": (0, 0), "part": (offset, length)})
    with made["none"] as none, made["part"] as carved:
        assert none.length == 0
        assert carved.memory == part(subject, offset, length)


VERBS = {
    "read": Verb(read),
    "read_nowait": Verb(read_nowait),
    "read_many": Verb(read_many),
    "read_into": Verb(read_into, length="buffer"),
    "write": Verb(write, length="buffer"),
    "write_many": Verb(write_many, length="buffer"),
    "flush_range": Verb(flush_range),
    "start_writeback": Verb(start_writeback),
    "prewarm": Verb(prewarm),
    "residency": Verb(residency),
    "advise": Verb(advise),
    "locked": Verb(locked),
    "punch_hole": Verb(punch_hole),
    "atomic_u32": Verb(word("atomic_u32", 4), length="u32"),
    "atomic_u64": Verb(word("atomic_u64", 8), length="u64"),
    "atomic_u32_array": Verb(word("atomic_u32_array", 4), length="words"),
    "atomic_u64_array": Verb(word("atomic_u64_array", 8), length="words"),
    "file_lock": Verb(file_lock),
    "view": Verb(view),
    "split_at": Verb(split_at, length="nothing"),
    "carve": Verb(carve),
    "array": Verb(array, length="buffer"),
}


def bounded(owner, *parameters):
    """Return the public methods of a class that have one of the parameters."""
    return {
        name
        for name, method in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_") and set(parameters) & set(inspect.signature(method).parameters)
    }


CASES = [
    pytest.param(owner, name, id=f"{owner.__name__}.{name}")
    for owner in (MappedFile, View)
    for name in sorted(bounded(owner, "offset", "ranges", "items", "position", "parts"))
]
TAIL_CASES = [
    pytest.param(owner, name, id=f"{owner.__name__}.{name}")
    for owner in (MappedFile, View)
    for name in sorted(bounded(owner, "length") & bounded(owner, "offset"))
    if inspect.signature(getattr(owner, name)).parameters["length"].default is None
    and name != "flush_range"  # there None means that the first argument is a receipt
]


def part(subject, offset, length):
    start = int(offset)
    return subject.content[start : start + int(length)]


def pairs(verb, end):
    """Yield offsets and lengths to try, and whether each pair lies within ``end``."""
    lengths = {
        "argument": edges(end),
        "buffer": tuple(length for length in edges(end) if 0 <= length <= end + 1),
        "nothing": (0,),
        "u32": (4,),
        "u64": (8,),
        "words": (0, 8, PAGE, end - end % 8, end + 8, 2**63, 2**64, -8),
    }[verb.length]
    for offset in edges(end):
        for length in lengths:
            yield offset, length, min(offset, length) >= 0 and offset + length <= end


@asynccontextmanager
async def opened(path, owner):
    """Open a file or a view, as ``owner`` says, with all pages in memory for read_nowait."""
    content = path.read_bytes()
    async with aiommap.open(path, "r+", flush=FlushPolicy.never()) as f:
        await f.prewarm()
        if owner is MappedFile:
            yield Subject(f, 0, content)
            return
        with f.view(VIEW_OFFSET, VIEW_LENGTH) as made:
            yield Subject(made, VIEW_OFFSET, content[VIEW_OFFSET : VIEW_OFFSET + VIEW_LENGTH])


def test_every_bounded_verb_is_in_the_table():
    found = bounded(MappedFile, "offset") | bounded(View, "offset")
    assert found <= set(VERBS), f"put {found - set(VERBS)} into VERBS"
    assert set(VERBS) == {case.values[1] for case in CASES}
    assert {"prewarm", "residency", "advise", "locked"} <= {c.values[1] for c in TAIL_CASES}


@pytest.mark.parametrize(("owner", "name"), CASES)
async def test_ranges_out_of_bounds_change_nothing(path, owner, name):
    before = path.read_bytes()
    async with opened(path, owner) as subject:
        end = len(subject.content)
        for offset, length, inside in pairs(VERBS[name], end):
            if inside:
                continue
            with pytest.raises(aiommap.OutOfBoundsError, match=r"only \d+:|negative") as caught:
                await VERBS[name].call(subject, offset, length)
            error = caught.value
            assert (error.offset, error.length, error.limit) == (offset, length, end)
        assert path.read_bytes() == before


@pytest.mark.parametrize(("owner", "name"), CASES)
async def test_ranges_within_bounds_are_served(path, owner, name):
    async with opened(path, owner) as subject:
        served = 0
        for offset, length, inside in pairs(VERBS[name], len(subject.content)):
            if inside:
                await VERBS[name].call(subject, offset, length)
                subject.content = await subject.target.read(0, len(subject.content))
                served += 1
        assert served >= len(edges(0)) - 8  # every edge up to the end, at least once


@pytest.mark.parametrize(("owner", "name"), TAIL_CASES)
async def test_range_without_length_to_the_end(path, owner, name):
    async with opened(path, owner) as subject:
        end = len(subject.content)
        for offset in edges(end):
            if 0 <= offset <= end:
                await VERBS[name].call(Tail(subject), offset, end - offset)
                continue
            with pytest.raises(aiommap.OutOfBoundsError, match=r"only \d+:|negative") as caught:
                await VERBS[name].call(Tail(subject), offset, 0)
            assert (caught.value.offset, caught.value.limit) == (offset, end)


class Tail:
    """A subject whose verbs are called without a length."""

    def __init__(self, subject):
        self.offset, self.content = subject.offset, subject.content
        self._target = subject.target

    @property
    def target(self):
        return self

    def __getattr__(self, name):
        verb = getattr(self._target, name)
        if name == "read":
            return verb
        return lambda *arguments, **options: verb(*arguments[:-1], **options)


class Index:
    """An integer that is not an ``int``, like those of NumPy."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value

    __int__ = __index__


@pytest.mark.parametrize(("owner", "name"), CASES)
async def test_integers_will_do_and_floats_not(path, owner, name):
    async with opened(path, owner) as subject:
        verb = VERBS[name]
        lengths = {"argument": Index(PAGE), "nothing": 0, "u32": 4, "u64": 8}
        length = lengths.get(verb.length, PAGE)
        if name != "write_many":  # the check in its function adds offset and length
            await verb.call(subject, Index(1), length)
        with pytest.raises(TypeError, match=r"float|is 1\.0: give an integer"):
            await verb.call(subject, 1.0, 1)
        for offset in (Index(-1), Index(2**64)):
            with pytest.raises(aiommap.OutOfBoundsError, match=r"only \d+:|negative"):
                await verb.call(subject, offset, 0)


async def test_chunks_of_every_size_cover_the_file(path):
    content = path.read_bytes()
    async with aiommap.open(path) as f:
        for size in edges(SIZE):
            if size <= 0:
                with pytest.raises(ValueError, match=r"at least 1|negative"):
                    f.chunks(size)
                continue
            chunks = [chunk async for chunk in f.chunks(size)]
            assert b"".join(chunks) == content
            assert {len(chunk) for chunk in chunks[:-1]} <= {size}
