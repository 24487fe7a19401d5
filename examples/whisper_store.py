"""Graphite's Whisper files, read and written through one view per archive.

A Whisper file holds one series of numbers at several precisions, and never grows. It has a header,
then the archives back to back, finest first. All numbers are big-endian, and there is no padding::

    method u32, longest retention u32, x-files factor f32, number of archives u32
    for each archive: offset u32, step u32, points u32
    for each archive: for each point: interval u32, value f64

An archive is a ring. The interval of a point is its time rounded down to the step. The interval of
slot 0 is the *base*; the distance of an interval from the base gives its slot. A base of 0 means
that the archive is empty. If the interval stored in a slot is not the wanted one, the slot holds a
point of an earlier lap, and reads as None.

A store into an archive propagates at once to the next, coarser archive. If the share of known
points in a coarser interval reaches the x-files factor, their aggregate is stored for that
interval, and propagates further in the same way.

The files equal, byte for byte, those that the package ``whisper`` makes from the same calls. As
there, writers in several processes have to agree on turns.
"""

from __future__ import annotations

import argparse
import itertools
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, Self

import anyio

import aiommap
from aiommap import FlushPolicy

METADATA = struct.Struct("!2LfL")
ARCHIVE = struct.Struct("!3L")
POINT = struct.Struct("!Ld")
#: A power cut costs at most the points of this many seconds.
FLUSH = FlushPolicy.every_interval(5.0)

Values = list[float | None]


#: How to aggregate the known values among ``count``. The header has a method's number, from 1 on.
METHODS: dict[str, Callable[[list[float], int], float]] = {
    "average": lambda known, _: sum(known) / len(known),
    "sum": lambda known, _: sum(known),
    "last": lambda known, _: known[-1],
    "max": lambda known, _: max(known),
    "min": lambda known, _: min(known),
    "avg_zero": lambda known, count: sum(known) / count,
    "absmax": lambda known, _: max(known, key=abs),
    "absmin": lambda known, _: min(known, key=abs),
}


class WhisperError(ValueError):
    """The file is no Whisper file, its archives do not fit one another, or a time is too old."""


class Series(NamedTuple):
    """The values that ``fetch`` found, one for each interval in ``range(start, end, step)``."""

    start: int
    end: int
    step: int
    values: Values


@dataclass(frozen=True, slots=True)
class Archive:
    """One ring of points, in a view of its own."""

    view: aiommap.View
    step: int
    points: int

    @property
    def retention(self) -> int:
        return self.step * self.points

    def interval(self, timestamp: int) -> int:
        return timestamp - timestamp % self.step

    async def base(self) -> int:
        interval: int = POINT.unpack(await self.view.read(0, POINT.size))[0]
        return interval

    def slot(self, interval: int, base: int) -> int:
        return (interval - base) // self.step % self.points

    async def store(self, points: Sequence[tuple[int, float]]) -> None:
        """Store (interval, value) pairs, oldest first."""
        base = await self.base() or points[0][0]
        for interval, value in points:
            place = self.slot(interval, base) * POINT.size
            await self.view.write(place, POINT.pack(interval, value))

    async def values(self, start: int, end: int) -> Values:
        """Read the values of the intervals in [start, end), at most one lap of them."""
        count = (end - start) // self.step
        base = await self.base()
        if not base:
            return [None] * count
        count = count % self.points or self.points
        first = self.slot(start, base)
        head = min(count, self.points - first)
        data = await self.view.read(first * POINT.size, head * POINT.size)
        data += await self.view.read(0, (count - head) * POINT.size)
        expected = itertools.count(start, self.step)
        return [
            value if interval == wanted else None
            for wanted, (interval, value) in zip(expected, POINT.iter_unpack(data), strict=False)
        ]


def check_archives(archives: Sequence[tuple[int, int]]) -> None:
    """Check that (step, points) pairs, finest first, can be propagated from one to the next."""
    if not archives or any(step < 1 or points < 1 for step, points in archives):
        raise WhisperError(f"archives {archives}: give at least one, of positive step and points")
    for (step, points), (coarse, more) in itertools.pairwise(archives):
        if coarse <= step or coarse % step:
            raise WhisperError(f"archives {archives}: step {coarse} is no multiple of {step}")
        if coarse * more <= step * points:
            raise WhisperError(f"archives {archives}: the one of step {coarse} reaches no further")
        if points < coarse // step:
            raise WhisperError(f"archives {archives}: {points} points make up no step of {coarse}")


