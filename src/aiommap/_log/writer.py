"""The half of a log's writer that waits: storing, rolling, discarding, making durable.

One call at a time: the batch queue of the log sees to that, and while no batch is in flight the
loop thread may call ``LogWriter.append`` alone. Most batches are records that fit into the segment:
``begin_commit`` hands those to the engine. All others are for ``run``, in a worker.

Invariants.
  1  A store that failed has no place. What it left behind is written over by an OPEN frame of
     the next life before anything else is stored (L12): half of it could come back otherwise.
  2  A failed flush, or a store that the device refused, ends the writer: it latches (I5).
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from .._core.file_kinds import is_on_server
from .._errors import FlushError, MappedFileError, name_file
from .._flush_policy import FlushPolicy
from .._logs import LOGS
from .._native import PoolCommit, PoolQueue, start_writeback
from .._typing import Buffer
from .files import Segment, Unnamed, explained, sync_folder, sync_segment
from .format import (
    CLEAN,
    DISCARD,
    DISCARD_DATA,
    END,
    FIRST,
    FRAME_BYTES,
    HEADER_BYTES,
    MAX_LIFE,
    MAX_SEQUENCE,
    OPEN,
    OPEN_DATA,
    SegmentHeader,
    frame_bytes,
    segment_name,
)
from .opening import OpenedLog
from .receipt import Counts

T = TypeVar("T")

#: Errors that say that there is no room, and nothing about the device.
_WITHOUT_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: A roll flushes what nobody flushed before; so write-back is begun each time so much is there.
_WRITEBACK_BYTES = 8 << 20


class Flush:
    """Asks that all that was appended before is made durable."""

    __slots__ = ()


class Writeback:
    """Asks that write-back is begun."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Together:
    """Items that are published together."""

    items: list[Buffer]


@dataclass(frozen=True, slots=True)
class Discard:
    """Asks that whole segments before a sequence are dropped."""

    before: int


#: What the queue of a log carries: the data of a record, or a request.
Item: TypeAlias = Buffer | Flush | Writeback | Together | Discard
#: What an item gives: the last sequence it got, or for requests any.
Outcome: TypeAlias = int | BaseException

_PLAIN = {bytes, memoryview}


