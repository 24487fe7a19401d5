"""The Cap'n Proto example, read by a decoder written for these tests and by pycapnp."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys

import pytest

import aiommap
from tests.support.example_scripts import EXAMPLES, load

pytestmark = pytest.mark.anyio
SCRIPT = EXAMPLES / "capnp_builder.py"
SCHEMA = """@0xbf5147cbbecf40c1;
struct Track {
  id @0 :UInt64;
  gain @1 :Float32;
  live @2 :Bool;
  title @3 :Text;
  samples @4 :List(Float64);
  parts @5 :List(Part);
  cover @6 :Data;
  next @7 :Track;
}
struct Part { start @0 :Int32; end @1 :UInt16; name @2 :Text; }
"""
#: The layout by the compiler: Track has 2 words of data and 5 pointers, Part has 1 and 1.
TRACK, PART = {"data": 2, "pointers": 5}, {"data": 1, "pointers": 1}


example = load(SCRIPT)
MessageBuilder = example.MessageBuilder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "message"


@pytest.fixture(scope="module")
def track_schema(tmp_path_factory):
    capnp = pytest.importorskip("capnp")
    capnp.remove_import_hook()
    source = tmp_path_factory.mktemp("schema") / "track.capnp"
    source.write_text(SCHEMA)
    return capnp.load(str(source)).Track


# A decoder written from the description of the encoding; it uses no code of the builder.


class Decoded:
    """A struct of a message given as bytes."""

    def __init__(self, segment, start, data, pointers):
        self.segment, self.start, self.data, self.pointers = segment, start, data, pointers

    @classmethod
    def root(cls, message):
        segments, words = struct.unpack_from("<2I", message)
        assert segments == 0
        assert len(message) == 8 + 8 * words
        return cls(message[8:], 0, 0, 1).struct(0)

    def get(self, layout, offset):
        section = self.segment[8 * self.start : 8 * (self.start + self.data)]
        return struct.unpack_from("<" + layout, section, offset)[0]

    def pointer(self, slot):
        """Return kind, target word, and the high half of the pointer; None for null."""
        place = self.start + self.data + slot
        (low, high) = struct.unpack_from("<iI", self.segment, 8 * place)
        if not low and not high:
            return None
        return low & 3, place + 1 + (low >> 2), high

    def struct(self, slot):
        kind, target, high = self.pointer(slot)
        assert kind == 0
        return Decoded(self.segment, target, high & 0xFFFF, high >> 16)

    def numbers(self, slot, code):
        kind, target, high = self.pointer(slot)
        assert (kind, high & 7) == (1, {1: 2, 2: 3, 4: 4, 8: 5}[struct.calcsize("<" + code)])
        return list(struct.unpack_from(f"<{high >> 3}{code}", self.segment, 8 * target))

    def bytes(self, slot):
        return bytes(self.numbers(slot, "B"))

    def structs(self, slot):
        kind, target, high = self.pointer(slot)
        assert (kind, high & 7) == (1, 7)
        tag, sizes = struct.unpack_from("<iI", self.segment, 8 * target)
        count, data, pointers = tag >> 2, sizes & 0xFFFF, sizes >> 16
        assert (tag & 3, count * (data + pointers)) == (0, high >> 3)
        starts = (target + 1 + i * (data + pointers) for i in range(count))
        return [Decoded(self.segment, start, data, pointers) for start in starts]


async def build(track, number):
    """Fill a Track with values made from its number; return the array of its samples."""
    draw = random.Random(number)
    track.put("Q", 0, number)
    track.put("f", 8, number / 2)
    track.put("B", 12, number & 1)
    await track.text(0, "tïtle " * (number % 7))
    samples = await track.array(1, "<f8", draw.randrange(2000))
    for i, part in enumerate(await track.structs(2, number % 5, **PART)):
        part.put("iH", 0, -i, i)
        await part.text(0, f"part {i}")
    await track.bytes(3, draw.randbytes(draw.randrange(30)))
    samples[:] = samples[:] * 0 + number if len(samples) else samples
    return samples


def check(track, number):
    """Check with the decoder that a Track is what ``build`` made."""
    draw = random.Random(number)
    assert (track.get("Q", 0), track.get("f", 8)) == (number, number / 2)
    assert track.get("B", 12) == number & 1
    assert track.bytes(0).decode() == "tïtle " * (number % 7) + "\0"
    assert track.numbers(1, "d") == [number] * draw.randrange(2000)
    parts = track.structs(2)
    assert [part.get("i", 0) for part in parts] == [-i for i in range(number % 5)]
    assert [part.bytes(0) for part in parts] == [b"part %d\0" % i for i in range(len(parts))]
    assert track.bytes(3) == draw.randbytes(draw.randrange(30))


async def build_chain(path, count):
    """Build a chain of Tracks, which takes many steps of growth."""
    import numpy as np  # so that arrays are NumPy's

    held = []
    async with MessageBuilder.create(path) as message:
        track = await message.root.struct(0, **TRACK)
        for number in range(count):
            held.append(await build(track, number))
            assert isinstance(held[-1], np.ndarray)
            if number + 1 < count:
                track = await track.struct(4, **TRACK)
    return message, held


async def test_decoder_finds_what_was_built(path):
    message, held = await build_chain(path, 100)
    content = path.read_bytes()
    assert len(content) == 8 + 8 * message.words > 8 * example.FIRST_BYTES
    track = Decoded.root(content)
    for number in range(100):
        check(track, number)
        # These arrays were made before the file grew, and outlive the file object.
        assert held[number].tolist() == track.numbers(1, "d")
        track = track.struct(4) if number < 99 else track
    assert track.pointer(4) is None


async def test_growth_moves_nothing(path):
    async with MessageBuilder.create(path) as message:
        track = await message.root.struct(0, **TRACK)
        first = await track.array(1, "<f8", 10)
        at, sizes = first.__array_interface__["data"][0], {message._file.size}
        for _ in range(12):
            await track.bytes(3, bytes(100_000))
            sizes.add(message._file.size)
            first[:] = len(sizes)
        assert len(sizes) > 3
        assert first.__array_interface__["data"][0] == at
        assert path.stat().st_size == message._file.size > 8 + 8 * message.words
    assert Decoded.root(path.read_bytes()).numbers(1, "d") == [len(sizes)] * 10


async def test_growth_steps_are_bounded(path, monkeypatch):
    monkeypatch.setattr(example, "MAX_STEP_BYTES", 4 * example.FIRST_BYTES)
    async with MessageBuilder.create(path) as message:
        sizes = [message._file.size // example.FIRST_BYTES]
        while len(sizes) < 7:
            await message.allocate(1000)
            if (size := message._file.size // example.FIRST_BYTES) != sizes[-1]:
                sizes.append(size)
        assert sizes == [1, 2, 4, 8, 12, 16, 20]
        await message.allocate(10**6)  # more than a step
        assert message._file.size >= 8 * message.words


async def test_capacity_is_the_largest_segment(path):
    async with MessageBuilder.create(path) as message:
        assert message._file.capacity == 8 + 8 * example.MAX_WORDS == 1 << 32
        with pytest.raises(ValueError, match="at most 536870911"):
            await message.allocate(example.MAX_WORDS)
        with pytest.raises(ValueError, match="from 0 to"):
            await message.root.structs(0, -1, **PART)
        with pytest.raises(ValueError, match="from 0 to"):
            await message.root.array(0, "<u1", 1 << 29)
        with pytest.raises(struct.error):
            await message.root.struct(0, 1 << 16, 0)
        with pytest.raises(IndexError, match="slot 1 of a struct that has 1"):
            await message.root.text(1, "text")
        with pytest.raises(struct.error):
            message.root.put("Q", 0, 1)  # it has no data
        assert message.words == 1
    assert path.read_bytes() == struct.pack("<2IQ", 0, 1, 0)


async def test_structs_without_words_are_not_null(path):
    async with MessageBuilder.create(path) as message:
        await message.root.struct(0, 0, 0)
    assert path.read_bytes() == bytes.fromhex("00000000 01000000 fcffffff 00000000")


@pytest.mark.parametrize("kept", [True, False], ids=["finished", "left"])
async def test_header_counts_finished_words_only(path, kept, track_schema):
    """Readers refuse a message whose block was left by an error."""
    reads = []
    try:
        async with MessageBuilder.create(path) as message:
            track = await message.root.struct(0, **TRACK)
            await track.text(0, "a title")
            await message._file.flush()
            reads.append(path.read_bytes()[:8])
            if not kept:
                raise KeyError
    except KeyError:
        pass
    assert reads == [bytes(8)]
    content = path.read_bytes()
    if kept:
        assert content[:8] == struct.pack("<2I", 0, message.words)
        with track_schema.from_bytes(content) as read:
            assert read.title == "a title"
        return
    assert content[:8] == bytes(8)
    with (
        pytest.raises(Exception, match="did not contain a root pointer"),
        track_schema.from_bytes(content),
    ):
        pass


async def test_words_are_durable_before_the_header(path, monkeypatch):
    done = []
    write, flush = aiommap.MappedFile.write, aiommap.MappedFile.flush

    async def noting_write(self, offset, data):
        done.append(("write", offset, self.statistics().dirty_bytes, self.size))
        return await write(self, offset, data)

    async def noting_flush(self):
        await flush(self)
        done.append(("flush", self.size))

    monkeypatch.setattr(aiommap.MappedFile, "write", noting_write)
    monkeypatch.setattr(aiommap.MappedFile, "flush", noting_flush)
    async with MessageBuilder.create(path) as message:
        await message.root.text(0, "durable")
    assert [step[:2] for step in done] == [("flush", 24), ("write", 0)]


# With the original implementation.


def same(track, number):
    """Check with pycapnp that a Track is what ``build`` made."""
    draw = random.Random(number)
    assert (track.id, track.gain, track.live) == (number, number / 2, bool(number & 1))
    assert track.title == "tïtle " * (number % 7)
    assert list(track.samples) == [number] * draw.randrange(2000)
    found = [(part.start, part.end, part.name) for part in track.parts]
    assert found == [(-i, i, f"part {i}") for i in range(number % 5)]
    assert track.cover == draw.randbytes(draw.randrange(30))


async def test_pycapnp_reads_view_and_file(path, track_schema):
    await build_chain(path, 20)
    async with aiommap.open(path) as f:
        await f.prewarm()
        with f.view() as view, track_schema.from_bytes(view.memory) as track:
            walk(track)
    with path.open("rb") as file:
        walk(track_schema.read(file))


def walk(track):
    for number in range(20):
        same(track, number)
        assert track._has("next") == (number < 19)
        track = track.next


async def test_pycapnp_copies_nothing_of_the_view(path, track_schema):
    """The reader shows bytes that are stored into the file afterwards."""
    async with MessageBuilder.create(path) as message:
        track = await message.root.struct(0, **TRACK)
        track.put("Q", 0, 1)
    async with aiommap.open(path, "r+") as f:
        with f.view() as view, track_schema.from_bytes(view.memory) as track:
            assert track.id == 1
            await f.write(16, struct.pack("<Q", 2))
            assert track.id == 2


async def test_pycapnp_lays_out_the_same(path, track_schema):
    """pycapnp's builder lays out objects in the order of assignment, as ours does."""
    theirs = track_schema.new_message()
    theirs.id, theirs.live, theirs.title = 7, True, "seven"
    theirs.samples = [1.5, 2.5, 3.5]
    parts = theirs.init("parts", 2)
    parts[0].start, parts[1].name = -5, "second"
    theirs.cover = b"12345678"
    theirs.init("next").id = 8

    async with MessageBuilder.create(path) as message:
        track = await message.root.struct(0, **TRACK)
        track.put("Q", 0, 7)
        track.put("B", 12, 1)
        await track.text(0, "seven")
        (await track.array(1, "<f8", 3))[:] = [1.5, 2.5, 3.5]
        ours = await track.structs(2, 2, **PART)
        ours[0].put("i", 0, -5)
        await ours[1].text(0, "second")
        await track.bytes(3, b"12345678")
        (await track.struct(4, **TRACK)).put("Q", 0, 8)
    assert path.read_bytes() == theirs.to_bytes()


@pytest.mark.slow
def test_capnp_script_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "file")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    size = os.path.getsize(tmp_path / "file")
    assert done.stdout == f"{size} bytes, {size // 8 - 1} words\n"
    root = Decoded.root((tmp_path / "file").read_bytes())
    assert root.bytes(0) == b"a sine, or nearly so\0"
    assert root.numbers(1, "d") == [i % 100 / 50 - 1 for i in range(1 << 20)]
