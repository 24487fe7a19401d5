"""A ring of messages from one process to another: ``python examples/ring_buffer.py FILE``.

The producer and the consumer map the same file. Each of them moves one of two positions, which only
grow, and sleeps on a 32-bit word until the other process has moved its position. There is no lock,
and a process that dies leaves the ring as it was::

    0         8      16     20            64
    | written | read | data | space | ... | messages, each behind its length, wrapping around |

A message exists once ``written`` is beyond it, and the producer stores ``written`` after all bytes
of the message. So the consumer never sees a part of a message.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator

import aiommap

WRITTEN, READ, DATA, SPACE, MESSAGES = 0, 8, 16, 20, 64
LENGTH_BYTES = 4
#: In place of a length, this says that no message follows.
END = 0xFFFFFFFF


class Ring:
    """The ring in a file, for one producer and one consumer."""

    def __init__(self, file: aiommap.MappedFile) -> None:
        self._written = file.atomic_u64(WRITTEN)
        self._read = file.atomic_u64(READ)
        self._data = file.atomic_u32(DATA)
        self._space = file.atomic_u32(SPACE)
        self._messages = file.view(MESSAGES)

    async def put(self, message: bytes) -> None:
        """Add a message; wait while there is no room for it."""
        await self._put(len(message).to_bytes(LENGTH_BYTES, "little") + message)

    async def end(self) -> None:
        """Say that nothing more will come."""
        await self._put(END.to_bytes(LENGTH_BYTES, "little"))

    async def _put(self, piece: bytes) -> None:
        if len(piece) > len(self._messages):
            raise ValueError(f"{len(piece)} bytes for a ring of {len(self._messages)}")
        written = self._written.load()
        while True:
            space = self._space.load()  # before `_read`: a later move of it changes this word
            if len(self._messages) - (written - self._read.load()) >= len(piece):
                break
            await self._space.wait(space)
        at = written % len(self._messages)
        first = piece[: len(self._messages) - at]
        await self._messages.write_many([(at, first), (0, piece[len(first) :])])
        self._written.store(written + len(piece))
        self._data.fetch_add(1)
        self._data.notify()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Take one message after the other, up to the end, and wait for the next one.

        A message's room is free before the message is handed out, so a consumer gets it only once.
        """
        read = self._read.load()
        while True:
            await self._wait_beyond(read)
            length = int.from_bytes(await self._take(read, LENGTH_BYTES), "little")
            if length == END:
                return
            message = await self._take(read + LENGTH_BYTES, length)
            read += LENGTH_BYTES + length
            self._read.store(read)
            self._space.fetch_add(1)
            self._space.notify()
            yield message

    async def _wait_beyond(self, read: int) -> None:
        while True:
            data = self._data.load()
            if self._written.load() > read:
                return
            await self._data.wait(data, timeout=30)

    async def _take(self, position: int, length: int) -> bytes:
        at = position % len(self._messages)
        first = min(length, len(self._messages) - at)
        return b"".join(await self._messages.read_many([(at, first), (0, length - first)]))


async def produce(path: str, messages: int) -> None:
    """Send numbered messages of many lengths."""
    async with aiommap.open(path, "r+") as file:
        ring = Ring(file)
        for number in range(messages):
            await ring.put(b"%d:" % number + b"x" * (number * 7 % 300))
        await ring.end()


async def consume(path: str, messages: int, size: int) -> str:
    """Make the ring, start the producer and check what comes."""
    async with aiommap.open(path, "w+", size=MESSAGES + size) as file:
        await file.prewarm(write=True)
        command = [sys.executable, __file__, path, "--messages", str(messages), "--producer"]
        producer = await asyncio.create_subprocess_exec(*command)
        count, begun = 0, time.perf_counter()
        async for message in Ring(file):
            assert message == b"%d:" % count + b"x" * (count * 7 % 300)
            count += 1
        seconds = time.perf_counter() - begun
        assert await producer.wait() == 0
        return f"{count} messages in {seconds:.2f} s"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=1 << 16, help="bytes of the ring")
    parser.add_argument("--producer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.producer:
        asyncio.run(produce(options.file, options.messages))
    else:
        print(asyncio.run(consume(options.file, options.messages, options.size)))
