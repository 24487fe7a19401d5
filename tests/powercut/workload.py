"""Writers of self-describing slots, their acknowledgements, and the search for what was lost.

A slot is filled with one 32-bit word, over and over: its own number and the generation of the
write. So a test can judge any torn mixture of generations: no word may be older than the newest
generation that was acknowledged. Slots lie side by side, across sectors and pages.

An acknowledgement is a write(2) to the file ``.ack`` beside the data. It is in the log of the file
system before the writer goes on, and its place there is the moment of the promise: a power cut
after it must find the data.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import anyio
import anyio.lowlevel

from aiommap import MappedFile, WriteReceipt
from tests.powercut.records import Create, Record, Write

ACK = ".ack"
SLOT_BYTES = 1300
_WORD = struct.Struct("=I")
_PROMISE = struct.Struct("=16sII")


@dataclass(frozen=True, slots=True)
class Promise:
    """What was acknowledged: a slot of a file holds this generation, or a newer one."""

    name: str
    slot: int
    generation: int

    def kept(self, disk: dict[str, bytes]) -> bool:
        """Tell whether a disk holds what was promised."""
        start = self.slot * SLOT_BYTES
        found = disk.get(self.name, b"")[start : start + SLOT_BYTES]
        if len(found) < SLOT_BYTES:
            return False
        words = memoryview(found).cast("I")
        return word(self.slot, self.generation) <= min(words) <= max(words) < word(self.slot + 1, 0)


def word(slot: int, generation: int) -> int:
    """Make the word that a slot is filled with."""
    return (slot + 1) << 16 | generation


def content(slot: int, generation: int) -> bytes:
    """Make the bytes of a slot."""
    return _WORD.pack(word(slot, generation)) * (SLOT_BYTES // _WORD.size)


class Acknowledgements:
    """Writes promises into the log."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, promise: Promise) -> None:
        """Acknowledge; from here on a power cut must not lose it."""
        record = _PROMISE.pack(promise.name.encode(), promise.slot, promise.generation)
        os.pwrite(self._descriptor, record, 0)


@contextmanager
def acknowledging(folder: Path) -> Iterator[Acknowledgements]:
    """Open the acknowledgements of a recording file system."""
    descriptor = os.open(folder / ACK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield Acknowledgements(descriptor)
    finally:
        os.close(descriptor)


def promises(log: Sequence[Record]) -> Iterator[tuple[int, Promise]]:
    """Find the acknowledgements in a log, each with its position."""
    inode = next((r.inode for r in log if isinstance(r, Create) and r.name == ACK), None)
    for position, record in enumerate(log):
        if isinstance(record, Write) and record.inode == inode:
            name, slot, generation = _PROMISE.unpack(record.data)
            yield position, Promise(name.rstrip(b"\0").decode(), slot, generation)


def broken(promised: Iterable[Promise], disk: dict[str, bytes]) -> list[Promise]:
    """Find the promises that a disk does not keep; only the newest of each slot still counts."""
    by_age = sorted(promised, key=attrgetter("generation"))
    newest = {(promise.name, promise.slot): promise for promise in by_age}
    return [promise for promise in newest.values() if not promise.kept(disk)]


#: Asks for durability of what was just written, or does not; tells whether it was promised.
Way = Callable[[MappedFile, WriteReceipt], Awaitable[bool]]


async def wait_durable(file: MappedFile, receipt: WriteReceipt) -> bool:
    await receipt.wait_durable()
    return True


async def flush(file: MappedFile, receipt: WriteReceipt) -> bool:
    await file.flush()
    return True


async def flush_range(file: MappedFile, receipt: WriteReceipt) -> bool:
    await file.flush_range(receipt)
    return True


async def ask_nothing(file: MappedFile, receipt: WriteReceipt) -> bool:
    """See for a few turns of the loop whether a flush that others asked for covers this write."""
    for _ in range(50):
        if receipt.durable:
            return True
        await anyio.lowlevel.checkpoint()
    return False


#: The ways whose writers are promised every single write.
ASKING: tuple[Way, ...] = (wait_durable, flush_range, flush)


class Writer:
    """Writes its slots of one file again and again, and acknowledges all that is called durable."""

    def __init__(
        self, file: MappedFile, slots: Sequence[int], way: Way, said: Acknowledgements
    ) -> None:
        self._file = file
        self._slots = slots
        self._way = way
        self._said = said
        self._waiting: list[tuple[WriteReceipt, Promise]] = []

    async def run(self, generations: int) -> None:
        """Write every slot in each generation, and ask each time in this writer's way."""
        name = Path(self._file.path).name
        for generation in range(1, generations + 1):
            for slot in self._slots:
                receipt = await self._file.write(slot * SLOT_BYTES, content(slot, generation))
                self._waiting.append((receipt, Promise(name, slot, generation)))
                if await self._way(self._file, receipt):
                    self._acknowledge(lambda asked, answered=receipt: asked is answered)
                self.acknowledge_durable()

    def acknowledge_durable(self) -> None:
        """Acknowledge every write that its receipt calls durable, whoever asked for that."""
        self._acknowledge(lambda receipt: receipt.durable)

    def _acknowledge(self, durable: Callable[[WriteReceipt], bool]) -> None:
        waiting, self._waiting = self._waiting, []
        for receipt, promise in waiting:
            if durable(receipt):
                self._said.say(promise)
            else:
                self._waiting.append((receipt, promise))
