"""The writes of the demo: make the file, count durable bytes, write durably, make a large flush."""

from __future__ import annotations

import mmap
import os
from functools import partial

import aiommap
from aiommap import FlushPolicy

from .._measure import Measurement, measure_once, measure_repeated
from .._stdlib import in_thread, stdlib_mapping
from .._text import MIB, format_bytes, format_rate, format_seconds, plural
from .stage import Stage

_CHUNK = 4 * MIB


async def create(stage: Stage) -> Measurement:
    """Make the file: reserve its blocks, fill it, flush it."""
    stage.screen.heading(f"A new file of {format_bytes(stage.span)}")
    noise = os.urandom(_CHUNK)

    async def fill() -> None:
        async with aiommap.open(stage.path, "x+", size=stage.span) as file:
            await _store(file, noise, stage.span)
            await file.flush()

    made = await measure_once(fill, stage.span)
    stage.tell(
        f"written and flushed in {format_seconds(made.seconds)} "
        f"({format_rate(made.length, made.seconds)}); the loop waited at most "
        f"{format_seconds(made.worst_wait)}."
    )
    return made


async def _store(file: aiommap.MappedFile, data: bytes, length: int) -> None:
    with memoryview(data) as pattern:
        for offset in range(0, length, len(data)):
            await file.write(offset, pattern[: length - offset])


async def count_durable(stage: Stage) -> dict[str, object]:
    """Write one record, and show before and after a flush whether it is durable."""
    stage.screen.heading("Is what I wrote on the disk yet?")
    async with aiommap.open(stage.path, "r+", flush=FlushPolicy.manual()) as file:
        receipt = await file.write(0, b"a record")
        early = receipt.durable, file.statistics().dirty_bytes
        await receipt.wait_durable()
        late = receipt.durable, file.statistics().dirty_bytes
    for when, (durable, dirty) in (("written", early), ("awaited", late)):
        stage.screen.line(
            f"  {when}: receipt.durable is {durable}, {format_bytes(dirty)} of the file dirty"
        )
    stage.tell("stdlib mmap gives no receipt and keeps no count.")
    stage.promise("what is not durable yet", "counted", "not known")
    return {"written": early[0], "awaited": late[0], "dirty_bytes": [early[1], late[1]]}


async def write_durably(stage: Stage) -> dict[str, object]:
    """Have many tasks write records; each is durable when its write returns."""
    record = os.urandom(aiommap.PAGE_SIZE)
    stage.screen.heading(
        f"{plural(stage.tasks, 'task')} write records of {format_bytes(len(record))}; "
        "each is durable when its write returns"
    )
    run = partial(measure_repeated, span=stage.span, block=len(record), seconds=stage.seconds)
    async with aiommap.open(stage.path, "r+", flush=FlushPolicy.always()) as file:
        ours = await run([lambda offset: file.write(offset, record)] * stage.tasks)
        statistics = file.statistics()
    async with stdlib_mapping(stage.path, writable=True) as mapping:
        store = partial(_store_and_flush, mapping, record)
        theirs = await run([lambda offset: in_thread(partial(store, offset))] * stage.tasks)
    stage.compare("durable writes", ours, theirs)
    stage.tell(
        f"Writers that wait together share a flush: aiommap answered "
        f"{plural(statistics.flush_requests, 'request')} with "
        f"{plural(statistics.flushes, 'flush')}."
    )
    return {
        "flush_requests": statistics.flush_requests,
        "flushes": statistics.flushes,
        "largest_flush_group": int(statistics.flush_group.maximum),
    }


def _store_and_flush(mapping: mmap.mmap, record: bytes, offset: int) -> None:
    mapping[offset : offset + len(record)] = record
    mapping.flush(offset, len(record))


async def flush_much(stage: Stage) -> None:
    """Dirty half of the file, then flush it in one call."""
    length = stage.span // 2
    stage.screen.heading(f"One flush of {format_bytes(length)}")
    noise = os.urandom(_CHUNK)
    async with aiommap.open(stage.path, "r+") as file:
        await _store(file, noise, length)
        ours = await measure_once(file.flush, length)
    async with stdlib_mapping(stage.path, writable=True) as mapping:
        for offset in range(0, length, _CHUNK):
            await in_thread(partial(_store_part, mapping, noise, offset, length))
        theirs = await measure_once(lambda: in_thread(mapping.flush), length)
    stage.compare("large flush", ours, theirs)


def _store_part(mapping: mmap.mmap, data: bytes, offset: int, end: int) -> None:
    part = data[: end - offset]
    mapping[offset : offset + len(part)] = part
