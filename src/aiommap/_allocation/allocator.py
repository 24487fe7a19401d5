"""The allocator: a mutex around the ledger, and tasks that wait for space.

Invariants.
  1  Every look at a ledger that decides something happens under its allocator's mutex. It is held
      for moments: no wait, no callback and no wake-up happens inside.
  2  Whoever changes what is free also serves the queue, under the same mutex and from its head
      on, so a task that waits never sees space go by that it could have had.
  3  A range granted to a task that is gone goes back: its cancellation frees it, and if its loop
      ended before it could be told, whoever granted it does.
"""

from __future__ import annotations

from collections import deque
from typing import NoReturn, SupportsIndex

import anyio

from .._arguments import at_least
from .._core.file_core import FileCore
from .._errors import ForkedError, OutOfBoundsError, not_copied
from .._runtime.threads import Mutex
from .table import AllocatedRange, Layout, Ledger


class _Waiter:
    """One task that waits for space; ``granted`` is set under the mutex, before it is told."""

    __slots__ = ("granted", "length", "told")

    def __init__(self, length: int) -> None:
        self.length = length
        self.granted: AllocatedRange | None = None
        self.told = anyio.Event()


class RangeAllocator:
    """Hands out ranges of a file that do not overlap; made by ``MappedFile.allocator``.

    It keeps books and touches no byte of the file. What was handed out is forgotten with the
    process unless ``state`` is saved, and is not part of any flush.

    Concurrency: safe from several threads, except that ``acquire`` belongs to tasks of the file's
        event loop; not from finalizers or signal handlers.
    """

    __slots__ = ("__weakref__", "_call", "_closed", "_core", "_ledger", "_mutex", "_waiters")

    def __init__(self, core: FileCore, layout: Layout) -> None:
        self._core = core
        self._call = core.workers.call_from_thread
        self._ledger = Ledger(self, layout)
        self._mutex = Mutex()
        self._waiters: deque[_Waiter] = deque()
        self._closed = False

    @property
    def start(self) -> int:
        """First byte of the span it hands out from, from the start of the file."""
        return self._ledger.start

    @property
    def end(self) -> int:
        """First byte behind its span."""
        return self._ledger.end

    @property
    def alignment(self) -> int:
        """What the offset of every range from ``allocate`` and ``acquire`` is a multiple of."""
        return self._ledger.alignment

    @property
    def closed(self) -> bool:
        """Whether it, or its file, was closed."""
        return self._closed

    @property
    def remaining(self) -> int:
        """Bytes that are free, in however many runs."""
        return self._ledger.remaining

    @property
    def largest(self) -> int:
        """Bytes of the longest range that ``allocate`` could hand out at this moment."""
        with self._books():
            return self._ledger.largest()

    @property
    def unclaimed(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of what is allocated since before the state was saved, unclaimed yet."""
        with self._books():
            return self._ledger.unclaimed()

    def allocate(self, length: SupportsIndex) -> AllocatedRange:
        """Hand out the lowest free bytes that fit, or fail at once.

        Takes what is free also while tasks wait in ``acquire`` for more than that.

        Args:
            length: number of bytes; at least 1. The range has exactly this length.
        Raises:
            ValueError: if the length is not positive.
            OutOfBoundsError: if no free run is long enough; ``limit`` is what ``largest`` was.
            anyio.ClosedResourceError: if the allocator or the file is closed.
        """
        count = self._check_length(length)
        with self._books():
            self._check_open()
            allocated = self._ledger.take(count)
            if allocated is None:
                raise self._no_room(count, self._ledger.largest())
            return allocated

    async def acquire(self, length: SupportsIndex) -> AllocatedRange:
        """Hand out bytes as ``allocate`` does, waiting until they are free.

        Tasks are served in the order in which they asked, also if a later one asks for less.

        Raises:
            ValueError: if the length is not positive.
            OutOfBoundsError: at once, if the whole span could not hold the range.
            anyio.ClosedResourceError: if the allocator or the file is closed, also meanwhile.
        Cancellation: takes the task out of the queue; nothing stays allocated. Not a checkpoint
            each time if it need not wait, as for the verbs of ``MappedFile``.
        Concurrency: woken by ``free`` in any task or thread.
        """
        count = self._check_length(length)
        capacity = self._ledger.capacity()
        if count > capacity:
            raise self._no_room(count, capacity)
        await self._core.workers.give_way()
        self._core.check_usable()
        with self._books():
            self._check_open()
            allocated = None if self._waiters else self._ledger.take(count)
            if allocated is not None:
                return allocated
            waiter = _Waiter(count)
            self._waiters.append(waiter)
        return await self._wait(waiter)

    def free(self, allocated: AllocatedRange) -> None:
        """Take a range back; its bytes may be handed out again at once.

        Waiting tasks are served before this returns. Works on a closed allocator too.

        Raises:
            ReceiptError: if the range is not valid any more, or another allocator's.
        """
        with self._books():
            self._ledger.free(allocated)
            granted = self._serve()
        self._tell(granted)

    def split(
        self, allocated: AllocatedRange, position: SupportsIndex
    ) -> tuple[AllocatedRange, AllocatedRange]:
        """Replace a range by two; see ``AllocatedRange.split_at``."""
        with self._books():
            self._check_open()
            return self._ledger.split(allocated, position)

    def claim(self, offset: SupportsIndex, length: SupportsIndex) -> AllocatedRange:
        """Hold a range again that was allocated when the state was saved.

        Args:
            offset: that of a range that was valid at the time, or was unclaimed.
            length: likewise.
        Raises:
            ReceiptError: if no such range was allocated then, or it was claimed already.
            anyio.ClosedResourceError: if the allocator or the file is closed.
        """
        self._core.check_usable()
        with self._books():
            self._check_open()
            return self._ledger.claim(offset, length)

    def is_valid(self, allocated: AllocatedRange) -> bool:
        """Tell whether a range came from here and was neither freed nor split."""
        return not self._closed and self._ledger.is_valid(allocated)

    def state(self) -> bytes:
        """Say what is allocated, for ``MappedFile.allocator(state=...)``: 48 bytes and 16 a range.

        Durability: none by itself. After a crash the last state that was made durable counts, so
            make it so before bytes of a range handed out since are relied upon: an older one would
            hand them out again. A range freed since merely stays allocated, to be claimed.
        Concurrency: takes a microsecond a range or so; with very many, call it in a thread.
        """
        with self._books():
            make = self._ledger.copy()
        return make().encode()

    def close(self) -> None:
        """Hand out nothing more; ranges lose their validity and waiting tasks get an error.

        ``state`` and ``free`` go on working. Closing the file does this. A second call does
        nothing.
        """
        with self._books():
            self._closed = True
            waiters = list(self._waiters)
            self._waiters.clear()
        for waiter in waiters:
            self._call(waiter.told.set)

    async def _wait(self, waiter: _Waiter) -> AllocatedRange:
        try:
            await waiter.told.wait()
        except GeneratorExit:
            # The coroutine is being collected, its loop long gone. That may happen anywhere, also
            # while this thread holds the mutex; whoever serves the waiter notices
            # (allocator.3).
            raise
        except BaseException:
            self._withdraw(waiter)
            raise
        if waiter.granted is None:
            raise self._closed_error()
        return waiter.granted

    def _withdraw(self, waiter: _Waiter) -> None:
        with self._books():
            if waiter.granted is not None:
                self._ledger.free(waiter.granted)
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            granted = self._serve()
        self._tell(granted)

    def _serve(self) -> list[_Waiter]:
        """Grant what fits to the head of the queue (allocator.2).

        The caller tells them, unlocked (allocator.1).
        """
        granted = []
        while self._waiters:
            waiter = self._waiters[0]
            waiter.granted = self._ledger.take(waiter.length)
            if waiter.granted is None:
                break
            granted.append(self._waiters.popleft())
        return granted

    def _tell(self, granted: list[_Waiter]) -> None:
        while granted:
            lost = [waiter.granted for waiter in granted if not self._call(waiter.told.set)]
            with self._books():
                for allocated in lost:
                    assert allocated is not None
                    self._ledger.free(allocated)
                granted = self._serve()

    def _books(self) -> Mutex:
        """Give the mutex (allocator.1).

        In a forked child a thread that is not there may hold it (I10).
        """
        if self._core.mapping.forked:
            raise ForkedError(self._core.path)
        return self._mutex

    def _check_length(self, length: SupportsIndex) -> int:
        self._core.check_usable()
        return at_least(1, length, "length", "a range has at least 1 byte")

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> anyio.ClosedResourceError:
        return anyio.ClosedResourceError(f"{self!r} is closed: make another one")

    def _no_room(self, length: int, limit: int) -> OutOfBoundsError:
        ledger = self._ledger
        never = length > ledger.capacity()
        return OutOfBoundsError(
            ledger.start,
            length,
            limit,
            f"no room for {length} bytes in [{ledger.start}, {ledger.end}): at most {limit} in one "
            f"piece ({ledger.remaining} bytes are free in {ledger.runs()} runs, alignment is "
            f"{ledger.alignment}); ask for less"
            + ("" if never else ", free a range, or wait for one with acquire()"),
        )

    def __reduce__(self) -> NoReturn:
        raise not_copied(self, "pass the file and state(), and make another one from those")

    def __repr__(self) -> str:
        ledger, state = self._ledger, " closed" if self._closed else ""
        return (
            f"<RangeAllocator of {self._core.path} [{ledger.start}, {ledger.end}) "
            f"{ledger.remaining} bytes free{state}>"
        )
