"""Statistics of one mapped file, as a frozen snapshot."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from .._flush.histogram import Histogram


@dataclass(frozen=True, slots=True)
class Distribution:
    """How the values of one kind were distributed; all zeros while there is no value.

    Attributes:
        count: number of values.
        total: their sum.
        p50: half of the values were at most this large; within five per cent.
        p99: ninety-nine in a hundred were at most this large; within five per cent.
        maximum: the largest value, exactly.
    """

    count: int
    total: float
    p50: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, found: Histogram) -> Distribution:
        """Take a snapshot of a histogram."""
        p50, p99 = found.quantile(0.5), found.quantile(0.99)
        return cls(found.count, found.total, p50, p99, found.maximum)


@dataclass(frozen=True, slots=True)
class LeasedRange:
    """A range whose pages a view, or something made from its memory, keeps mapped.

    Attributes:
        offset: first byte, from the start of the file.
        end: first byte behind it.
        taken_at: the file, line and function that asked for the view or its memory; None unless
            Python runs in development mode (``python -X dev``).
    """

    offset: int
    end: int
    taken_at: str | None


@dataclass(frozen=True, slots=True)
class FileStatistics:
    """What a mapped file has done since it was opened.

    Attributes:
        inline_reads: reads answered on the loop thread.
        offloaded_reads: reads that had to wait and that another thread answered.
        fell_back_reads: attempts to read inline that the kernel or the residency check refused: the
            data was not in memory, or the file system has no NOWAIT reads.
        inline_writes: writes stored on the loop thread.
        offloaded_writes: writes stored by another thread.
        fell_back_writes: attempts to store inline that would have waited: a page was not in memory,
            or a flush or an earlier write was at work on it.
        dirty_bytes: bytes of the pages that were stored to and not flushed since; in mode "c", of
            the private pages. A page counts whole, however few of its bytes were stored. The pages
            of a writable ``View.memory`` count for as long as it is held.
        oldest_dirty_seconds: how long ago the oldest dirty byte was stored; None if none is dirty.
        flushes: flushes that ran.
        flush_requests: requests that those flushes answered.
        flushed_bytes: bytes in the dirty pages that those flushes wrote.
        flush_group: how many requests each flush answered.
        flush_seconds: how long each flush took, in seconds.
        faults: how often a page could not be reached, in a copy or through a view.
        huge_page_bytes: the last count of ``huge_page_bytes()``, or of opening with
            ``huge_pages=True``; None if neither has counted.
        leases: views, and objects made from their memory, that keep the mapping.
        leased: the ranges of the oldest of those, at most 64, oldest first.
        flush_failed: whether a flush failed; also True if a writable file is poisoned, because
            every flush would fail. See FlushError and MappingFaultError.
        poisoned: whether a load or store through a view met a page that cannot be reached, so that
            every verb raises MappingFaultError until the file is reopened.
    """

    inline_reads: int
    offloaded_reads: int
    fell_back_reads: int
    inline_writes: int
    offloaded_writes: int
    fell_back_writes: int
    dirty_bytes: int
    oldest_dirty_seconds: float | None
    flushes: int
    flush_requests: int
    flushed_bytes: int
    flush_group: Distribution
    flush_seconds: Distribution
    faults: int
    huge_page_bytes: int | None
    leases: int
    leased: tuple[LeasedRange, ...]
    flush_failed: bool
    poisoned: bool


#: A limit however many views there are: programs ask for statistics often.
_MAX_LEASES_NAMED = 64


class Leases(Protocol):
    """What this module needs of a mapping to name its leases."""

    def oldest_leases(self, limit: int, /) -> list[tuple[int, int, str | None]]: ...


def oldest_leases(mapping: Leases) -> tuple[LeasedRange, ...]:
    """Return the ranges of the oldest leases."""
    return tuple(LeasedRange(*lease) for lease in mapping.oldest_leases(_MAX_LEASES_NAMED))


def caller_outside() -> str | None:
    """Say where the package was called from; None outside development mode, as this takes time."""
    if not sys.flags.dev_mode:
        return None
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  inspect would read source files
    while frame is not None:
        code = frame.f_code
        if frame.f_globals.get("__name__", "").partition(".")[0] != "aiommap":
            return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
        frame = frame.f_back
    return None


class DirtyTimes(Protocol):
    """What this module needs of a mapping to tell the age of dirty bytes."""

    @property
    def dirty_since(self) -> int: ...
    @property
    def writeback_since(self) -> int: ...


def oldest_dirty_seconds(mapping: DirtyTimes) -> float | None:
    """Say how old the oldest dirty byte is, even while a flush is writing it."""
    since = [moment for moment in (mapping.dirty_since, mapping.writeback_since) if moment]
    return (time.monotonic_ns() - min(since)) / 1e9 if since else None
