"""A Cap'n Proto message that is built in a mapped file and grows where it lies.

The file is the message in the stream framing that every reader expects: the number of segments
minus one and the size of the only segment in words, 8 bytes in all, and the segment from byte 8
on::

    | 0 u32 | words u32 | root pointer | structs, lists and texts, in the order of their making ...

Creating the file reserves address space for the largest possible segment; the file itself grows in
steps as the builder takes words. No address moves when it grows, so existing views and arrays stay
in place.

Until the message is finished, its header says that the segment is empty. Finishing trims the file
to the words in use, makes them durable, and only then writes their number into the header. So after
a crash a reader finds the whole message, or none.

This is no schema compiler: you take offsets and slots from the output of ``capnp compile -ocapnp``.
"""

from __future__ import annotations

import argparse
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import anyio

import aiommap
import aiommap.numpy

HEADER = struct.Struct("<2L")
WORD = struct.Struct("<Q")
SIZES = struct.Struct("<2H")  # of a struct: words of data, pointers
#: A segment has at most this many words, because pointers count words in 30 bits with a sign.
MAX_WORDS = (1 << 29) - 1
#: A list has fewer elements than this.
MAX_COUNT = 1 << 29
FIRST_BYTES, MAX_STEP_BYTES = 64 << 10, 64 << 20
#: The two low bits of a pointer, and the kinds of elements in a list pointer.
STRUCT, LIST = 0, 1
BYTES, STRUCTS = 2, 7
NUMBERS = {1: 2, 2: 3, 4: 4, 8: 5}  # by width in bytes


