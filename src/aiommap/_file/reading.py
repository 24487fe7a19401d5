"""The slow way of a read: for reads that ``read_inline`` could not answer at once."""

from __future__ import annotations

import errno
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import anyio

from .._arguments import check_range, plain_integers, ranges_of
from .._core.file_core import FileCore
from .._native import PoolQueue, PoolRead, export_bytes
from .._runtime.loops import wait_or_withdraw
from .._runtime.tracing import is_traced, traced
from .._runtime.workers import OnCancel

#: After this number of items a verb checks whether it has to give way.
YIELD_EVERY = 256
#: How many reads of one ``read_many`` are begun at a time; that takes about 1 ms.
READS_AT_ONCE = 1024


class Reader:
    """Reads of one file that have to give way, wait for the disk, or fail.

    They wait in the engine. If the engine declines, or does not return all bytes, a worker thread
    reads again and finds out why.
    """

    __slots__ = ("_core", "_queue", "offloaded")

    def __init__(self, core: FileCore) -> None:
        self._core = core
        self._queue: PoolQueue | None = None
        #: Reads that had to wait for the disk.
        self.offloaded: int = 0

    def read(self, offset: int, length: int) -> Coroutine[Any, Any, bytes]:
        """Read after ``read_inline`` answered None; the caller has to await it at once."""
        queue = self._queue
        if queue is not None:
            reading = queue.read(self._core.mapping, offset, length)
            if reading is not None:
                # Tens of these run in a millisecond: without an observer, save a coroutine each.
                wait = self._traced if is_traced() else self._offload
                return wait(reading, offset, length)
        return self._read(offset, length)

    async def _read(self, offset: int, length: int) -> bytes:
        core = self._core
        # First, because a spent time slice is by far the most frequent reason to come here.
        spent = await core.workers.checkpoint_if_due()
        data = core.mapping.read_inline(offset, length) if spent else None
        if data is not None:
            return data
        core.check_usable()
        plain = plain_integers(offset, length)
        offset, length = check_range(offset, length, core.mapping.size, core.shared_writable)
        data = None if plain else core.mapping.read_inline(offset, length)
        if data is not None:
            return data
        queue = self._engine_queue()
        reading = None if queue is None else queue.read(core.mapping, offset, length, True)
        return await self._traced(reading, offset, length)

    def _engine_queue(self) -> PoolQueue | None:
        """Return the place of the file in the engine; made by the first read that has to wait."""
        if self._queue is None:
            self._queue = self._core.workers.queue(self._core.identity.device)
        return self._queue

    async def _traced(self, reading: PoolRead | None, offset: int, length: int) -> bytes:
        with traced("read", self._core.path, offset, length) as op:
            op.hop()
            return await self._offload(reading, offset, length)

    async def _offload(self, reading: PoolRead | None, offset: int, length: int) -> bytes:
        core = self._core
        self.offloaded += 1
        core.lifecycle.begin_activity()
        try:
            if reading is not None:
                try:
                    data: bytes | int = await reading
                except BaseException:
                    reading.withdraw()
                    raise
                if isinstance(data, bytes):
                    return data
            return await core.workers.run(
                core.workers.reads, self.read_whole, offset, length, on_cancel=OnCancel.ABANDON
            )
        finally:
            core.lifecycle.end_activity()

    async def read_into(self, offset: int, buffer: object) -> int:
        """Fill a buffer after ``read_into_inline`` answered None."""
        core = self._core
        core.check_usable()
        view = export_bytes(buffer, True)
        plain = plain_integers(offset)
        offset, length = check_range(offset, len(view), core.mapping.size, core.shared_writable)
        if await core.workers.checkpoint_if_due() or not plain:
            core.check_usable()
            done = core.mapping.read_into_inline(offset, view)
            if done is not None:
                return done
        self.offloaded += 1
        with core.lifecycle.activity(), traced("read", core.path, offset, length) as op:
            op.hop()
            if await self._fill(offset, view) < length:
                # A job: the thread writes into memory of the caller, so it is never left behind.
                await core.run(core.workers.reads, self.read_into_whole, offset, view)
        return length

    async def _fill(self, offset: int, view: memoryview) -> int:
        """Fill a view in the engine, and return how far it came; it is waited out (workers.2)."""
        core, queue = self._core, self._engine_queue()
        done = core.workers.event()
        outcomes: list[int] = []

        def tell(outcome: int) -> None:
            outcomes.append(outcome)
            done.set()

        reading = None if queue is None else queue.read_into(core.mapping, offset, view, tell)
        if reading is None:
            return 0
        await wait_or_withdraw(done, reading.withdraw)
        return outcomes[0]

    def read_nowait(self, offset: int, length: int) -> bytes:
        """Read what is in memory, or raise WouldBlock."""
        core = self._core
        core.check_usable()
        offset, length = check_range(offset, length, core.mapping.size, core.shared_writable)
        data = core.mapping.read_nowait(offset, length)
        if data is None:
            raise anyio.WouldBlock
        return data

    async def read_many(self, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        """Read ranges: inline what is in memory, the rest together."""
        core = self._core
        core.check_usable()
        with (
            core.lifecycle.activity()
        ):  # it may give way many times, and a reopen has to wait for it
            return await self._read_many(ranges)

    async def _read_many(self, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        core = self._core
        checked: list[tuple[int, int]] = []
        for offset, length in ranges_of(ranges):
            checked.append(check_range(offset, length, core.mapping.size, core.shared_writable))
            if not len(checked) % YIELD_EVERY:
                await core.workers.checkpoint_if_due()
        found: list[bytes] = []
        missing: list[tuple[int, int, int]] = []
        first, end = core.mapping.size, 0
        for offset, length in checked:
            data = core.mapping.read_inline(offset, length)
            if data is None and await core.workers.checkpoint_if_due():
                core.check_usable()
                data = core.mapping.read_inline(offset, length)
            if data is None:
                missing.append((len(found), offset, length))
                first, end = min(first, offset), max(end, offset + length)
            found.append(data or b"")
            if not len(found) % YIELD_EVERY:  # a read that declines at once spends no time slice
                await core.workers.checkpoint_if_due()
        if missing:
            core.check_usable()
            await self._fetch(found, missing, first, end)
        return found

    async def _fetch(
        self, found: list[bytes], missing: Sequence[tuple[int, int, int]], first: int, end: int
    ) -> None:
        """Read the missing ranges, given as (place in ``found``, offset, length)."""
        core = self._core
        self.offloaded += len(missing)
        with core.lifecycle.activity(), traced("read", core.path, first, end - first) as op:
            op.hop()
            for at in range(0, len(missing), READS_AT_ONCE):
                await self._fetch_part(found, missing[at : at + READS_AT_ONCE])

    async def _fetch_part(
        self, found: list[bytes], missing: Sequence[tuple[int, int, int]]
    ) -> None:
        """Read in the engine; a worker reads in one hop what the engine does not return."""
        core, queue = self._core, self._engine_queue()
        reading = None
        if queue is not None:
            ranges = [(offset, length) for _, offset, length in missing]
            reading = queue.read_many(core.mapping, ranges)
        outcomes: list[bytes | int] = [0] * len(missing)
        if reading is not None:
            try:
                outcomes = await reading
            except BaseException:
                reading.withdraw()
                raise
        rest = []
        for place, data in zip(missing, outcomes, strict=True):
            if isinstance(data, bytes):
                found[place[0]] = data
            else:
                rest.append(place)
        if rest:
            parts = await core.workers.run(
                core.workers.reads, self._read_parts, rest, on_cancel=OnCancel.ABANDON
            )
            for (at, _, _), data in zip(rest, parts, strict=True):
                found[at] = data

    # From here on: only for threads that may wait.

    def _read_parts(self, missing: Sequence[tuple[int, int, int]]) -> list[bytes]:
        return [self.read_whole(offset, length) for _, offset, length in missing]

    def read_whole(self, offset: int, length: int) -> bytes:
        """Read a checked range."""
        try:
            data = self._core.disk.read(offset, length)
        except OSError as error:
            raise self._core.faults.lost(offset, length, 0, error.errno or errno.EIO) from error
        if len(data) < length:
            raise self._core.faults.lost(offset, length, len(data))
        return data

    def read_into_whole(self, offset: int, view: memoryview) -> None:
        """Fill a view of bytes from a checked range."""
        try:
            copied = self._core.disk.read_into(offset, view)
        except OSError as error:
            raise self._core.faults.lost(offset, len(view), 0, error.errno or errno.EIO) from error
        if copied < len(view):
            raise self._core.faults.lost(offset, len(view), copied)
