"""The half of a log's writer that waits: storing, rolling, discarding, making durable.

Only one call runs at a time: the batch queue of the log sees to that. While no batch is in flight,
the loop thread may call ``LogWriter.append``, and nothing else. Most batches are records that fit
into the segment: ``begin_commit`` hands those to the engine. A worker calls ``run`` for all others.

Invariants.
  1  A failed store does not move the end of the log. Before anything else is stored, and when the
     log is closed, an OPEN frame of the next life overwrites what the store left there (L12);
     otherwise half of a failed batch could come back.
  2  A failed flush ends the writer: it latches (I5). So does a store that the system refused for
     any reason but a lack of room.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from .._core.file_kinds import is_on_server
from .._errors import FlushError, MappedFileError, name_file
from .._flush_policy import FlushPolicy
from .._logs import LOGS
from .._native import PoolCommit, PoolQueue, start_writeback
from .._typing import Buffer
from .files import Segment, Unnamed, reason_of, sync_segment
from .format import (
    CLEAN,
    CONTROL_NAME,
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
from .items import Discard, Flush, Item, Outcome, Together, Writeback
from .log_folder import Folder
from .opening import OpenedLog
from .receipt import Counts

T = TypeVar("T")
#: What the loop calls when the engine has run a batch; it returns what to call next, or None.
Tell: TypeAlias = Callable[[PoolCommit], Callable[[], object] | None]

#: Errors that mean a lack of room, and no fault of the device.
_WITHOUT_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: Write-back is begun each time this many bytes were stored, to keep the flush of a roll short.
_WRITEBACK_BYTES = 8 << 20


_PLAIN = {bytes, memoryview}


class Writer:
    """Owns the open segment and the locks of a log."""

    def __init__(
        self, opened: OpenedLog, policy: FlushPolicy, segment_size: int, retain_bytes: int | None
    ) -> None:
        self.folder: Folder = opened.folder
        #: Whether a store can wait only for a device of this machine, and never for a server.
        self.local: bool = not is_on_server(opened.segment.fd)
        self.native = opened.native
        self.sizes: dict[int, int] = opened.sizes
        #: Bases of segments that were discarded, but not unlinked yet.
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
        #: Whether a failed store left bytes at the place of the next frame (writer.1).
        self.needs_life: bool = False
        #: Offsets in the open segment up to which it is durable, and write-back was begun.
        self._durable_at: int = self.native.at
        self._written_back: int = self.native.at
        #: Bases of segments that the policy ``never()`` left without a flush.
        self._unsynced: list[int] = []
        #: The last error that need not latch (I5): its step stored nothing and can be tried again.
        self._harmless: OSError | None = None

    # For the loop half. Each property reads a value that changes in one step.

    @property
    def device(self) -> int:
        """Number of the device that the log is on."""
        return self._opened.control.own[0]

    @property
    def last(self) -> int:
        """The sequence of the last record that was stored."""
        return self.native.sequence - 1

    @property
    def durable(self) -> int:
        """The sequence up to which records are known to be durable."""
        return self.native.durable

    @property
    def dirty_bytes(self) -> int:
        """Bytes of the open segment that are not durable."""
        return self.native.at - self._durable_at

    @property
    def wants_standby(self) -> bool:
        """Whether the open segment is more than half full, and the next one is not ready."""
        return self._standby is None and 2 * self.native.at > self.native.limit

    @property
    def has_standby(self) -> bool:
        """Whether the next segment is ready."""
        return self._standby is not None

    # Batches.

    def run(self, items: list[Item]) -> Sequence[Outcome]:
        """Store, flush and publish one batch; return one outcome for each item."""
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

    def begin_commit(self, queue: PoolQueue, items: list[Item], tell: Tell) -> bool:
        """Have the engine run a batch if it has only records and needs no other step; on the loop.

        Return whether the engine took it. It calls ``tell`` when the batch has ended.
        """
        native, policy = self.native, self._policy
        if self.failure is not None or self.needs_life or self._unsynced:
            return False
        if policy.dirty_limit is not None or self._writeback_due:
            return False
        if not set(map(type, items)) <= _PLAIN or native.sequence + len(items) > MAX_SEQUENCE:
            return False
        return native.begin_commit(queue, items, policy.flush_each_write, tell) is not None

    def end_commit(self, job: PoolCommit) -> Sequence[int]:
        """Count a batch of the engine; return its sequences, or raise its error. On the loop."""
        native, begun, durable = self.native, self.native.sequence, self.native.durable
        phase, number = job.outcome()
        self.counts.add_batch()
        if number:
            error = OSError(number, os.strerror(number))
            if phase:
                raise self.latch(error) from error
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
        """Call a function; return an error after which the writer can go on, raise any other."""
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
        """Note that a store failed: latch the error, unless it is only a lack of room."""
        if error.filename is None:
            name_file(error, self._segment.path)
        if error is self._harmless:
            return
        if error.errno not in _WITHOUT_ROOM:
            raise self.latch(error) from error
        _explain_lack_of_room(error)
        self.needs_life = True

    def latch(self, error: OSError) -> FlushError:
        """End the writer (writer.2): keep and return the error that all later calls raise."""
        self.failure = FlushError(
            self._segment.path,
            reason_of(error),
            ((min(self._durable_at, self.native.at), self.native.at),),
            error.errno or errno.EIO,
        )
        self.failure.__cause__ = error
        LOGS.error("%s: %s", self.folder.path, self.failure)
        return self.failure

    def _finish(self, *, flush: bool) -> None:
        """Flush if asked or needed, and publish what was stored."""
        if flush and self.native.durable < self.last:
            self.sync()
        self._publish()
        self._start_writeback()

    def _publish(self) -> None:
        try:
            self.native.publish()
        except OSError as error:
            name_file(error, self.folder.path_of(CONTROL_NAME))
            raise self.latch(error) from error

    def sync(self) -> None:
        """Make durable all that was stored."""
        covered = self.last - self.native.durable
        try:
            while self._unsynced:
                sync_segment(self.folder, self._unsynced[0])
                del self._unsynced[0]
            self.native.sync()
        except OSError as error:
            raise self.latch(error) from error
        self._count_flush(covered)

    def _count_flush(self, records: int) -> None:
        self._durable_at = self.native.at
        self.counts.add_flush(records)

    @property
    def _writeback_due(self) -> bool:
        behind = self.native.at - self._written_back
        return behind >= _WRITEBACK_BYTES and self._policy.flush_at_close

    def _start_writeback(self) -> None:
        """Begin write-back if it is due; its failure means nothing, as nothing depends on it."""
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
        """Store records in one segment if they fit into one: then all are stored, or none."""
        self._begin_life()
        total = sum(frame_bytes(memoryview(item).nbytes) for item in items)
        if not self._fits(total) and total + HEADER_BYTES + FRAME_BYTES <= self._segment_size:
            self._roll()
        self._store(items)

    def _fits(self, total: int) -> bool:
        native = self.native
        return native.base == native.sequence or native.at + total + FRAME_BYTES <= native.limit

    def _begin_life(self) -> None:
        """Overwrite what a failed store left behind, and begin a new life (writer.1)."""
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
            self._roll()  # the header of the next segment has the life, and is durable
        self.needs_life = False

    # Segments.

    def prepare_standby(self) -> None:
        """Make the next segment, so that a roll need not wait until its blocks are reserved."""
        try:
            standby = Unnamed(self.folder, self._segment_size)
        except OSError as error:
            self.standby_error = error
            LOGS.warning("%s: no room for the next segment yet: %s", self.folder.path, error)
            return
        self.standby_error = None
        self._standby = standby

    def _roll(self) -> None:
        """Go on in a new segment; it gets its name when the old one is durable (files.1)."""
        begun = time.perf_counter()
        unnamed, self._standby = self._standby, None
        if unnamed is None:
            try:
                unnamed = Unnamed(self.folder, self._segment_size)
            except OSError as error:
                if error.errno != errno.EFBIG:  # that one has a reason
                    _explain_lack_of_room(error)
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
            native.at = at  # take back the END frame, too
            unnamed.close()
            raise
        self._enter(segment)
        took = time.perf_counter() - begun
        self.counts.add_roll(took)

    def _enter(self, segment: Segment) -> None:
        try:
            self.folder.sync()
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
        """Discard the oldest segments if all together take more than ``retain_bytes``."""
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
                LOGS.warning("%s: old segments stay for now: %s", self.folder.path, error)

    def _discard(self, before: int) -> None:
        """Drop whole segments; the DISCARD frame is durable before the first one is unlinked."""
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
        """Unlink the segments that this writer or an earlier one discarded, oldest first.

        The folder is synced after each. Otherwise a power cut could keep an older segment and lose
        a newer one: a gap, which looks as if somebody had taken a segment away. The names are those
        of this log, wherever its folder is now (log_folder.1).
        """
        while self._discarded:
            try:
                self.folder.unlink(segment_name(self._discarded[0]))
            except FileNotFoundError:
                pass
            except OSError as error:
                self._harmless = error
                raise
            self.folder.sync()
            del self._discarded[0]

    def _cover_failed_store(self) -> None:
        """Overwrite a failed store at the end: the next opening might find its records whole."""
        if self.failure is None and self.needs_life:
            error = self._attempt(lambda _: self._begin_life(), None)
            if error is not None:
                LOGS.warning(
                    "%s: records that were refused may come back: %s", self.folder.path, error
                )

    def close(self, *, clean: bool) -> None:
        """Close all files; if all is flushed, note in the control file that the log was closed."""
        opened = self._opened
        try:
            self._cover_failed_store()
            if clean and self.failure is None and not self.needs_life:
                self.native.set_word(CLEAN, self.native.position)
                opened.control.sync()
        finally:
            self.native.close()
            if self._standby is not None:
                self._standby.close()
            self._segment.close()
            opened.control.close()


def _explain_lack_of_room(error: OSError) -> None:
    if error.errno in _WITHOUT_ROOM:
        error.strerror = (
            f"{error.strerror} for a record, which is not in the log: make room, or discard "
            "records, and append it again"
        )
