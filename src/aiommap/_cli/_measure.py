"""Measuring awaited operations: many tasks, each with one operation at a time, and a heartbeat."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import anyio

from ._heartbeat import Heartbeat

#: One operation at an offset; called and awaited again and again by one task.
Operation = Callable[[int], Awaitable[object]]

_OFFSETS = 1 << 14


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measurement of one contender.

    Attributes:
        operations: how many operations finished.
        length: bytes that all of them moved together.
        seconds: wall time from the first start to the last end.
        worst_gap: longest gap between two ticks of a 1 ms heartbeat on the same loop, in seconds.
        worst_wait: longest time in a gap in which the loop thread had to wait, in seconds.
        latencies: seconds of each operation, ascending; empty if they were not measured.
        counted: whether to show operations per second instead of bytes per second.
    """

    operations: int
    length: int
    seconds: float
    worst_gap: float
    worst_wait: float
    latencies: Sequence[float] = field(default=(), repr=False)
    counted: bool = False

    @property
    def operations_per_second(self) -> float:
        """Finished operations per second of wall time."""
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def seconds_each(self) -> float:
        """Wall time divided by the number of finished operations."""
        return self.seconds / max(1, self.operations)

    def percentile(self, share: float) -> float:
        """Return the latency, in seconds, that this share of the operations did not exceed."""
        if not self.latencies:
            return 0.0
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]

    def as_json(self) -> dict[str, object]:
        """Return the figures under names that carry their units."""
        document: dict[str, object] = {
            "operations": self.operations,
            "bytes": self.length,
            "seconds": self.seconds,
            "operations_per_second": self.operations_per_second,
            "worst_gap_seconds": self.worst_gap,
            "worst_wait_seconds": self.worst_wait,
        }
        if self.latencies:
            document["p50_seconds"] = self.percentile(0.5)
            document["p99_seconds"] = self.percentile(0.99)
        return document


def random_offsets(span: int, block: int, tasks: int) -> list[Iterator[int]]:
    """Return, for each task, an endless iterator of random block-aligned offsets; always the same.

    All numbers are drawn here, before the measurement: drawing one takes as long as a warm read,
    and drawing a table in each task would be the longest stall of the run.
    """
    draw = random.Random(0)  # noqa: S311  offsets are no secret
    blocks = max(1, span // block)
    table = [draw.randrange(blocks) * block for _ in range(_OFFSETS)]
    starts = (task * _OFFSETS // tasks for task in range(tasks))
    return [cycle(table[start:] + table[:start]) for start in starts]


async def measure_repeated(
    operations: Sequence[Operation], *, span: int, block: int, seconds: float
) -> Measurement:
    """Have one task for each operation repeat it at random offsets until the time is over.

    Args:
        operations: the operations, one for each task.
        span: the offsets lie within the first ``span`` bytes.
        block: bytes that one operation moves; the offsets are multiples of it.
        seconds: how long to measure.
    """
    latencies = array("d")
    runs = random_offsets(span, block, len(operations))
    async with Heartbeat() as beat:
        start = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for operation, offsets in zip(operations, runs, strict=True):
                tasks.start_soon(_repeat, operation, offsets, start + seconds, latencies)
        elapsed = time.perf_counter() - start
    done = len(latencies)
    gaps = beat.worst_gap, beat.worst_wait
    return Measurement(done, done * block, elapsed, *gaps, sorted(latencies), counted=True)


async def _repeat(
    operation: Operation, offsets: Iterator[int], deadline: float, latencies: array[float]
) -> None:
    clock = time.perf_counter
    before = clock()
    for offset in offsets:
        await operation(offset)
        after = clock()
        latencies.append(after - before)
        if after >= deadline:
            return
        before = after


async def measure_once(work: Callable[[], Awaitable[object]], length: int) -> Measurement:
    """Measure one piece of work that moves ``length`` bytes."""
    async with Heartbeat() as beat:
        start = time.perf_counter()
        await work()
        elapsed = time.perf_counter() - start
    return Measurement(1, length, elapsed, beat.worst_gap, beat.worst_wait)


def middle(rounds: Sequence[Measurement]) -> Measurement:
    """Return the round with the median worst wait: in a single one the machine may have stalled."""
    return sorted(rounds, key=lambda measured: measured.worst_wait)[len(rounds) // 2]


async def measure_shared(operations: Sequence[Operation], *, span: int, block: int) -> Measurement:
    """Have one task for each operation take the next block in order, until all blocks are done."""
    remaining = iter(range(0, span, block))
    latencies = array("d")

    async def worker(operation: Operation) -> None:
        for offset in remaining:
            before = time.perf_counter()
            await operation(offset)
            latencies.append(time.perf_counter() - before)

    async with Heartbeat() as beat:
        start = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for operation in operations:
                tasks.start_soon(worker, operation)
        elapsed = time.perf_counter() - start
    gaps = beat.worst_gap, beat.worst_wait
    return Measurement(len(latencies), span, elapsed, *gaps, sorted(latencies))
