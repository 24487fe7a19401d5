"""Concurrent appenders of the durable log, power cuts of its file, and what a cut broke.

A promise is made as in ``workload``, but for a prefix of the log: ``append`` has returned n, so the
first n + 1 records are kept. What a cut left of the file is opened as a log again, and has to hold
the records in their order, as far as was promised or further, and nothing else.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from tests.powercut.mount import RecordingMount
from tests.powercut.records import Record, SyncEnd
from tests.powercut.replay import Choose, Disk, nothing_survives
from tests.powercut.workload import Acknowledgements, Promise, promises
from tests.support.example_scripts import EXAMPLES, load

SCRIPT = EXAMPLES / "durable_log.py"

NAME = "log"
APPENDERS = 24
RECORDS_EACH = 6
#: Sizes of records, which lie across sectors, or several in one.
SIZES = range(16, 900)
#: What is appended to each log that was recovered.
AFTER = b"after"


example = load(SCRIPT)
DurableLog, LogError = example.DurableLog, example.LogError


@dataclass(frozen=True)
class Recording:
    """What happened to the disk, and all records of the log in their order.

    The power is cut after the first promise: before it, nothing can be lost.
    """

    data: list[bytes]
    log: list[Record]

    def promised(self) -> list[tuple[int, int]]:
        """List how many records were promised, each time with the position of the promise."""
        return [(position, said.slot) for position, said in promises(self.log)]

    def worst(self) -> list[int]:
        """Find the positions at which any promise that is ever broken is broken.

        While nothing unsynced survives, the disk changes only where a sync ends.
        """
        told = [position for position, _ in self.promised()]
        syncs = [i for i, record in enumerate(self.log) if isinstance(record, SyncEnd)]
        return [*(i for i in syncs if i > told[0]), *(i + 1 for i in told), len(self.log)]

    def moments(self) -> list[int]:
        """Find the positions right after each record but a promise, which changes no log.

        Most records are promises, and while they are made there is often nothing unsynced.
        """
        told = {position for position, _ in self.promised()}
        return [i + 1 for i in range(min(told), len(self.log)) if i not in told]


@dataclass(frozen=True)
class Cut:
    """A power cut: what is left of the file, and how many records it has to hold at least."""

    position: int
    left: bytes | None
    promised: int


@dataclass(frozen=True)
class Outcome:
    """What recovery made of a cut.

    Attributes:
        records: how many were found.
        torn: there were pieces of further ones.
        fault: what is wrong, if anything.
    """

    cut: Cut
    records: int
    torn: bool
    fault: str | None


def promise(said: Acknowledgements, records: int) -> None:
    """Promise that the first so many records are in the log."""
    said.say(Promise(NAME, records, 0))


async def record_appenders(
    mount: RecordingMount,
    said: Acknowledgements,
    *,
    sizes: range = SIZES,
    before: Sequence[bytes] = (),
) -> Recording:
    """Record concurrent appenders of a log, which has to hold the records from before."""
    rng = random.Random(len(before))
    appended = dict(enumerate(before))

    async def appender() -> None:
        for _ in range(RECORDS_EACH):
            data = rng.randbytes(rng.choice(sizes))
            number = await log.append(data)
            promise(said, number + 1)
            appended[number] = data

    async with DurableLog.open(mount.path / NAME) as log:
        assert len(log) == len(before)
        promise(said, len(log))
        async with anyio.create_task_group() as group:
            for _ in range(APPENDERS):
                group.start_soon(appender)
        assert len(log) == len(appended) == len(before) + APPENDERS * RECORDS_EACH
    return Recording([appended[number] for number in range(len(appended))], mount.log())


def lay_down(path: Path, content: bytes, *, synced: bool) -> None:
    """Write a file as another process left it; its name is durable, its content if wanted."""
    path.write_bytes(content)
    for target in (path, path.parent) if synced else (path.parent,):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mostly_survives(rng: random.Random) -> Choose:
    """Choose the newest but for a few: what lies behind a torn record is often whole."""
    return lambda choices: choices - 1 if rng.random() < 0.9 else rng.randrange(choices)


async def cut_power(
    recording: Recording, positions: Iterable[int], choose: Choose = nothing_survives
) -> list[Cut]:
    """Cut the power at each position. Of cuts that leave the same, the last: most was promised."""
    # In a thread, where the watch over the loop does not slow it down.
    return await anyio.to_thread.run_sync(_cut_power, recording, positions, choose)


def _cut_power(recording: Recording, positions: Iterable[int], choose: Choose) -> list[Cut]:
    promised, cuts, disk = recording.promised(), {}, Disk()
    for position in sorted(positions):
        disk.follow(recording.log[disk.position : position])
        left = disk.power_cut(choose).get(NAME)
        kept = max((records for at, records in promised if at < position), default=0)
        cuts[left] = Cut(position, left, kept)
    return list(cuts.values())


async def recover_each(cuts: Iterable[Cut], recording: Recording, path: Path) -> list[Outcome]:
    """Recover what each cut left, at a path of an ordinary disk."""
    return [await recover(cut, recording.data, path) for cut in cuts]


async def recover(cut: Cut, data: list[bytes], path: Path) -> Outcome:
    """Open what a cut left as a log, append to it, and open it again."""
    if cut.left is None:
        return Outcome(cut, 0, torn=False, fault="the file is missing" if cut.promised else None)
    path.write_bytes(cut.left)
    try:
        async with DurableLog.open(path) as log:
            found = [record.data async for record in log.records()]
            end = len(example.SIGNATURE) + sum(example.HEADER.size + len(each) for each in found)
            behind = path.read_bytes()[end:]
            await log.append(AFTER)
        async with DurableLog.open(path) as log:
            again = [record.data async for record in log.records()]
    except LogError as error:
        return Outcome(cut, 0, torn=False, fault=str(error))
    fault = None
    if found != data[: len(found)]:
        fault = "there is a record that was never appended, or not there"
    elif len(found) < cut.promised:
        fault = f"{cut.promised} records were acknowledged, {len(found)} recovered"
    elif behind.strip(b"\0"):
        fault = "what lay behind the end is still there"
    elif again != [*found, AFTER]:
        fault = "what was appended afterwards is not there, or not alone"
    return Outcome(cut, len(found), bool(cut.left[end:].strip(b"\0")), fault)


def faults(outcomes: Iterable[Outcome]) -> list[tuple[int, str]]:
    """List the positions of the cuts that broke something, and what."""
    return [(each.cut.position, each.fault) for each in outcomes if each.fault is not None]
