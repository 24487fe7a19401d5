"""Concurrent appenders of a log, power cuts of its folder, and what a cut broke.

Promises are made as in ``workload``, but each is about a prefix of the log: its first n records are
durable. Recovery opens what a cut left of the folder as a log again. That has to hold the records
in their order, at least as far as was promised, and nothing else.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from aiommap import FlushPolicy, Log, LogError
from tests.powercut.mount import RecordingMount
from tests.powercut.records import Record, SyncEnd
from tests.powercut.replay import Choose, Disk, nothing_survives
from tests.powercut.workload import ACK, Acknowledgements, Promise, promises
from tests.support.logs import SEGMENT, adopt_control

NAME = "log"
APPENDERS = 16
RECORDS_EACH = 5
#: Sizes of records: some lie across sectors, several share one, and together they roll segments.
SIZES = (*range(0, 900, 37), 3000, 12_000)
#: What recovery appends to each log.
AFTER = b"after"
ANOTHER_BOOT = b"another boot of."


@dataclass(frozen=True)
class Recording:
    """What happened to the disk, and all records of the log in their order.

    Attributes:
        data: the records, from ``first`` on.
        log: what happened.
        first: highest sequence that may have become the first.
        begun: position at which the log was opened.
    """

    data: list[bytes]
    log: list[Record]
    first: int = 1
    begun: int = 0

    def promised(self) -> list[tuple[int, int]]:
        """List how many records were promised, each time with the position of the promise."""
        return [(position, said.slot) for position, said in promises(self.log)]

    def worst(self) -> list[int]:
        """Find positions so that any promise that is ever broken is broken at one of them."""
        told = [position for position, _ in self.promised()]
        syncs = [i for i, record in enumerate(self.log) if isinstance(record, SyncEnd)]
        found = {*syncs, *(i + 1 for i in told), len(self.log)}
        return sorted(i for i in found if i >= self.begun)

    def moments(self) -> list[int]:
        """Find the positions right after each record, except promises, which change no log."""
        told = {position for position, _ in self.promised()}
        return [i + 1 for i in range(self.begun, len(self.log)) if i not in told]


@dataclass(frozen=True)
class Cut:
    """A power cut: what is left of the folder, and how many records it has to hold at least."""

    position: int
    left: dict[str, bytes]
    promised: int


@dataclass(frozen=True)
class Outcome:
    """What recovery made of a cut.

    Attributes:
        records: the last record that was found.
        torn: whether there were pieces of further records.
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
    flush: FlushPolicy = FlushPolicy.always(),  # noqa: B008  it is a value
    sizes: Sequence[int] = SIZES,
    before: Sequence[bytes] = (),
    discard: bool = False,
) -> Recording:
    """Record concurrent appenders of a log, which has to hold the records from before."""
    rng = random.Random(len(before))
    appended = dict(enumerate(before, 1))
    begun = len(mount.log())

    async def appender(number: int) -> None:
        for turn in range(RECORDS_EACH):
            data = rng.randbytes(rng.choice(sizes))
            if turn == 3:
                receipt = await log.append_many([data, data])
                appended[receipt.sequence - 1] = data
            else:
                receipt = await log.append(data)
            appended[receipt.sequence] = data
            if receipt.durable:
                promise(said, receipt.sequence)
            elif (number + turn) % 4 == 0 and flush.flush_at_close:
                await receipt.wait_durable()
                promise(said, receipt.sequence)
        if discard and number == 0:
            await log.discard(log.last)

    async with Log.open(mount.path, flush=flush, segment_size=SEGMENT) as log:
        assert log.last == len(before)
        promise(said, log.durable)
        async with anyio.create_task_group() as group:
            for number in range(APPENDERS):
                group.start_soon(appender, number)
        first = log.first
    if flush.flush_at_close:
        promise(said, log.last)
    assert sorted(appended) == list(range(1, len(appended) + 1))
    return Recording([appended[number] for number in sorted(appended)], mount.log(), first, begun)


async def cut_power(
    recording: Recording, positions: Iterable[int], choose: Choose = nothing_survives
) -> list[Cut]:
    """Cut the power at each position."""
    # In a thread, where the watch over the loop does not slow it down.
    return await anyio.to_thread.run_sync(_cut_power, recording, positions, choose)


def _cut_power(recording: Recording, positions: Iterable[int], choose: Choose) -> list[Cut]:
    promised, cuts, disk = recording.promised(), [], Disk()
    for position in sorted(positions):
        disk.follow(recording.log[disk.position : position])
        left = disk.power_cut(choose)
        left.pop(ACK, None)
        kept = max((records for at, records in promised if at < position), default=0)
        cuts.append(Cut(position, left, kept))
    return cuts


def lay_down(folder: Path, left: dict[str, bytes], *, control: bool) -> None:
    """Make a folder out of what a cut left, with or without its control file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in left.items():
        (folder / name).write_bytes(content)
    if "control" in left and control and len(left["control"]) == 4096:
        adopt_control(folder, boot=ANOTHER_BOOT)


async def recover_each(
    cuts: Iterable[Cut], recording: Recording, folder: Path, *, control: bool = True
) -> list[Outcome]:
    """Recover what each cut left, in a folder of an ordinary disk."""
    return [await recover(cut, recording, folder, control=control) for cut in cuts]


async def recover(cut: Cut, recording: Recording, folder: Path, *, control: bool) -> Outcome:
    """Open what a cut left as a log, append to it, and open it again."""
    await anyio.to_thread.run_sync(lambda: lay_down(folder, cut.left, control=control))
    try:
        async with Log.open(folder, segment_size=SEGMENT) as log:
            first, last = log.first, log.last
            found = [record.data async for record in log.read()]
            torn = log.recovered is not None and log.recovered.cut_bytes > 0
            await log.append(AFTER)
        async with Log.open(folder, segment_size=SEGMENT) as log:
            again = [record.data async for record in log.read()]
    except LogError as error:
        return Outcome(cut, 0, torn=False, fault=str(error))
    fault = None
    if first > recording.first:
        fault = f"records before {first} are gone, and were not discarded"
    elif found != recording.data[first - 1 : last]:
        fault = "there is a record that was never appended, or not there"
    elif last < cut.promised:
        fault = f"{cut.promised} records were acknowledged, {last} recovered"
    elif again != [*found, AFTER]:
        fault = "what was appended afterwards is not there, or not alone"
    return Outcome(cut, last, torn, fault)


def faults(outcomes: Iterable[Outcome]) -> list[tuple[int, str]]:
    """List the positions of the cuts that broke something, and what."""
    return [(each.cut.position, each.fault) for each in outcomes if each.fault is not None]