class MessageBuilder:
    """One message in one segment; made by ``MessageBuilder.create``.

    Concurrency: for one task at a time.
    """

    def __init__(self, file: aiommap.MappedFile) -> None:
        self._file = file
        self.words = 1  # in use; the first is the root pointer
        self.memory = memoryview(b"")  # the segment, as far as the file reaches

    @classmethod
    @asynccontextmanager
    async def create(cls, path: str | os.PathLike[str]) -> AsyncIterator[Self]:
        """Create a file, and finish the message in it unless the block is left by an error.

        Raises:
            FileExistsError: if there is something at the path.
            OSError: ENOSPC from the call that needs the room; earlier parts stay whole.
        """
        room = HEADER.size + WORD.size * MAX_WORDS
        async with aiommap.open(path, "x+", size=0, capacity=room) as file:
            builder = cls(file)
            await builder._grow(FIRST_BYTES)
            yield builder
            await builder._finish()

    @property
    def root(self) -> Struct:
        """The holder of the root pointer: a struct without data, whose one pointer is slot 0."""
        return Struct(self, 0, 0, 1)

    async def allocate(self, words: int) -> int:
        """Take zeroed words from the end of the segment and return the number of the first."""
        start, end = self.words, self.words + words
        if end > MAX_WORDS:
            raise ValueError(f"{end} words: a segment has at most {MAX_WORDS}, begin another file")
        if WORD.size * end > len(self.memory):
            needed, size = HEADER.size + WORD.size * end, self._file.size
            await self._grow(max(needed, size + min(size, MAX_STEP_BYTES)))
        self.words = end
        return start

    def view(self, word: int, length: int) -> aiommap.View:
        """Make a view of bytes of the segment; as a view of the file it outlives the builder."""
        return self._file.view(HEADER.size + WORD.size * word, length)

    def link(self, place: int, target: int, kind: int, high: int) -> None:
        """Store a pointer: its kind, its high half, and the distance from its end to the target."""
        distance = (target - place - 1) << 2 & 0xFFFF_FFFF
        WORD.pack_into(self.memory, WORD.size * place, high << 32 | distance | kind)

    async def _grow(self, size: int) -> None:
        file, old = self._file, self._file.size
        await file.resize(min(aiommap.align_up(size), HEADER.size + WORD.size * MAX_WORDS))
        # So that no store through memory waits for a page on the loop thread.
        await file.prewarm(old, write=True)
        self.memory = file.view(HEADER.size).memory

    async def _finish(self) -> None:
        await self._file.resize(HEADER.size + WORD.size * self.words)
        await self._file.flush()
        await self._file.write(0, HEADER.pack(0, self.words))  # closing makes it durable


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct in a message: words of data, then slots of pointers, which these methods fill.

    Filling a slot takes new words. If the slot had a pointer, readers lose what that pointed to.
    """

    builder: MessageBuilder
    start: int
    data: int
    pointers: int

    def put(self, layout: str, offset: int, *values: Any) -> None:
        """Pack values at a byte of the data; ``layout`` is a ``struct`` format, little-endian."""
        low = WORD.size * self.start
        section = self.builder.memory[low : low + WORD.size * self.data]
        struct.pack_into(f"<{layout}", section, offset, *values)

    async def struct(self, slot: int, data: int, pointers: int) -> Struct:
        """Make a struct."""
        place, size, sizes = self._place(slot), data + pointers, _sizes(data, pointers)
        start = await self.builder.allocate(size)
        # A struct without words points at its own pointer; at its place the pointer could be null.
        self.builder.link(place, start if size else place, STRUCT, sizes)
        return Struct(self.builder, start, data, pointers)

    async def structs(self, slot: int, count: int, data: int, pointers: int) -> list[Struct]:
        """Make a list of structs; the word before them describes them."""
        size, sizes = data + pointers, _sizes(data, pointers)
        _check_count(count)
        tag = await self._list(slot, STRUCTS, count * size, 1 + count * size)
        self.builder.link(tag, tag + 1 + count, STRUCT, sizes)
        starts = (tag + 1 + i * size for i in range(count))
        return [Struct(self.builder, start, data, pointers) for start in starts]

    async def array(self, slot: int, dtype: str, count: int) -> Any:
        """Make a list of numbers and return it as an array to fill in; dtype is "<f8" or the like.

        ``View.array`` makes the array, so it stays in place however the message grows.
        """
        width = int(dtype[2:])
        start = await self._list(slot, NUMBERS[width], count, -(-count * width // WORD.size))
        return self.builder.view(start, count * width).array(dtype)

    async def bytes(self, slot: int, data: bytes) -> None:
        """Make a Data."""
        start = await self._list(slot, BYTES, len(data), -(-len(data) // WORD.size))
        low = WORD.size * start
        self.builder.memory[low : low + len(data)] = data

    async def text(self, slot: int, text: str) -> None:
        """Make a Text, which is a Data that ends with a NUL."""
        await self.bytes(slot, text.encode() + b"\0")

    async def _list(self, slot: int, elements: int, count: int, words: int) -> int:
        place = self._place(slot)
        _check_count(count)
        start = await self.builder.allocate(words)
        self.builder.link(place, start, LIST, count << 3 | elements)
        return start

    def _place(self, slot: int) -> int:
        if not 0 <= slot < self.pointers:
            raise IndexError(f"pointer slot {slot} of a struct that has {self.pointers}")
        return self.start + self.data + slot


def _sizes(data: int, pointers: int) -> int:
    return int.from_bytes(SIZES.pack(data, pointers), "little")


def _check_count(count: int) -> None:
    if not 0 <= count < MAX_COUNT:
        raise ValueError(f"a list of {count}: Cap'n Proto counts from 0 to {MAX_COUNT - 1}")


async def run(path: str) -> None:
    """Build a ``struct Track { title @0 :Text; samples @1 :List(Float64); }``."""
    async with MessageBuilder.create(path) as message:
        track = await message.root.struct(0, data=0, pointers=2)
        await track.text(0, "a sine, or nearly so")
        samples = await track.array(1, "<f8", 1 << 20)
        for i in range(len(samples)):
            samples[i] = i % 100 / 50 - 1
    async with aiommap.open(path) as file:
        print(f"{file.size} bytes, {message.words} words")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a message of a million samples.")
    parser.add_argument("file")
    anyio.run(run, parser.parse_args().file)


if __name__ == "__main__":
    main()
