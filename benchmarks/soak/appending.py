"""Logs: acknowledged records can be read back, through rolls, discards and deaths."""

from __future__ import annotations

import hashlib
import random

import anyio

import aiommap
from aiommap import Log

from .outside import record
from .stage import Scene, expect
from .writing import any_policy

SEGMENT = 64 << 10
APPENDERS = 6
RECORDS = 60


def _numbered(sequence_of_task: bytes, rng: random.Random) -> bytes:
    """Make a record that begins with its own checksum."""
    body = sequence_of_task + rng.randbytes(int(8000 ** rng.random()))
    return hashlib.sha256(body).digest() + body


def _check(data: bytes) -> None:
    expect(hashlib.sha256(data[32:]).digest() == data[:32], "a record is torn")


async def logs(scene: Scene) -> None:
    """Append, tail and discard in tasks, with cancellations; open the log twice."""
    folder, acknowledged = scene.path("log"), dict[int, bytes]()
    for opening in range(2):
        async with Log.open(folder, segment_size=SEGMENT, flush=any_policy(scene.rng)) as log:
            expect(log.last == len(acknowledged), f"{log.last} records, not {len(acknowledged)}")
            async with anyio.create_task_group() as tails:
                for durable in (False, True):
                    tails.start_soon(_tail, scene, folder, log.last + 1, durable, acknowledged)
                async with anyio.create_task_group() as appenders:
                    for number in range(APPENDERS):
                        rng = random.Random(scene.rng.random())
                        appenders.start_soon(_append, scene, log, rng, number, acknowledged)
                receipt = await log.append(b"end")
                acknowledged[receipt.sequence] = b"end"
                await receipt.wait_durable()
                expect(log.durable == log.last, "all is flushed, and not durable")
            await log.discard(log.last - scene.rng.randrange(min(log.last, 100)))
            first = log.first
        if "torn-record" in scene.sabotage and opening == 1:
            await scene.outsider.do("overwrite", _last_segment(folder, first), 4096 + 30, "00ff00")
        await _compare(scene, folder, first, acknowledged)


def _last_segment(folder: str, first: int) -> str:
    return f"{folder}/{first:020d}.log"


async def _append(
    scene: Scene, log: Log, rng: random.Random, number: int, acknowledged: dict[int, bytes]
) -> None:
    for turn in range(RECORDS):
        data = _numbered(b"%d %d " % (number, turn), rng)
        match rng.randrange(12):
            case 0:
                receipt = await log.append_many([data, data, data])
                for sequence in range(receipt.sequence - 2, receipt.sequence + 1):
                    acknowledged[sequence] = data
                scene.acknowledged(3 * len(data))
                continue
            case 1:
                with anyio.CancelScope(shield=True):  # an append that has begun has a number
                    receipt = await log.append(data)
                    await receipt.wait_durable()
                expect(receipt.durable, "asked for durability, and not durable")
            case _:
                receipt = await log.append(data)
        acknowledged[receipt.sequence] = data
        scene.acknowledged(len(data))


async def _tail(
    scene: Scene, folder: str, start: int, durable: bool, acknowledged: dict[int, bytes]
) -> None:
    expected = start
    async with Log.open(folder, "r") as reader:
        async for found in reader.tail(start, durable=durable):
            expect(found.sequence == expected, f"record {found.sequence} after {expected - 1}")
            if durable:
                expect(reader.durable >= found.sequence, "durable=True, and not durable")
            expected += 1
            scene.counts["reads"] += 1
            if found.data == b"end":
                return
            _check(found.data)
            known = acknowledged.get(found.sequence, found.data)
            expect(known == found.data, f"record {found.sequence} is not what was appended")


async def _compare(scene: Scene, folder: str, first: int, acknowledged: dict[int, bytes]) -> None:
    sequence = first
    try:
        async with Log.open(folder, "r") as reader:
            expect(reader.first == first, f"the log begins with {reader.first}, not {first}")
            async for found in reader.read():
                expect(found.data == acknowledged[sequence], f"record {sequence} is wrong")
                sequence += 1
    except aiommap.LogError as error:
        expect(False, f"acknowledged records cannot be read: {error}")
    expect(sequence == len(acknowledged) + 1, f"the log ends before {sequence}")
    scene.counts["log records"] += sequence - first


async def killed_log(scene: Scene) -> None:
    """Kill a process that appends: the records that it called durable are there, in order."""
    folder, wanted = scene.path("killed"), scene.rng.randrange(1, 400)
    for _ in range(2):
        said = await scene.outsider.do("kill_a_logger", folder, wanted)
        async with Log.open(folder, segment_size=SEGMENT) as log:
            expect(log.last >= said, f"{said} records were durable, {log.last} are there")
            async for found in log.read():
                expect(found.data == record(found.sequence), f"record {found.sequence} is wrong")
            scene.acknowledged(said * len(record(1)))
            scene.counts["killed"] += 1