async def create(
    path: str | os.PathLike[str],
    archives: Iterable[tuple[int, int]],
    x_files_factor: float = 0.5,
    method: str = "average",
    *,
    sparse: bool = False,
) -> None:
    """Create a file of (step, points) archives; it is durable when this returns.

    Raises:
        WhisperError: if the archives do not fit one another, or method or factor are invalid.
        FileExistsError: if there is something at the path.
    """
    ordered = sorted(archives)
    check_archives(ordered)
    if method not in METHODS or not 0 <= x_files_factor <= 1:
        raise WhisperError(f"{method!r}, {x_files_factor}: use one of {[*METHODS]}, and 0 to 1")
    step, points = ordered[-1]
    number = [*METHODS].index(method) + 1
    header = METADATA.pack(number, step * points, x_files_factor, len(ordered))
    offset = METADATA.size + ARCHIVE.size * len(ordered)
    for step, points in ordered:
        header += ARCHIVE.pack(offset, step, points)
        offset += points * POINT.size
    async with aiommap.open(path, "x+", size=offset, sparse=sparse) as file:
        await file.write(0, header)


class WhisperStore:
    """A Whisper file; made by ``WhisperStore.open``.

    Concurrency: for tasks of one event loop. Updates take turns, fetches do not wait for them.
    """

    def __init__(self, number: int, x_files_factor: float, archives: list[Archive]) -> None:
        self.method, self._aggregate = [*METHODS.items()][number - 1]
        self.longest_retention = archives[-1].retention
        self.x_files_factor = x_files_factor
        self.archives = archives
        self._turn = anyio.Lock(fast_acquire=True)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: str | os.PathLike[str],
        mode: str = "r+",
        flush: FlushPolicy = FLUSH,
    ) -> AsyncIterator[Self]:
        """Open a file; in mode "r" only ``fetch`` works.

        Raises:
            WhisperError: if its header is invalid.
        """
        async with aiommap.open(path, mode, flush=flush) as file:
            try:
                store = await cls._over(file)
            except (aiommap.OutOfBoundsError, aiommap.OverlapError, WhisperError) as error:
                raise WhisperError(f"{file.path} is no Whisper file: {error}") from error
            yield store

    @classmethod
    async def _over(cls, file: aiommap.MappedFile) -> Self:
        number, longest, factor, count = METADATA.unpack(await file.read(0, METADATA.size))
        infos = [*ARCHIVE.iter_unpack(await file.read(METADATA.size, ARCHIVE.size * count))]
        check_archives([(step, points) for _, step, points in infos])
        if not 1 <= number <= len(METHODS) or not 0 <= factor <= 1:
            raise WhisperError(f"method {number}, x-files factor {factor}")
        if longest != infos[-1][1] * infos[-1][2]:
            raise WhisperError(f"longest retention {longest}, archives {infos}")
        # `carve` checks the header: no archive leaves the file, nor shares a byte with another.
        parts = {f"archive {i}": (at, n * POINT.size) for i, (at, _, n) in enumerate(infos)}
        header = (0, METADATA.size + ARCHIVE.size * count)
        views = file.carve({"header": header, **parts})
        archives = [
            Archive(views[name], step, points)
            for name, (_, step, points) in zip(parts, infos, strict=True)
        ]
        return cls(number, factor, archives)

    async def update(
        self, value: float, timestamp: float | None = None, now: int | None = None
    ) -> None:
        """Store one value, by default of this moment.

        Raises:
            WhisperError: if the timestamp is in the future, or older than every archive reaches.
        Cancellation: coarser archives may miss the value until the next update of its interval.
        """
        now = int(time.time()) if now is None else now
        stamp = now if timestamp is None else int(timestamp)
        age = now - stamp
        if not 0 <= age < self.longest_retention:
            raise WhisperError(f"{stamp} is {age} s ago: give 0 to {self.longest_retention - 1}")
        place = next(i for i, archive in enumerate(self.archives) if archive.retention >= age)
        archive = self.archives[place]
        interval = archive.interval(stamp)
        async with self._turn:
            await archive.store([(interval, float(value))])
            for fine, coarse in itertools.pairwise(self.archives[place:]):
                if not await self._propagate(interval, fine, coarse):
                    break

    async def update_many(
        self, points: Iterable[tuple[float, float]], now: int | None = None
    ) -> None:
        """Store (timestamp, value) pairs, each in the finest archive that reaches it.

        Pairs that are too old for every archive are left out. Of several values for one interval
        the latest stays; of those with the same timestamp, the first.
        """
        now = int(time.time()) if now is None else now
        pairs = [(int(timestamp), float(value)) for timestamp, value in points]
        newest_first = sorted(pairs, key=lambda pair: pair[0], reverse=True)
        async with self._turn:
            for place, archive in enumerate(self.archives):
                oldest = now - archive.retention
                reached = [pair for pair in newest_first if pair[0] >= oldest]
                del newest_first[: len(reached)]
                if reached:
                    await self._store_many(place, reached[::-1])

    async def _store_many(self, place: int, points: list[tuple[int, float]]) -> None:
        archive = self.archives[place]
        # Oldest first, so that of several values for one interval the last is kept.
        latest = {archive.interval(timestamp): value for timestamp, value in points}
        await archive.store([*latest.items()])
        for fine, coarse in itertools.pairwise(self.archives[place:]):
            # In a set's order, as ``whisper`` does: the first to reach an empty archive is its
            # base.
            intervals = {coarse.interval(interval) for interval in latest}
            if not any([await self._propagate(each, fine, coarse) for each in intervals]):
                break

    async def _propagate(self, timestamp: int, fine: Archive, coarse: Archive) -> bool:
        """Aggregate one interval of the coarser archive; tell whether enough of it was known."""
        interval = coarse.interval(timestamp)
        values = await fine.values(interval, interval + coarse.step)
        known = [value for value in values if value is not None]
        if not known or len(known) / len(values) < self.x_files_factor:
            return False
        await coarse.store([(interval, self._aggregate(known, len(values)))])
        return True

    async def fetch(
        self,
        start: float,
        end: float | None = None,
        now: int | None = None,
        step: int | None = None,
    ) -> Series | None:
        """Read the values after ``start`` and up to ``end``, by default this moment.

        Args:
            step: the step of the archive to read; None means the finest one that reaches start.
        Returns:
            None if the whole range is in the future, or older than every archive reaches.
        Raises:
            WhisperError: if the end is before the start, or no archive has the step.
        """
        now = int(time.time()) if now is None else now
        low, high = int(start), now if end is None else int(end)
        if low > high:
            raise WhisperError(f"asked for {low} to {high}: the end is before the start")
        oldest = now - self.longest_retention
        if low > now or high < oldest:
            return None
        low, high = max(low, oldest), min(high, now)
        archive = self._select(now - low, step)
        first, last = archive.interval(low) + archive.step, archive.interval(high) + archive.step
        last += archive.step * (first == last)  # there is always one value
        return Series(first, last, archive.step, await archive.values(first, last))

    def _select(self, age: int, step: int | None) -> Archive:
        for archive in self.archives:
            if archive.retention >= age if step is None else archive.step == step:
                return archive
        raise WhisperError(f"no archive of step {step}: {[each.step for each in self.archives]}")


async def run(path: str, value: float) -> None:
    with suppress(FileExistsError):
        await create(path, [(1, 3600), (60, 1440)])  # a second for an hour, a minute for a day
    async with WhisperStore.open(path) as store:
        await store.update(value)
        for archive in store.archives:
            series = await store.fetch(time.time() - archive.retention, step=archive.step)
            known = [value for value in series.values if value is not None] if series else []
            print(f"step {archive.step}: {len(known)} of {archive.points} points known")


def main() -> None:
    parser = argparse.ArgumentParser(description="Store a value in a Whisper file.")
    parser.add_argument("file")
    parser.add_argument("value", type=float)
    options = parser.parse_args()
    anyio.run(run, options.file, options.value)


if __name__ == "__main__":
    main()
