"""Appending: writes that make the file longer, each by a range of its own.

Theory of operation. An append is an item of the commit queue, of a kind of its own. So appends that
wait at one time share a hop, and under a policy that flushes each write they share a flush. The
worker writes a batch by one system call at the end of the file, and only then lets verbs address
it. So the file is never longer than the bytes that were appended, and no reader sees zeros.

In mode "a+" the kernel finds the end, for each write(2) through a descriptor with O_APPEND; other
processes may append at the same time. In the other modes the end is the size that verbs address.
Behind it there may be zeros up to the end of a page (resizing.1).

Invariants.
  1  The bytes of an append are one range, which no other append shares; in "a+" neither does one
     of another process.
  2  An append that failed leaves nothing in the file. The exception is an append in "a+" that
     stopped half-way: others may have appended behind it, so its error says how many of its bytes
     there are and where.
  3  In "a+" only ``resize`` cuts the file off: the file gets no padding, and closing trims nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from itertools import accumulate
from typing import cast

from .._core.faults import FULL
from .._core.file_core import FileCore
from .._core.opening import check_allocation
from .._core.receipt import WriteReceipt
from .._errors import OutOfBoundsError, name_file
from .._flush.background import BackgroundFlush
from .._flush.flusher import Flusher
from .._flush.requests import Outcome
from .._native import APPEND_PIECES, PIECE_BYTES, export_bytes
from .._runtime.tracing import traced
from .resizing import Resizer
from .writing import Writer

#: The most that one write(2) takes; of two, another process could write between them.
MAX_SHARED_BYTES = 0x7FFFF000
#: How often in a row others may change the length between our look at it and our write.
MAX_ATTEMPTS = 100


class Appender:
    """Appends to one file."""

    __slots__ = ("_background", "_core", "_flusher", "_resizer", "_writer")

    def __init__(
        self,
        core: FileCore,
        flusher: Flusher,
        background: BackgroundFlush,
        writer: Writer,
        resizer: Resizer,
    ) -> None:
        self._core = core
        self._flusher = flusher
        self._background = background
        self._writer = writer
        self._resizer = resizer
        flusher.on_append(self._apply)

    async def append(self, data: object) -> WriteReceipt:
        """Append bytes; see ``MappedFile.append``."""
        core, background = self._core, self._background
        core.check_growable("append to")
        view = export_bytes(data)
        length = len(view)
        if core.options.mode.appends and length > MAX_SHARED_BYTES:
            reason = (
                f'asked to append {length} bytes in mode "a+": append {MAX_SHARED_BYTES} at most'
            )
            raise OutOfBoundsError(0, length, MAX_SHARED_BYTES, reason)
        with core.lifecycle.activity():
            if background.may_be_full and background.is_full([], more=length):
                await background.make_room([], self._writer.wait_stored, more=length)
            with traced("append", core.path, core.mapping.size, length) as op:
                op.hop()
                receipt = await self._flusher.append(view)
                op.begins(receipt.offset)
        return receipt

    # From here on: only for the worker thread that has the turn.

    def _apply(self, items: list[bytes | memoryview]) -> list[Outcome] | None:
        """Append a batch; return None if others cut off dirty bytes of the file."""
        outcomes: list[Outcome] = []
        attempts = 0
        while len(outcomes) < len(items):
            if not self._resizer.follow_others():
                return None
            part = _one_call(items[len(outcomes) :])
            try:
                done = self._append(part)
            except OSError as error:
                name_file(error, self._core.path)
                done = [error for _ in part]
            attempts = 0 if done else attempts + 1
            if attempts == MAX_ATTEMPTS:
                done = [self._outrun() for _ in part]
            outcomes += done
        self._background.plan()  # here, because the loop may be too busy to plan for long
        return outcomes

    def _append(self, part: list[bytes | memoryview]) -> list[Outcome]:
        """Write the items of one call; return outcomes up to the first item that stopped short.

        It returns no outcome if others changed the length after we looked at it.
        """
        core = self._core
        total = sum(map(len, part))
        self._resizer.make_room_behind(total)
        check_allocation(core.mapping.fd, core.mapping.size, total)
        end = core.mapping.file_end
        start, put, number = core.disk.append(part)
        if number == errno.EAGAIN:
            return []
        if core.options.mode.appends and start > end:
            core.own.note_foreign_growth()
        ends = [*accumulate(map(len, part))]
        whole = sum(end <= put for end in ends) if number else len(part)
        done: list[Outcome] = [*self._count(start, start + put, part[:whole])]
        core.own.count_stores(whole)
        if whole < len(part):
            at = start + (ends[whole - 1] if whole else 0)
            done.append(self._not_appended(number, at, len(part[whole]), start + put - at))
        return done

    def _count(self, start: int, end: int, part: Sequence[bytes | memoryview]) -> Sequence[Outcome]:
        """Let verbs address what was written, and make the receipts."""
        mapping, lengths = self._core.mapping, [*map(len, part)]
        receipts = None
        if start >= mapping.size or self._resizer.cut_to(start):
            receipts = mapping.count_appended(start, end, lengths)
        if receipts is None:
            self._resizer.reach(end)
            receipts = mapping.count_appended(start, end, lengths)
        assert receipts is not None
        if self._core.options.mode.appends:
            mapping.min_kept_length = mapping.size  # appending.3
        return cast("Sequence[Outcome]", receipts)

    def _outrun(self) -> OSError:
        """Make the error for a file whose length others change each time before we append."""
        reason = 'others change its length all the time: open it with "a+" to append beside them'
        return OSError(errno.EBUSY, reason, self._core.path)

    def _not_appended(self, number: int, at: int, length: int, part: int) -> OSError:
        """Make the error for an append that stopped short (appending.2)."""
        reason = f"{os.strerror(number)}: {length} bytes were to be appended"
        if part:
            reason += (
                f", and the first {part} of them are in the file, at {at}: other processes may "
                "have appended behind them"
            )
        elif number in FULL:
            reason += ", and the file is as it was: make room, and append them again"
        return OSError(number, reason, self._core.path)


def _one_call(items: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Take the items of one system call: the first one, and those that fit behind it."""
    part = list(items[:1])
    room = PIECE_BYTES - len(part[0])
    for item in items[1:APPEND_PIECES]:
        room -= len(item)
        if room < 0:
            break
        part.append(item)
    return part