class Writer:
    """Owns the open segment, the lock and the folder of a log."""

    def __init__(
        self, opened: OpenedLog, policy: FlushPolicy, segment_size: int, retain_bytes: int | None
    ) -> None:
        self.folder: str = opened.folder
        #: Whether it can only be a device that a store waits for, and no server.
        self.local: bool = not is_on_server(opened.folder_fd)
        self.native = opened.native
        self.sizes: dict[int, int] = opened.sizes
        #: Bases of segments that were discarded, and not unlinked yet.
        self._discarded: list[int] = opened.discarded
        self.first: int = opened.first
        self.failure: FlushError | None = None
        self.counts: Counts = Counts()
        self.standby_error: OSError | None = None
        self._opened = opened
        self._segment: Segment = opened.segment
        self._policy = policy
        self._segment_size = segment_size
        self._retain_bytes = retain_bytes
        self._standby: Unnamed | None = None
        #: writer.1; how much is torn at the place of the next frame is not known.
        self.needs_life: bool = False
        #: Up to here the open segment is durable, and begun to be written back.
        self._durable_at: int = self.native.at
        self._written_back: int = self.native.at
        #: Segments that were left without a flush, as ``never()`` wants it.
        self._unsynced: list[int] = []
        #: The last error of a step that stored nothing, and can be tried again (I5).
        self._harmless: OSError | None = None

    # What the loop half asks; attributes that change in one step.

    @property
    def device(self) -> int:
        """The device that the log is on."""
        return self._opened.control.own[0]

    @property
    def last(self) -> int:
        """The last record that was stored."""
        return self.native.sequence - 1

    @property
    def durable(self) -> int:
        """The last record that is known to be durable."""
        return self.native.durable

    @property
    def dirty_bytes(self) -> int:
        """Bytes of the open segment that are not durable."""
        return self.native.at - self._durable_at

    @property
    def wants_standby(self) -> bool:
        """Whether the next segment should be made ready by now."""
        return self._standby is None and 2 * self.native.at > self.native.limit

    @property
    def has_standby(self) -> bool:
        """Whether the next segment is ready."""
        return self._standby is not None

    # Batches.

    def run(self, items: list[Item]) -> Sequence[Outcome]:
        """Store, flush and publish one batch; one outcome for each item."""
        self.counts.add_batch()
        if self.failure is not None:
            raise self.failure
        if set(map(type, items)) <= _PLAIN:
            return self._run_plain(items)  # type: ignore[arg-type]  # just checked
        return self._run_mixed(items)

    def _run_plain(self, items: list[Buffer]) -> Sequence[Outcome]:
        begun = self.native.sequence
        error = self._attempt(self._store, items)
        done = self.native.sequence - begun
        self._finish(flush=self._policy.flush_each_write)
        if error is None:
            return range(begun, begun + done)
        return [*range(begun, begun + done), *[error] * (len(items) - done)]

    def begin_commit(
        self, queue: PoolQueue, items: list[Item], tell: Callable[[PoolCommit], object]
    ) -> bool:
        """Have the engine do all of a batch, if it is nothing but records; on the loop."""
        native, policy = self.native, self._policy
        if self.failure is not None or self.needs_life or self._unsynced:
            return False
        if policy.dirty_limit is not None or self._writeback_due:
            return False
        if not set(map(type, items)) <= _PLAIN or native.sequence + len(items) > MAX_SEQUENCE:
            return False
        return native.begin_commit(queue, items, policy.flush_each_write, tell) is not None

    def end_commit(self, job: PoolCommit) -> Sequence[int]:
        """Count what the engine did; on the loop. Return sequences, or raise why it failed."""
        native, begun, durable = self.native, self.native.sequence, self.native.durable
        phase, number = job.outcome()
        self.counts.add_batch()
        if number:
            error = OSError(number, os.strerror(number))
            if phase:
                raise self.latch(explained(error)) from error
            self.note_failed_store(error)
            raise error
        if self._policy.flush_each_write:
            self._count_flush(native.durable - durable)
        return range(begun, native.sequence)

    def _run_mixed(self, items: list[Item]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        flush = self._policy.flush_each_write
        for item in items:
            error: BaseException | None = None
            if isinstance(item, Flush):
                flush = True
            elif isinstance(item, Writeback):
                error = self._begin_writeback()
            elif isinstance(item, Together):
                error = self._attempt(self._store_together, item.items)
            elif isinstance(item, Discard):
                error = self._attempt(self._discard, item.before)
            else:
                error = self._attempt(self._store, [item])
            outcomes.append(error or self.native.sequence - 1)
        self._finish(flush=flush)
        return outcomes

    def _attempt(self, function: Callable[[T], None], argument: T) -> BaseException | None:
        """Call; return an error after which the writer can go on, and raise any other."""
        try:
            function(argument)
        except OSError as error:
            if isinstance(error, MappedFileError):
                raise
            self.note_failed_store(error)
            return error
        except MemoryError as error:
            return error
        return None

    def note_failed_store(self, error: OSError) -> None:
        """Take note that what was being stored has no place; latch if the device is at fault."""
        if error.filename is None:
            name_file(error, self._segment.path)
        if error is self._harmless:
            return
        if error.errno not in _WITHOUT_ROOM:
            raise self.latch(error) from error
        self.needs_life = True

    def latch(self, error: OSError) -> FlushError:
        """End the writer (writer.2)."""
        self.failure = FlushError(
            self._segment.path,
            error.strerror or str(error),
            ((min(self._durable_at, self.native.at), self.native.at),),
            error.errno or errno.EIO,
        )
        self.failure.__cause__ = error
        LOGS.error("%s: %s", self.folder, self.failure)
        return self.failure

    def _finish(self, *, flush: bool) -> None:
        """Make durable what has to be, and publish it."""
        if flush and self.native.durable < self.last:
            self.sync()
        self._publish()
        self._start_writeback()

    def _publish(self) -> None:
        try:
            self.native.publish()
        except OSError as error:
            name_file(error, os.path.join(self.folder, "control"))
            raise self.latch(error) from error

    def sync(self) -> None:
        """Make all that was stored durable."""
        covered = self.last - self.native.durable
        try:
            while self._unsynced:
                sync_segment(self.folder, self._unsynced[0])
                del self._unsynced[0]
            self.native.sync()
        except OSError as error:
            raise self.latch(explained(error)) from error
        self._count_flush(covered)

    def _count_flush(self, records: int) -> None:
        self._durable_at = self.native.at
        self.counts.add_flush(records)

    @property
    def _writeback_due(self) -> bool:
        behind = self.native.at - self._written_back
        return behind >= _WRITEBACK_BYTES and self._policy.flush_at_close

    def _start_writeback(self) -> None:
        """Keep the flush of the next roll short; a hint, so its failure means nothing."""
        if self._writeback_due:
            at = self.native.at
            with suppress(OSError):
                start_writeback(self._segment.fd, self._written_back, at - self._written_back)
            self._written_back = at

    def _begin_writeback(self) -> OSError | None:
        try:
            start_writeback(self._segment.fd, 0, self.native.at)
        except OSError as error:
            return error
        self._written_back = self.native.at
        return None

    # Records.

    def _store(self, items: list[Buffer]) -> None:
        limit = self._policy.dirty_limit
        if limit is None:
            self._store_all(items)
            return
        for item in items:
            dirty = self.native.at - self._durable_at
            if dirty and dirty + frame_bytes(memoryview(item).nbytes) > limit:
                self.sync()
            self._store_all([item])

    def _store_all(self, items: list[Buffer]) -> None:
        done = 0
        while done < len(items):
            self._begin_life()
            if self.native.sequence + len(items) > MAX_SEQUENCE:
                self._harmless = OSError(errno.EFBIG, "the log has given out all sequence numbers")
                raise self._harmless
            done += self.native.store(items, done)
            if done < len(items):
                self._roll()

    def _store_together(self, items: list[Buffer]) -> None:
        """Store items so that none has a place if one fails; if they fit into a segment."""
        self._begin_life()
        total = sum(frame_bytes(memoryview(item).nbytes) for item in items)
        if not self._fits(total) and total + HEADER_BYTES + FRAME_BYTES <= self._segment_size:
            self._roll()
        self._store(items)

    def _fits(self, total: int) -> bool:
        native = self.native
        return native.base == native.sequence or native.at + total + FRAME_BYTES <= native.limit

    def _begin_life(self) -> None:
        """Cover what a failed store left behind (writer.1)."""
        if not self.needs_life:
            return
        native = self.native
        if native.life >= MAX_LIFE:
            raise OSError(errno.EFBIG, "the log was begun again 2**32 times")
        native.life += 1
        size = frame_bytes(OPEN_DATA.size)
        if self._fits(size):
            native.mark(OPEN, OPEN_DATA.pack(0, 0))
            self.sync()
        else:
            self._roll()  # the header of the next segment makes the life durable
        self.needs_life = False

    # Segments.

    def prepare_standby(self) -> None:
        """Make the next segment ready, so that a roll need not reserve blocks."""
        try:
            standby = Unnamed(self.folder, self._opened.folder_fd, self._segment_size)
        except OSError as error:
            self.standby_error = error
            LOGS.warning("%s: no room for the next segment yet: %s", self.folder, error)
            return
        self.standby_error = None
        self._standby = standby

    def _roll(self) -> None:
        """Go on in a new segment: the old one is durable first, then the name (files.1)."""
        begun = time.perf_counter()
        unnamed, self._standby = self._standby, None
        if unnamed is None:
            try:
                unnamed = Unnamed(self.folder, self._opened.folder_fd, self._segment_size)
            except OSError as error:
                self._harmless = error
                raise
        native, at = self.native, self.native.at
        try:
            crc = native.mark(END, b"")
            if self._policy.flush_at_close:
                self.sync()
            header = SegmentHeader(
                self._opened.log_id,
                native.sequence,
                native.position,
                secrets.randbits(64),
                native.durable + 1,
                self.first,
                native.life,
                crc,
                native.position,
            )
            segment = unnamed.name(header)
        except BaseException:
            native.at = at  # the END frame has no place, either
            unnamed.close()
            raise
        self._enter(segment)
        took = time.perf_counter() - begun
        self.counts.add_roll(took)

    def _enter(self, segment: Segment) -> None:
        try:
            sync_folder(self._opened.folder_fd)
        except OSError as error:
            segment.close()
            raise self.latch(error) from error
        header, native = segment.header, self.native
        native.enter(
            segment.fd,
            header.salt,
            header.position,
            header.base,
            header.base,
            HEADER_BYTES,
            self._segment_size,
        )
        if native.durable < header.base - 1:
            self._unsynced.append(self._segment.header.base)
        old, self._segment = self._segment, segment
        self.sizes[old.header.base] = os.fstat(old.fd).st_size
        old.close()
        self.sizes[header.base] = self._segment_size
        self._durable_at = self._written_back = HEADER_BYTES
        self._retain()

    def _retain(self) -> None:
        """Discard the oldest segments while all together take too much."""
        if self._retain_bytes is None:
            return
        bases, total = list(self.sizes), sum(self.sizes.values())
        keep = 0
        while keep + 1 < len(bases) and total > self._retain_bytes:
            total -= self.sizes[bases[keep]]
            keep += 1
        if keep:
            error = self._attempt(self._discard, bases[keep])
            if error is not None:
                LOGS.warning("%s: old segments stay for now: %s", self.folder, error)

    def _discard(self, before: int) -> None:
        """Drop whole segments; the frame that says so is durable before any is gone."""
        first = max((base for base in self.sizes if base <= before), default=self.first)
        if first > self.first:
            self._begin_life()
            if not self._fits(frame_bytes(DISCARD_DATA.size)):
                self._roll()
            self.native.mark(DISCARD, DISCARD_DATA.pack(first))
            self.sync()
            self._discarded += [base for base in self.sizes if base < first]
            self.sizes = {base: size for base, size in self.sizes.items() if base >= first}
            self.first = first
            self._publish()
            self.native.set_word(FIRST, first)
        self._unlink_discarded()

    def _unlink_discarded(self) -> None:
        """Unlink what was discarded, now or by a predecessor, oldest first.

        Each is synced before the next: a power cut that kept an older one and not a newer would
        leave a gap, which is how a segment looks that somebody took away.
        """
        while self._discarded:
            try:
                os.unlink(os.path.join(self.folder, segment_name(self._discarded[0])))
            except FileNotFoundError:
                pass
            except OSError as error:
                self._harmless = error
                raise
            sync_folder(self._opened.folder_fd)
            del self._discarded[0]

    def close(self, *, clean: bool) -> None:
        """Give everything up; leave word if all is stored and flushed."""
        opened = self._opened
        try:
            if clean and self.failure is None and not self.needs_life:
                self.native.set_word(CLEAN, self.native.position)
                os.fdatasync(opened.control.fd)
        finally:
            self.native.close()
            if self._standby is not None:
                self._standby.close()
            self._segment.close()
            opened.control.close()
            os.close(opened.folder_fd)
