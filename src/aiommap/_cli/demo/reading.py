"""The read half of the demo: cold reads, a residency picture, prewarm, warm reads."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import partial

import aiommap
from aiommap import Advice

from .._measure import Operation, measure_once, measure_repeated, measure_shared, middle
from .._stdlib import in_thread, stdlib_mapping
from .._system import HIDDEN, visible_residency
from .._text import KIB, MIB, format_bytes, format_seconds, format_share, plural
from .stage import Stage

_COLD_CHUNK = MIB
_COLD_READERS = 8
_COLD_ROUNDS = 3
_WARM_BLOCK = 4 * KIB
_MIN_CELLS, _MAX_CELLS = 16, 64

# MADV_POPULATE_READ of madvise(2), Linux 5.14; the mmap module of Python 3.11 has no name for it.
_POPULATE_READ = 22


async def read_cold(stage: Stage) -> None:
    """Read everything from the disk, several tasks at once."""
    stage.screen.heading(
        f"Cold read of {format_bytes(stage.span)} from the disk, {_COLD_READERS} tasks"
    )
    measure = partial(measure_shared, span=stage.span, block=_COLD_CHUNK)
    ours, theirs = [], []
    for _ in range(_COLD_ROUNDS):
        await stage.make_cold()
        async with aiommap.open(stage.path) as file:
            ours.append(await measure(_readers(file, stage.span, _COLD_CHUNK, _COLD_READERS)))
        await stage.make_cold()
        async with stdlib_mapping(stage.path) as mapping:
            theirs.append(await measure(_slicers(mapping, stage.span, _COLD_CHUNK, _COLD_READERS)))
    stage.compare("cold read", middle(ours), middle(theirs))


async def read_warm(stage: Stage) -> None:
    """Read small blocks at random while everything is in memory."""
    block = min(_WARM_BLOCK, stage.span)
    stage.screen.heading(
        f"Warm reads of {format_bytes(block)} at random, {plural(stage.tasks, 'task')} in "
        "tight loops"
    )
    measure = partial(measure_repeated, span=stage.span, block=block, seconds=stage.seconds)
    async with aiommap.open(stage.path) as file:
        await file.prewarm(0, stage.span)
        ours = await measure(_readers(file, stage.span, block, stage.tasks))
        statistics = file.statistics()
    async with stdlib_mapping(stage.path) as mapping:
        theirs = await measure(_slicers(mapping, stage.span, block, stage.tasks))
    stage.compare("warm reads", ours, theirs, waits=False)
    stage.tell(
        f"aiommap answered {plural(statistics.inline_reads, 'read')} on the loop itself and "
        f"{plural(statistics.offloaded_reads, 'read')} in a worker."
    )
    if stage.tasks > 1:
        stage.tell(
            f"One turn of the loop took up to {format_seconds(ours.worst_gap)}, as {stage.tasks} "
            "tasks that never pause share its thread; it waited for nothing longer than "
            f"{format_seconds(ours.worst_wait)}. Tasks that do other work between two reads leave "
            "short turns."
        )


def _readers(file: aiommap.MappedFile, span: int, block: int, tasks: int) -> Sequence[Operation]:
    return [lambda offset: file.read(offset, min(block, span - offset))] * tasks


def _slicers(mapping: mmap.mmap, span: int, block: int, tasks: int) -> Sequence[Operation]:
    def read(offset: int) -> bytes:
        return mapping[offset : min(offset + block, span)]

    return [lambda offset: in_thread(partial(read, offset))] * tasks


async def draw_residency(stage: Stage) -> None:
    """Drop everything, read a few parts, and draw what is in memory."""
    stage.screen.heading("What is in memory after three parts of a cold file were read")
    await stage.make_cold()
    # RANDOM, because the kernel's read-ahead would make more pages resident than were read.
    async with aiommap.open(stage.path, advice=Advice.RANDOM) as file:
        part = max(1, stage.span // 12)
        for start in (stage.span // 8, stage.span // 2, stage.span - part):
            end = min(start + part, stage.span)
            for offset in range(start, end, MIB):
                await file.read(offset, min(MIB, end - offset))
        _draw(stage, await visible_residency(file, 0, stage.span))


async def prewarm(stage: Stage) -> None:
    """Bring the cold file into memory, and count the pages that are there."""
    stage.screen.heading(f"Prewarm: bring {format_bytes(stage.span)} into memory beforehand")
    await stage.make_cold()
    async with aiommap.open(stage.path) as file:
        with stage.screen.progress("  prewarm") as progress:
            ours = await measure_once(
                lambda: file.prewarm(0, stage.span, progress=progress), stage.span
            )
        residency = await visible_residency(file, 0, stage.span)
    await stage.make_cold()
    async with stdlib_mapping(stage.path) as mapping:
        theirs = await measure_once(
            lambda: in_thread(partial(_populate, mapping, stage.span)), stage.span
        )
    stage.compare("prewarm", ours, theirs)
    _draw(stage, residency)


def _populate(mapping: mmap.mmap, span: int) -> None:
    """Prewarm as a user of stdlib mmap can: by one call, or by reading one byte of every page."""
    try:
        mapping.madvise(_POPULATE_READ, 0, span)
    except OSError:
        _ = mapping[0 : span : mmap.PAGESIZE]


def _draw(stage: Stage, residency: aiommap.Residency | None) -> None:
    if residency is None:
        stage.screen.line(f"  {HIDDEN}")
        return
    counted = (
        f" {residency.resident:,} of {plural(residency.total, 'page')}, "
        f"{format_share(residency.resident, residency.total)}"
    )
    cells = min(_MAX_CELLS, stage.screen.columns - len(counted) - len("  []"))
    # If there is no room beside the chart, the count goes to the next line.
    width = cells if cells >= _MIN_CELLS else min(_MAX_CELLS, stage.screen.columns - len("  []"))
    stage.screen.line(
        "  [", (stage.screen.chart(residency, width), "green"), "]", counted, indent=3
    )
