"""``LogRecord``, ``LogReceipt``, and the statistics of a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .._native import LogReceipt as NativeReceipt
from .._native import LogRecord as NativeRecord


class ReceiptOwner(Protocol):
    """What a receipt needs from its log."""

    @property
    def durable(self) -> int: ...

    async def _make_durable(self, sequence: int) -> None: ...


class LogRecord(NativeRecord):
    """One record of a log.

    Attributes:
        sequence: its number; numbers begin at 1 and have no gaps.
        data: its bytes.
        life: number of the opening of the log in which it was appended. A power cut may take a
            record that was not durable, and a later record then gets its number. The life tells
            the two apart.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<LogRecord {self.sequence}: {len(self.data)} bytes>"


class LogReceipt(NativeReceipt):
    """Proof that records were appended, and that every reader of the log sees them.

    Attributes:
        sequence: number of the record, or of the last one if there are several.
        count: how many records the receipt is for.
    """

    __slots__ = ()

    _owner: ReceiptOwner

    @property
    def durable(self) -> bool:
        """Whether the records are on stable storage."""
        return self.sequence <= self._owner.durable

    async def wait_durable(self) -> None:
        """Make the records durable, whatever the flush policy, and return when they are.

        Raises:
            FlushError: if the flush fails, or an earlier one did.
            anyio.ClosedResourceError: if the log was closed before they were durable.
        Cancellation: a flush that has begun is waited out, then the cancellation is delivered.
        Durability: the records and all before them are durable when this returns.
        Concurrency: requests made while a flush runs are answered together by the next one.
        """
        if not self.durable:
            await self._owner._make_durable(self.sequence)  # noqa: SLF001  of the log that made us

    def __repr__(self) -> str:
        state = "durable" if self.durable else "not known to be durable"
        first = self.sequence - self.count + 1
        which = f"{self.sequence}" if self.count == 1 else f"{first} to {self.sequence}"
        return f"<LogReceipt {which}: {state}>"


@dataclass(slots=True)
class Counts:
    """What a writer has counted so far."""

    batches: int = 0
    flushes: int = 0
    flushed_records: int = 0
    rolls: int = 0
    roll_seconds: float = 0.0
    slowest_roll: float = 0.0

    def add_batch(self) -> None:
        """Count a batch."""
        self.batches += 1

    def add_flush(self, records: int) -> None:
        """Count a flush, and the records that it made durable."""
        self.flushes += 1
        self.flushed_records += records

    def add_roll(self, seconds: float) -> None:
        """Count a roll, and the time that it took."""
        self.rolls += 1
        self.roll_seconds += seconds
        self.slowest_roll = max(self.slowest_roll, seconds)


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What a log did since it was opened, and what it holds.

    Attributes:
        appended_records: records stored by this object.
        appended_bytes: bytes written to segments since then, all frames included.
        inline_appends: records stored on the loop thread, without a hop.
        batches: batches of appends and requests that the engine or a worker ran.
        flushes: flushes of a segment.
        flush_group: mean number of records that one flush made durable; 0.0 without any.
        rolls: segments begun.
        roll_seconds: seconds that all rolls took together.
        slowest_roll_seconds: seconds that the slowest roll took.
        standby_ready: whether the next segment is ready.
        segments: segments that are not discarded; 0 for readers, which do not know it.
        held_segments: segments that readers of this object have open.
        lag: records between the slowest running ``read`` or ``tail`` of this object and the end.
        wakeups: how often a ``tail`` of this object woke up at the end of the log.
        corrupt: damaged records that readers of this object found.
        write_path: "inline" while the loop thread stores appends that need not be durable at once,
            "worker" while other threads do, "none" for readers.
    """

    appended_records: int = 0
    appended_bytes: int = 0
    inline_appends: int = 0
    batches: int = 0
    flushes: int = 0
    flush_group: float = 0.0
    rolls: int = 0
    roll_seconds: float = 0.0
    slowest_roll_seconds: float = 0.0
    standby_ready: bool = False
    segments: int = 0
    held_segments: int = 0
    lag: int = 0
    wakeups: int = 0
    corrupt: int = 0
    write_path: str = "none"
