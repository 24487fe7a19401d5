"""Counters that processes make by name: ``python examples/named_counters.py FILE``.

Processes need not agree on offsets beforehand. When a process first asks for a name, the name gets
the next free slot of the file, under an ``AsyncLock``. From then on counting is one machine
instruction, and the counts stay if the process is killed. The file::

    0      8       12    64        64 + 64 n
    | lock | names | ... | value, length of the name, name | the next slot ...

A slot exists for readers once ``names`` counts it, and ``names`` is stored last. If a process dies
while it makes a slot, it has not counted the slot, and the next process makes the slot anew.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import sys
from collections.abc import Iterator

import aiommap

LOCK, NAMES, SLOTS = 0, 8, 64
SLOT_BYTES = 64
NAME = struct.Struct("<B55s")


class NamedCounters:
    """The counters of a file."""

    def __init__(self, file: aiommap.MappedFile) -> None:
        self._file = file
        self._lock = aiommap.AsyncLock(file, LOCK)
        self._count = file.atomic_u32(NAMES)
        self._room = (file.size - SLOTS) // SLOT_BYTES
        #: The counters found so far, by name; slots never change their names.
        self._known: dict[str, aiommap.AtomicU64] = {}

    async def get(self, name: str) -> aiommap.AtomicU64:
        """Find the counter of a name, or make it; ask once, and keep the counter."""
        await self._look()
        if name not in self._known:
            async with self._lock:
                await self._look()  # another process may have made it meanwhile
                if name not in self._known:
                    await self._make(name)
        return self._known[name]

    async def items(self) -> Iterator[tuple[str, int]]:
        """Return the names with their present values."""
        await self._look()
        return ((name, counter.load()) for name, counter in self._known.items())

    async def _look(self) -> None:
        for number in range(len(self._known), self._count.load()):
            at = SLOTS + number * SLOT_BYTES
            length, raw = NAME.unpack(await self._file.read(at + 8, NAME.size))
            self._known[raw[:length].decode()] = self._file.atomic_u64(at)

    async def _make(self, name: str) -> None:
        raw, number = name.encode(), len(self._known)
        if number == self._room or not 0 < len(raw) <= 55:
            raise ValueError(f"no room for {name!r}: {number} of {self._room} slots are taken")
        at = SLOTS + number * SLOT_BYTES
        await self._file.write(at, bytes(8) + NAME.pack(len(raw), raw))
        self._count.store(number + 1)  # from here on readers see the slot
        self._known[name] = self._file.atomic_u64(at)


async def work(path: str, worker: int, rounds: int) -> None:
    """Count under a name of this worker, and under names that all workers share."""
    async with aiommap.open(path, "r+") as file:
        counters = NamedCounters(file)
        shared, own = await counters.get("requests"), await counters.get(f"worker {worker}")
        for _ in range(rounds):
            shared.fetch_add(1)
            own.fetch_add(1)
        (await counters.get("workers done")).fetch_add(1)


async def serve(path: str, workers: int, rounds: int) -> str:
    """Make the file, start the workers, and report when all of them are done."""
    async with aiommap.open(path, "w+", size=SLOTS + 100 * SLOT_BYTES) as file:
        command = [sys.executable, __file__, path, "--rounds", str(rounds), "--worker"]
        running = [
            await asyncio.create_subprocess_exec(*command, str(number)) for number in range(workers)
        ]
        for process in running:
            assert await process.wait() == 0
        counted = await NamedCounters(file).items()
        return "\n".join(f"{name}: {value}" for name, value in sorted(counted))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None:
        print(asyncio.run(serve(options.file, options.workers, options.rounds)))
    else:
        asyncio.run(work(options.file, options.worker, options.rounds))
