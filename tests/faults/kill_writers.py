"""Writers to be killed, and the server that forks them; the server imports what they need.

The server reads runs from its standard input, one per line: what to write, the file, the seed, the
number of lines to wait for, and the delay before the kill. It answers with the acknowledged writes.
A writer's first two lines are empty: one before it opens the file, and one afterwards.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import deque

import anyio
import anyio.lowlevel

import aiommap
from aiommap import FlushPolicy, Log

WRITERS = 8
RECORDS = 24  # each writer's
SEGMENT = 256 << 10
STEP = 16 << 10
SLOT = 500
#: A record of this size goes to the queue, even if its pages are in memory.
LARGE = 80 << 10
CAPACITY = 1 << 30

#: The policy of a run, and whether each writer asks for durability itself.
POLICIES = {
    "never": (FlushPolicy.never(), True),
    "manual": (FlushPolicy.manual(), True),
    "always": (FlushPolicy.always(), False),
    "every_bytes": (FlushPolicy.every_bytes(5 * SLOT), False),
    "every_writes": (FlushPolicy.every_writes(7), False),
    "every_interval": (FlushPolicy.every_interval(0.001), False),
}


def content(seed: int, writer: int, index: int) -> bytes:
    """Make the record with this number, of this writer, in the run with this seed."""
    draw = random.Random(f"{seed} {writer} {index}")
    size = LARGE if draw.random() < 0.02 else draw.randint(1, SLOT)
    return b"%d %d %d " % (seed, writer, index) + draw.randbytes(size)


class Reporter:
    """Reports acknowledged writes through a pipe, which outlives this process."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def tell(self, *numbers: int) -> None:
        """Write a line; one this short is written whole or not at all (pipe(7))."""
        os.write(self._pipe, b"%s\n" % " ".join(map(str, numbers)).encode())


class Slots:
    """Writers that share a growing file; each record takes the next place."""

    def __init__(self, file: aiommap.MappedFile, reporter: Reporter, seed: int) -> None:
        self._file = file
        self._reporter = reporter
        self._seed = seed
        self._end = 0
        self._growing = anyio.Lock()

    async def write(self, writer: int, *, ask: bool) -> None:
        outstanding = deque()
        for index in range(RECORDS):
            data = content(self._seed, writer, index)
            place, self._end = self._end, self._end + len(data)
            await self._make_room(place + len(data))
            receipt = await self._file.write(place, data)
            outstanding.append(((writer, index, place), receipt))
            if ask:
                await receipt.wait_durable()
            while outstanding and outstanding[0][1].durable:
                self._reporter.tell(*outstanding.popleft()[0])
            await anyio.lowlevel.checkpoint()
        await self._file.flush()
        for line, receipt in outstanding:
            assert receipt.durable
            self._reporter.tell(*line)

    async def _make_room(self, end: int) -> None:
        async with self._growing:
            if end > self._file.size:
                await self._file.resize(-(-end // STEP) * STEP)


async def write_slots(policy: str, path: str, seed: int, reporter: Reporter) -> None:
    flush, ask = POLICIES[policy]
    reporter.tell()
    file = await aiommap.open(path, "x+", size=0, capacity=CAPACITY, flush=flush)
    async with file, anyio.create_task_group() as group:
        reporter.tell()
        slots = Slots(file, reporter, seed)
        for writer in range(WRITERS):
            group.start_soon(lambda writer: slots.write(writer, ask=ask), writer)
        await anyio.sleep_forever()


async def append_to_log(_: str, path: str, seed: int, reporter: Reporter) -> None:
    async def append(writer: int) -> None:
        for index in range(RECORDS):
            receipt = await log.append(content(seed, writer, index))
            reporter.tell(writer, index, receipt.sequence)

    reporter.tell()
    always = FlushPolicy.always()
    async with (
        Log.open(path, flush=always, segment_size=SEGMENT) as log,
        anyio.create_task_group() as group,
    ):
        reporter.tell()
        for writer in range(WRITERS):
            group.start_soon(append, writer)
        await anyio.sleep_forever()


async def append_to_file(_: str, path: str, seed: int, reporter: Reporter) -> None:
    """Append through two mapped files, half of the writers each, as two processes would."""

    async def append(file: aiommap.MappedFile, writer: int) -> None:
        for index in range(RECORDS):
            receipt = await file.append(content(seed, writer, index))
            reporter.tell(writer, index, receipt.offset)

    reporter.tell()
    async with (
        aiommap.open(path, "a+", flush=FlushPolicy.always()) as one,
        aiommap.open(path, "a+") as other,
        anyio.create_task_group() as group,
    ):
        reporter.tell()
        for writer in range(WRITERS):
            group.start_soon(append, one if writer % 2 else other, writer)
        await anyio.sleep_forever()


#: Other things to write than slots under a policy.
FUNCTIONS = {"log": append_to_log, "append": append_to_file}


def run(what: str, path: str, seed: int, patience: int, delay: float) -> dict[str, object]:
    """Fork a writer, kill it after some lines and a delay, and collect all that it reported."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            function = FUNCTIONS.get(what, write_slots)
            anyio.run(function, what, path, seed, Reporter(writing))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        lines = [pipe.readline() for _ in range(patience)]
        time.sleep(delay)  # not to wait for anything: it makes the moment random
        os.kill(child, signal.SIGKILL)
        lines += pipe.readlines()
    _, status = os.waitpid(child, 0)
    told = [list(map(int, line.split())) for line in lines]
    return {"killed": os.WIFSIGNALED(status), "acknowledged": told[2:]}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
