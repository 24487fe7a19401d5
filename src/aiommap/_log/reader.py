"""Reading a log: one cursor for each ``read`` or ``tail``, in any process.

Theory of operation. The writer publishes how far the log goes in words of the control file, which
readers map. A reader that is behind the end reads some 256 KiB at a time: on the loop thread if the
bytes are in the page cache, else in a worker. It checks every frame before it hands out a record.
Each time the reader looks at the words, it grants up to ``GRANTED_RECORDS`` records: ``async for``
gets those from the native cursor without a call of Python. A reader at the end sleeps on the futex
beside the words. If the words cannot be believed, as on a network file system or in a copy of the
folder, a reader follows the frames as far as they fit, and tries again ten times a second.

Invariants.
  1  A record is handed out only after its checksum, salt, place, life and sequence fit (L4), and
     only if it was published; without words, only if all frames before it fit.
  2  A reader writes nothing. It has one segment open, and two while it crosses to the next.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from enum import Enum
from functools import partial
from typing import Protocol, Self

import anyio

from .._core.file_kinds import is_in_memory
from .._errors import CorruptLogError, CorruptRecordError, RecordsDiscardedError, name_file
from .._native import LogCursor, find_record
from .._runtime.workers import Limiter, Workers
from .files import Segment, open_segment, segment_bases
from .format import (
    CONTROL_NAME,
    HEADER_BYTES,
    segment_name,
)
from .log_folder import Folder
from .published import Published, Words
from .receipt import LogRecord

LIMIT, COLD, END, WRONG = range(4)
#: How many records a reader hands out before it looks at the words and at the time again.
GRANTED_RECORDS = 512
#: How long a reader at the end sleeps before it checks that the control file is still there.
LOOK_SECONDS = 1.0
POLL_SECONDS = 0.1
_EVERYTHING = (1 << 63) - 1


class Found(Enum):
    """What a step of a reading returns if it is not a record."""

    #: No record: make the next step.
    NOTHING = 0
    #: There are no more records for now.
    END = 1


class Owner(Protocol):
    """Takes the segments that a reading is done with, and hears of its end."""

    def release(self, segment: Segment) -> None: ...
    def note_end(self) -> None: ...


class ReadLog(Protocol):
    """What a reading needs from its log."""

    folder: str
    home: Folder
    mode: str
    workers: Workers
    published: Published
    corrupt: int
    wakeups: int

    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def durable(self) -> int: ...
    def check_reading(self) -> None: ...
    @property
    def readings(self) -> Owner: ...


class Reading(LogCursor, AsyncIterator[LogRecord]):
    """One walk along a log.

    ``__anext__`` is the cursor's: it hands out the records that ``take`` granted, and awaits
    ``_advance`` when there are none.
    """

    __slots__ = (
        "__weakref__",
        "_busy",
        "_done",
        "_durable",
        "_ended",
        "_follow",
        "_held",
        "_log",
        "_opened",
        "_segment",
        "_start",
        "_taken",
        "_until",
        "_waits",
        "works",
    )

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls, LogRecord)

    def __init__(self, log: ReadLog, start: int | None, *, follow: bool, durable: bool) -> None:
        self._log = log
        self._segment: Segment | None = None
        self._opened: Segment | None = None
        #: Whether a worker may use the segment.
        self.works: bool = False
        self._start = start
        self._follow = follow
        self._durable = durable
        words = log.published.words
        #: The position at which ``read`` ends: the end of the log when it was called.
        self._until = _EVERYTHING if words is None else words.tail.load()
        #: Whether a task runs ``_advance``, and whether it only waits there for more records.
        self._busy = self._waits = False
        self._done = self._ended = False
        #: Records that ``tail(durable=True)`` has read, but that nothing proves durable yet.
        self._held: deque[LogRecord] = deque()
        #: The record that a worker read. After a cancellation, the next call hands it out.
        self._taken: LogRecord | None = None

    async def _advance(self) -> LogRecord:
        """Return the next record when no record is granted."""
        if self._busy:
            raise anyio.BusyResourceError("reading this iterator of")
        if self._done:
            if not self._ended:  # closed before the end: that must not look like the end
                self._log.check_reading()
            raise StopAsyncIteration
        self._busy = True
        try:
            record = await self._next_record()
            self._ended = record is None
            self._done |= self._ended
        except BaseException as error:
            dropped = isinstance(error, GeneratorExit)  # perhaps after its loop has ended
            self._done |= dropped or not isinstance(error, anyio.get_cancelled_exc_class())
            raise
        finally:
            self._busy = False
            if self._done:
                self.close_segment()
                self._log.readings.note_end()
        if record is None:
            raise StopAsyncIteration
        return record

    async def aclose(self) -> None:
        """End the walk, and close its segment."""
        self._done = True
        self.leave()
        if self._waits or not self._busy:
            self.close_segment()

    def __del__(self) -> None:
        self.close_segment()

    def close_segment(self) -> None:
        """Close the segment, unless a worker uses it. No task may need it any more."""
        self.leave()
        if self.works:
            return
        segments = self._segment, self._opened
        self._segment = self._opened = None
        for segment in segments:
            if segment is not None:
                self._log.readings.release(segment)

    @property
    def next_sequence(self) -> int:
        """The sequence of the record that comes next."""
        return self.sequence if self._segment is not None else self._start or 1

    @property
    def holds_segment(self) -> bool:
        """Whether a segment is open."""
        return self._segment is not None

    async def _next_record(self) -> LogRecord | None:
        """Find the next record; None at the end."""
        while True:
            await self._log.workers.checkpoint_if_due()
            self._log.check_reading()
            if self._done:
                return None
            got = await self._step()
            if isinstance(got, LogRecord):
                return got
            if got is Found.END:
                if not self._follow:
                    return None
                self._waits = True
                try:
                    await self._wait()
                finally:
                    self._waits = False

    async def _step(self) -> LogRecord | Found:
        """Make one step: open a segment if needed, and take a record if there is one."""
        if self._segment is None:
            if self._log.published.words is None and self._log.published.log_id is None:
                return Found.END  # there is no log yet
            await self._locate()
        if self.state == END and not await self._cross():
            return Found.END
        words = self._log.published.words
        if words is None:
            return await self._take_unpublished()
        return await self._take_published(words)

    async def _take_published(self, words: Words) -> LogRecord | Found:
        """Take the next record, up to the published end."""
        if self._held:  # they were read before the words could be believed
            proof = words.durable_sequence.load()
            return self._held.popleft() if self._held[0].sequence <= proof else Found.END
        first = words.first.load()
        if self.sequence < first:
            raise RecordsDiscardedError(self._log.folder, self.sequence, first)
        left = self._limit(words) - self.position
        if left <= 0 and self._taken is None:
            return Found.END
        record = await self._take(self.offset + left, GRANTED_RECORDS)
        if record is not None:
            return record
        if self.state == WRONG:
            raise self._damage()
        return Found.NOTHING

    async def _wait(self) -> None:
        words = self._log.published.words
        if words is None or self._segment is None:
            await anyio.sleep(POLL_SECONDS)
            if words is None:
                await self._log.published.attach(self._log.home)
        else:
            await self._sleep(words)

    def _limit(self, words: Words) -> int:
        if not self._follow:
            return self._until
        return words.durable.load() if self._durable else words.tail.load()

    async def _take(self, end: int, more: int) -> LogRecord | None:
        """Take the next record if it ends at or before ``end`` in the segment; grant ``more``."""
        workers = self._log.workers
        try:
            if self._taken is None:
                self._taken = self.take(end, False, more)
            if self._taken is None and self.state == COLD:
                await self._work(workers.reads, partial(self._take_waiting, end))
        except OSError as error:
            if error.filename is None and self._segment is not None:
                name_file(error, self._segment.path)
            raise
        record, self._taken = self._taken, None
        return record

    def _take_waiting(self, end: int) -> None:
        # It grants nothing: the record taken here comes first, also after a cancellation.
        self._taken = self.take(end, True, 0)

    async def _take_unpublished(self) -> LogRecord | Found:
        """Take the next record whose frame fits, when no words say how far the log goes."""
        if self._held and self._held[0].sequence <= max(self.proof, self._log.durable):
            return self._held.popleft()
        begun = self.position
        record = await self._take(_EVERYTHING, 0 if self._durable else GRANTED_RECORDS)
        if record is not None and self._durable:
            self._held.append(record)
            return Found.NOTHING
        if record is not None:
            return record
        if self.position != begun:
            return Found.NOTHING  # there were frames, but no records among them
        if self.sequence <= self._log.durable:
            raise self._damage()
        if self.state == WRONG and not self._held:
            await self._refuse_gap()
        return Found.END

    async def _refuse_gap(self) -> None:
        """Raise if there is another segment although the frames of this one have no END."""
        log, workers = self._log, self._log.workers
        bases = await workers.run(workers.control, segment_bases, log.home)
        log.check_reading()
        assert self._segment is not None
        if bases and bases[-1] > self._segment.header.base:
            raise self._damage()

    def _damage(self) -> CorruptRecordError:
        assert self._segment is not None
        self._log.corrupt += 1
        return CorruptRecordError(self._segment.path, self.sequence, self.offset)

    async def _sleep(self, words: Words) -> None:
        """Wait until something is published."""
        seen = words.futex.load()
        if self._limit(words) > self.position:
            return
        try:
            await words.futex.wait(seen, timeout=LOOK_SECONDS)
        except TimeoutError:
            workers = self._log.workers
            await workers.run(workers.control, self._check_folder, words.place)
        except anyio.ClosedResourceError:
            self._log.check_reading()
            raise
        self._log.wakeups += 1

    def _check_folder(self, place: tuple[int, int]) -> None:
        """Raise if the control file that is mapped, or its folder, is gone or was replaced."""
        log = self._log
        found = log.home.identity_of(CONTROL_NAME)
        if found != place:
            what = "is gone" if found is None else "was replaced"
            raise CorruptLogError(
                log.folder,
                f"its control file {what}, so nobody tells of new records: open the log again",
            )
        if log.mode == "r":  # a writer writes its own folder wherever that is
            log.home.check_path()

    async def _locate(self) -> None:
        """Move to the record to start with."""
        while True:
            start, last, end = self._where_to_start()
            log = self._log
            try:
                await self._open(
                    partial(_seek, log.home, log.published.log_id, self, start, last, end)
                )
            except (CorruptLogError, FileNotFoundError):
                if log.first <= start:
                    raise
                # The segment was discarded meanwhile: find the record, or raise, as things are now.
            else:
                return

    def _where_to_start(self) -> tuple[int, int, int]:
        """Return the first record to read, the last in the log, and the position of its end."""
        log, words = self._log, self._log.published.words
        first, last = log.first, log.last
        start = first if self._start is None else self._start
        if start < first:
            raise RecordsDiscardedError(log.folder, start, first)
        if start > last + 1:
            raise ValueError(
                f"start is {start}, but {log.folder} goes to record {last}: there is no record to "
                f"wait for before {last + 1}"
            )
        return start, last, self._until if words is None else words.tail.load()

    async def _open(self, opening: Callable[[], Segment | None]) -> bool:
        """Have a worker open a segment and move the cursor there; false if there is none."""

        def open_it() -> None:
            self._opened = opening()

        try:
            await self._work(self._log.workers.control, open_it)
        finally:  # also after a cancellation the cursor is in the new segment
            segment = None if self.works else self._opened
            if segment is not None:
                self._opened = None
                old, self._segment = self._segment, segment
                if old is not None:
                    self._log.readings.release(old)
        return segment is not None

    async def _work(self, limiter: Limiter, function: Callable[[], None]) -> None:
        """Have a worker do something with the segment, which nobody closes meanwhile."""
        log, begun = self._log, False
        log.check_reading()

        def job() -> None:
            nonlocal begun
            begun = True
            try:
                function()
            finally:
                self.works = False
                if self._done:
                    log.readings.note_end()

        self.works = True
        try:
            await log.workers.run(limiter, job)
        except BaseException as error:
            # If the coroutine was closed, nothing has waited for the worker to end.
            if not (begun and isinstance(error, GeneratorExit)):
                self.works = False
            raise
        log.check_reading()  # the log may have been closed before this task had a turn

    async def _cross(self) -> bool:
        """Go on in the next segment; false if there is none."""
        log = self._log
        if not await self._open(partial(_enter_next, log.home, self)):
            first = log.first
            if first > self.sequence:
                raise RecordsDiscardedError(log.folder, self.sequence, first)
            if log.published.words is None:
                return False
            missing = segment_name(self.sequence)
            raise CorruptLogError(log.folder, f"the segment {missing} is missing: put it back")
        return True


def _seek(
    folder: Folder, log_id: bytes | None, cursor: LogCursor, start: int, last: int, end: int
) -> Segment:
    """Open the segment that holds a record, and move the cursor to that record."""
    bases = [base for base in segment_bases(folder) if base <= start]
    if not bases:
        raise CorruptLogError(folder.path, f"the segment of record {start} is missing: put it back")
    segment = open_segment(folder, bases[-1])
    try:
        header, size = segment.header, os.fstat(segment.fd).st_size
        if log_id not in (None, header.log_id):
            raise CorruptLogError(
                folder.path, f"{segment.path} belongs to another log: move it away"
            )
        in_memory = is_in_memory(segment.fd)
        cursor.enter(
            segment.fd,
            header.salt,
            header.position,
            HEADER_BYTES,
            header.base,
            header.life,
            in_memory,
        )
        stop = min(size, max(segment.offset_of(end), HEADER_BYTES))
        if cursor.sequence < start:  # else nothing lies before it: read no window for the search
            cursor.seek(start, stop)
        if cursor.sequence < start:
            # A record before it is damaged, and nobody asked for that one.
            found = find_record(
                segment.fd,
                header.salt,
                cursor.position,
                cursor.offset,
                stop,
                start,
                header.base,
            )
            if found is None and start == last + 1 and stop < size:
                found = start, stop, header.life  # start at the end, behind the damage
            if found is None or found[0] != start:
                at = segment.place_of(start, cursor.offset, cursor.sequence)
                raise CorruptRecordError(segment.path, start, at)
            position = header.position + found[1] - HEADER_BYTES
            life = max(cursor.life, found[2])
            cursor.enter(segment.fd, header.salt, position, found[1], start, life, in_memory)
    except BaseException:
        segment.close()
        raise
    return segment


def _enter_next(folder: Folder, cursor: LogCursor) -> Segment | None:
    """Open the segment behind an END frame; return None if there is no file of that name."""
    try:
        segment = open_segment(folder, cursor.sequence)
    except FileNotFoundError:
        return None
    header = segment.header
    if (header.position, header.previous_crc) != (cursor.position, cursor.last_crc):
        segment.close()
        raise CorruptLogError(
            folder.path, f"{segment.path} does not continue the segment before it: restore both"
        )
    cursor.enter(
        segment.fd,
        header.salt,
        header.position,
        HEADER_BYTES,
        header.base,
        max(cursor.life, header.life),
        is_in_memory(segment.fd),
    )
    return segment
