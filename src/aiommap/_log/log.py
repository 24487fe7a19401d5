"""``Log``: the verbs of a durable log, for its writer and for readers."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator, Iterable
from copy import copy
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, SupportsIndex, TypeAlias

import anyio

from .._arguments import at_least, check_kind, each_of, integer
from .._core.paths import absolute_path
from .._errors import AccessModeError, ForkedError
from .._flush_policy import MANUAL, FlushPolicy
from .._hub.opening import Opening
from .._native import export_bytes
from .._runtime.blocks import close_after
from .._runtime.event_loop import Event
from .._runtime.loops import spawn, wait_out
from .._runtime.workers import OnCancel, Workers
from .._typing import Buffer
from .appender import Appender
from .files import LogSegment, list_segments
from .format import MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES
from .items import Discard, Together, Writeback
from .log_folder import Folder
from .opening import open_writer
from .published import Published
from .reader import Reading
from .readings import Readings
from .receipt import LogReceipt, LogRecord, LogStatistics
from .recovery import Recovered
from .writer import Writer

DEFAULT_SEGMENT_BYTES = 64 << 20

StrPath: TypeAlias = str | os.PathLike[str]


class Log:
    """A durable log in a folder: one writer, any number of readers, in any processes.

    ``Log.open`` makes one. Records get sequence numbers from 1, without gaps, in the order in which
    they were submitted. docs/durable_log.md is the how-to, docs/log_format.md the format.

    Attributes:
        folder: the absolute path of the folder when the log was opened; renaming it harms nothing.
        mode: "a" for the writer, "r" for readers.
        recovered: what opening found behind the last good record; None for readers, and if the
            last writer closed the log.
    """

    def __init__(
        self,
        folder: str,
        mode: str,
        policy: FlushPolicy,
        workers: Workers,
        *,
        inline_writes: bool,
    ) -> None:
        self.folder: str = folder
        self.mode: str = mode
        self.recovered: Recovered | None = None
        self.home: Folder = Folder(folder)
        self.workers: Workers = workers
        self.published: Published = Published(workers)
        self.readings: Readings = Readings(workers)
        self.corrupt: int = 0
        self.wakeups: int = 0
        self._policy = policy
        self._inline_writes = inline_writes
        self._writer: Writer | None = None
        self._appender: Appender | None = None
        self._closed = False
        self._closing: Event | None = None
        self._close_error: BaseException | None = None

    @classmethod
    def open(
        cls,
        folder: StrPath,
        mode: str = "a",
        *,
        segment_size: SupportsIndex = DEFAULT_SEGMENT_BYTES,
        flush: FlushPolicy = MANUAL,
        retain_bytes: SupportsIndex | None = None,
        inline_writes: bool = True,
    ) -> Opening[Log]:
        """Open a log: ``async with aiommap.Log.open(folder) as log``.

        Mode "a" recovers a log after a crash, and makes the folder and the log if they are missing.
        Recovery deletes no record. Mode "r" needs read permission only, and writes nothing.

        Args:
            folder: a folder that holds the log and nothing else; its parent has to exist.
            mode: "a" to append and read, for one process at a time; "r" to read.
            segment_size: bytes of each new segment, from 64 KiB to 2 GiB.
            flush: when background flushes make records durable, as for files.
            retain_bytes: when a new segment is begun and all segments together take more bytes
                than this, the log discards the oldest ones; None keeps everything.
            inline_writes: whether the loop thread may store records that need not be durable at
                once. With False, a file system that stands still stops appends and nothing else.
                On FUSE the loop thread never stores.
        Returns:
            An object to use with ``async with``, or to ``await`` for a Log to ``aclose``.
        Raises:
            ValueError, TypeError: if an option makes no sense; raised before any file is touched.
            FileNotFoundError: in mode "r" if there is no such folder.
            anyio.BusyResourceError: in mode "a" if another writer has the log; it says who.
            CorruptRecordError: if a record that is known to have been durable is damaged.
            CorruptLogError: if segments are missing or do not belong together.
            UnsupportedError: if a later version wrote the log; in mode "a" also if the folder is
                on a network file system.
            OSError: from the system; ENOSPC if there is no room for a segment.
        Cancellation: opening is waited out, and the log is closed again; a log that was made stays.
        Durability: recovered records are durable when this returns.
        """
        path = absolute_path(folder)
        if mode not in ("a", "r"):
            raise ValueError(f'mode is {mode!r}: a log is opened with "a" to append or "r" to read')
        size = integer(segment_size, "segment_size")
        if not MIN_SEGMENT_BYTES <= size <= MAX_SEGMENT_BYTES:
            raise ValueError(
                f"segment_size is {size}: give {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES} bytes"
            )
        check_kind(flush, FlushPolicy, "flush", "give a FlushPolicy")
        retain, keep_all = None, "give at least 1, or None to keep all"
        if retain_bytes is not None:
            retain = at_least(1, retain_bytes, "retain_bytes", keep_all)
        return Opening(partial(cls._open, path, mode, size, flush, retain, inline_writes))

    @classmethod
    async def _open(
        cls,
        path: str,
        mode: str,
        segment_size: int,
        policy: FlushPolicy,
        retain: int | None,
        inline_writes: bool,
    ) -> Log:
        workers = Workers()
        log = cls(path, mode, policy, workers, inline_writes=inline_writes)

        def begin() -> None:
            log.home.open(create=mode == "a")
            if mode == "a":
                opened = open_writer(log.home, segment_size)
                log._writer = Writer(opened, policy, segment_size, retain)
                log.recovered = opened.recovered

        try:
            await workers.run(workers.control, begin, on_cancel=OnCancel.WAIT)
            log._begin(segment_size)
            await log.published.attach(log.home)
        except BaseException as error:  # a cancellation perhaps, and all is open
            if isinstance(error, GeneratorExit):
                raise  # the loop has ended: dropping the log releases what is open
            log._begin(segment_size)
            with anyio.CancelScope(shield=True):
                await log.aclose()
            raise
        return log

    def _begin(self, segment_size: int) -> None:
        """Make the appender, which only a writer has."""
        if self._writer is not None and self._appender is None:
            appender = partial(Appender, self.workers, self._writer, self._policy, segment_size)
            self._appender = appender(inline_writes=self._inline_writes)

    # State of the log.

    @property
    def closed(self) -> bool:
        """Whether ``aclose`` was called."""
        return self._closed

    @property
    def flush_policy(self) -> FlushPolicy:
        """When background flushes make records durable."""
        return self._policy

    @property
    def first(self) -> int:
        """The lowest sequence that was not discarded; in an empty log, that of the next record."""
        return self.published.first if self._writer is None else self._writer.first

    @property
    def last(self) -> int:
        """The sequence of the last record; ``first - 1`` in an empty log."""
        return self.published.last if self._writer is None else self._writer.last

    @property
    def durable(self) -> int:
        """The sequence up to which records are known to be on stable storage; 0 if none is."""
        return self.published.durable if self._writer is None else self._writer.durable

    @property
    def life(self) -> int:
        """Number of this opening of the log; records appended by it carry it. 0 for readers."""
        return 0 if self._writer is None else self._writer.native.life

    @property
    def log_id(self) -> bytes | None:
        """Sixteen random bytes that the log got when it was made; None while there is no log."""
        return self.published.log_id

    # Appending.

    async def append(self, data: Buffer) -> LogReceipt:
        """Append one record; it is visible to all readers when this returns.

        Args:
            data: any C-contiguous buffer of at most ``segment_size - 4152`` bytes.
        Raises:
            ValueError: if the data is larger.
            AccessModeError: in mode "r".
            FlushError: if a flush failed, now or earlier; the record may be in the log or not.
            OSError: ENOSPC if there is no room; the record is not in the log, and a later append
                tries again.
            anyio.ClosedResourceError, ForkedError: as for files.
        Cancellation: an append that has not begun is withdrawn, and its record is not in the log;
            one that has begun is waited out, and its record is in the log.
        Durability: the flush policy decides. Under ``always()`` the record is durable when this
            returns. Otherwise it survives the end of the process, and ``wait_durable`` makes it
            durable.
        Concurrency: any number of tasks may append; records are numbered in the order of the calls.
        """
        appender = self._appender
        if appender is None:
            raise self._not_writable("append to")
        if appender.may_inline:
            try:
                receipt = appender.append_granted(self, data)
            except OSError as error:
                appender.note_failed_store(error)
                raise
            if receipt is not None:
                return receipt
            data = self._checked(appender, data)
            if (receipt := appender.append_inline(self, data)) is not None:
                await self.workers.checkpoint_if_due()
                return receipt
        wait = appender.join(self, data)
        if wait is None:
            if not appender.may_inline:
                data = self._checked(appender, data)
            if not appender.ready:
                self._check_writing()
            wait = appender.enqueue(self, data)
        try:
            return await wait
        except BaseException as error:
            await appender.abandon(error, wait)
            raise

    async def append_many(self, items: Iterable[Buffer]) -> LogReceipt:
        """Append records in a row, and publish them together.

        If they fit into one segment, readers see all of them or none, and a failed call leaves none
        in the log. A power cut before they are durable may leave the first few.

        Args:
            items: the data of at least one record.
        Returns:
            One receipt, with the ``sequence`` of the last record and the ``count`` of records.
        Raises, Cancellation, Durability, Concurrency: as ``append``; if one item is refused, none
            is appended.
        """
        if not (given := [*each_of(items, "items", 'give the data of records, such as [b"data"]')]):
            raise ValueError("append_many got no records: give at least one")
        appender = self._check_writing()
        records: list[Buffer] = [self._checked(appender, data) for data in given]
        if len(records) == 1:
            return await self.append(records[0])
        sequence = await appender.submit(Together(records))
        return LogReceipt(self, sequence, len(records))

    def _checked(self, appender: Appender, data: object) -> bytes | memoryview:
        """Export the data of a record, which must not be too large."""
        exported, most = export_bytes(data), appender.max_record
        if len(exported) <= most:
            return exported
        raise ValueError(
            f"a record of {len(exported)} bytes does not fit into a segment of {self.folder}: "
            f"at most {most} do; open the log with a larger segment_size"
        )

    def _not_writable(self, operation: str) -> AccessModeError:
        return AccessModeError(operation, self.mode, 'open the log with mode "a"')

    # Making durable.

    async def flush(self) -> None:
        """Make every record durable that was appended before the call.

        Raises:
            FlushError: if this flush or an earlier one failed.
            AccessModeError: in mode "r".
        Cancellation: a flush that has begun is waited out, then the cancellation is delivered.
        Durability: the records and the names of their segments are durable when this returns.
        """
        appender = self._check_writing("flush")
        await appender.flush(appender.pending)

    async def start_writeback(self) -> None:
        """Have the kernel begin to write records back; a later flush is shorter.

        Raises:
            AccessModeError: in mode "r".
            FlushError, OSError: as ``append``.
        Cancellation: withdrawn, or waited out once it has begun.
        Durability: none.
        """
        await self._check_writing("start to write back").submit(Writeback())

    async def _make_durable(self, sequence: int) -> None:
        await self._check_writing("flush").flush(sequence)

    # Reading.

    def read(self, start: SupportsIndex | None = None) -> AsyncIterator[LogRecord]:
        """Iterate over the records, up to the last one that is in the log at the call.

        Args:
            start: sequence of the first record to read; None to begin with the first in the log.
        Raises, while iterating:
            RecordsDiscardedError: if the next record was discarded; it says which is the first now.
            ValueError: if ``start`` is greater than ``last + 1``.
            CorruptRecordError: if a record is damaged; read those behind it with ``start``.
            CorruptLogError: if a segment is missing.
            anyio.ClosedResourceError: if the log was closed.
        Cancellation: delivered when the time slice is spent and while waiting; after it you can go
            on with the same iterator, and no record is lost.
        Concurrency: any number of iterators at a time; one task at a time for each of them.
        """
        return self._reading(start, follow=False, durable=False)

    def tail(
        self, start: SupportsIndex | None = None, durable: bool = False
    ) -> AsyncIterator[LogRecord]:
        """Iterate over the records, and wait for more at the end; the iterator does not end.

        Args:
            start: as for ``read``; give ``log.last + 1`` to get new records only.
            durable: whether to wait with each record until it is on stable storage.
        Raises, Cancellation, Concurrency: as ``read``; also CorruptLogError if the folder was
            deleted, or in mode "r" if another folder is at its path. A renamed folder is no error.
        """
        return self._reading(start, follow=True, durable=durable)

    def _reading(self, start: SupportsIndex | None, *, follow: bool, durable: bool) -> Reading:
        self.check_reading()
        number = None if start is None else integer(start, "start")
        if number is not None and number < 1:
            raise ValueError(f"start is {number}: records are numbered from 1")
        reading = Reading(self, number, follow=follow, durable=durable)
        self.readings.add(reading)
        return reading

    def check_reading(self) -> None:
        """Raise if the log is closed, or this is a forked child."""
        if self.workers.forked:
            raise ForkedError(self.folder)
        if self._closed:
            raise anyio.ClosedResourceError(f"{self.folder} is closed: open the log again")

    # Segments, statistics, and closing.

    async def discard(self, before: SupportsIndex) -> None:
        """Drop each segment whose records all come before a sequence.

        Afterwards ``first`` is the first record of the segment that holds ``before``. A reader that
        has not come that far gets ``RecordsDiscardedError``. The disk space is free when no reader
        has the dropped segments open.

        Raises:
            ValueError: if ``before`` is not a sequence from 1 to ``last + 1``.
            AccessModeError, FlushError, OSError: as ``append``.
        Cancellation: withdrawn, or waited out once it has begun.
        Durability: if it drops a segment, that and all records appended before the call are
            durable when this returns.
        """
        number = integer(before, "before")
        appender = self._check_writing("discard records of")
        if not 1 <= number <= self.last + 1:
            raise ValueError(f"before is {number}: give a sequence from 1 to {self.last + 1}")
        await appender.submit(Discard(number))

    async def segments(self) -> tuple[LogSegment, ...]:
        """List the segments that are not discarded, oldest first, after reading each header.

        Raises:
            CorruptLogError: if a header is damaged.
            anyio.ClosedResourceError: if the log was closed.
        """
        self.check_reading()
        workers = self.workers
        return await workers.run(workers.control, list_segments, self.home, self.first)

    def statistics(self) -> LogStatistics:
        """Return what the log did so far."""
        held = self.readings.holding()
        return replace(
            LogStatistics() if self._appender is None else self._appender.counted(),
            held_segments=len(held),
            lag=max((self.last + 1 - reading.next_sequence for reading in held), default=0),
            wakeups=self.wakeups,
            corrupt=self.corrupt,
        )

    def _check_writing(self, operation: str = "append to") -> Appender:
        if self.workers.forked:
            raise ForkedError(self.folder)
        if self._closed:
            raise anyio.ClosedResourceError(f"{self.folder} is closed: open the log again")
        if self._writer is None or self._appender is None:
            raise self._not_writable(operation)
        failure = self._writer.failure
        if failure is not None:
            # A copy: with each raise the traceback would grow, and keep the frames of all callers.
            raise copy(failure) from failure.__cause__
        return self._appender

    async def aclose(self) -> None:
        """Finish what was begun, flush unless the policy is ``never()``, and release the log.

        Raises:
            FlushError: if the flush fails, or an earlier one did. The log is closed all the same.
                Of several tasks that close the log, the first that wakes gets the error.
        Cancellation: closing is waited out, then the cancellation is delivered.
        Durability: when this returns, all records are durable, unless the policy is ``never()``.
            If the last store failed, closing overwrites what it left in the file, durably and under
            any policy, so that no record that was refused comes back. If there is no room for that,
            the logger ``aiommap.logs`` gets a warning.
        """
        if self.workers.forked:
            self._closed = True
            return
        if self._closing is None:
            self.workers.check_loop("a log")
            closing = self.workers.event()
            spawn(self._close, closing)  # first, because it raises if the loop is ending
            self._closing = closing
            self._closed = True
            if self._appender is not None:
                self._appender.stop()
        try:
            await self._closing.wait()
        except BaseException:
            await wait_out(self._closing)
            raise
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    async def _close(self, closing: Event) -> None:
        try:
            await self.readings.end()
            if self._appender is not None:
                await self._appender.close()
        except Exception as error:
            self._close_error = error
        finally:
            try:
                await self.published.aclose()
                await self.readings.settle()
                workers = self.workers
                await workers.run(workers.control, self.home.close, on_cancel=OnCancel.WAIT)
            finally:
                self.workers.close()
                closing.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await close_after(error, self.aclose, "the log")

    def __del__(self) -> None:
        # Missing when __init__ failed. The files are closed when those who use them are dropped.
        if not getattr(self, "_closed", True) and not self.workers.forked:
            lost = "; nothing was flushed" if self.mode == "a" else ""
            text = f"the log {self.folder} was never closed{lost}: use async with, or aclose()"
            warnings.warn(text, ResourceWarning, stacklevel=2)  # a source would keep it locked

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"records {self.first} to {self.last}"
        return f'<Log {self.folder!r} mode "{self.mode}": {state}>'
