"""The allocator: a mutex around the table, and tasks that wait for space.

Invariants.
  1  Every decision reads the table under the allocator's mutex. A thread holds the mutex only for
     moments: it does not wait, call back or wake a task meanwhile.
  2  A call that frees bytes also serves the queue, from its head on, under the same mutex. So a
     waiting task gets the first space that fits it.
  3  A range granted to a task that is gone becomes free again. A cancelled task frees it; if the
     task's loop ended before the wake-up, the call that granted it frees it.
"""

from __future__ import annotations

from collections import deque
from typing import NoReturn, SupportsIndex

import anyio

from .._arguments import at_least
from .._core.file_core import FileCore
from .._errors import ForkedError, OutOfBoundsError, not_copied
from .._runtime.threads import Mutex
from .table import AllocatedRange, AllocationTable, Layout


class _Waiter:
    """One task that waits for space."""

    __slots__ = ("granted", "length", "woken")

    def __init__(self, length: int) -> None:
        self.length = length
        #: Set under the mutex, before the task wakes.
        self.granted: AllocatedRange | None = None
        self.woken = anyio.Event()

    def try_grant(self, table: AllocationTable) -> bool:
        """Take the range from the table if there is room; under the mutex."""
        self.granted = table.take(self.length)
        return self.granted is not None


class RangeAllocator:
    """Hands out ranges of a file that do not overlap; made by ``MappedFile.allocator``.

    It keeps a table in memory and touches no byte of the file. No flush writes the table: it ends
    with the process unless you save ``state``.

    Concurrency: safe from several threads, except ``acquire``, which is for tasks of the file's
        event loop. Not safe from finalizers or signal handlers.
    """

    __slots__ = ("__weakref__", "_call", "_closed", "_core", "_mutex", "_table", "_waiters")

    def __init__(self, core: FileCore, layout: Layout) -> None:
        self._core = core
        self._call = core.workers.call_from_thread
        self._table = AllocationTable(self, layout)
        self._mutex = Mutex()
        self._waiters: deque[_Waiter] = deque()
        self._closed = False

    @property
    def start(self) -> int:
        """First byte of the span from which it hands out, from the start of the file."""
        return self._table.start

    @property
    def end(self) -> int:
        """First byte behind its span."""
        return self._table.end

    @property
    def alignment(self) -> int:
        """Offsets of ranges from ``allocate`` and ``acquire`` are multiples of this many bytes."""
        return self._table.alignment

    @property
    def closed(self) -> bool:
        """Whether the allocator or its file was closed."""
        return self._closed

    @property
    def remaining(self) -> int:
        """Number of free bytes, in any number of runs.

        This includes gaps that alignment leaves between ranges. They may be too short to hand out;
        see ``largest``.
        """
        return self._table.remaining

    @property
    def largest(self) -> int:
        """Length of the longest range that ``allocate`` could hand out at this moment, in bytes."""
        with self._locked():
            return self._table.largest()

    @property
    def unclaimed(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of ranges of the saved state that nobody has claimed."""
        with self._locked():
            return self._table.unclaimed()

    def allocate(self, length: SupportsIndex) -> AllocatedRange:
        """Hand out the lowest free bytes that fit, or fail at once.

        It takes free bytes even while tasks wait in ``acquire`` for a longer range.

        Args:
            length: number of bytes; at least 1. The range has exactly this length.
        Raises:
            ValueError: if the length is not positive.
            OutOfBoundsError: if no free run is long enough; ``limit`` is the value of ``largest``.
            anyio.ClosedResourceError: if the allocator or the file is closed.
        """
        count = self._check_length(length)
        with self._locked():
            self._check_open()
            allocated = self._table.take(count)
            if allocated is None:
                raise self._no_room(count, self._table.largest())
            return allocated

    async def acquire(self, length: SupportsIndex) -> AllocatedRange:
        """Hand out bytes as ``allocate`` does, but wait until they are free.

        Tasks are served in the order in which they asked, even if a later one asks for less.

        Raises:
            ValueError: if the length is not positive.
            OutOfBoundsError: at once, if the whole span is too short for the range.
            anyio.ClosedResourceError: if the allocator or the file is closed, before or while this
                waits.
        Cancellation: takes the task out of the queue; nothing stays allocated. If it need not wait
            it is a checkpoint only now and then, like the verbs of ``MappedFile``.
        Concurrency: ``free`` in any task or thread wakes it.
        """
        count = self._check_length(length)
        capacity = self._table.capacity()
        if count > capacity:
            raise self._no_room(count, capacity)
        await self._core.workers.checkpoint_if_due()
        self._core.check_usable()
        with self._locked():
            self._check_open()
            allocated = None if self._waiters else self._table.take(count)
            if allocated is not None:
                return allocated
            waiter = _Waiter(count)
            self._waiters.append(waiter)
        return await self._wait(waiter)

    def free(self, allocated: AllocatedRange) -> None:
        """Take a range back; its bytes may be handed out again at once.

        Waiting tasks are served before this returns. It also works on a closed allocator.

        Raises:
            ReceiptError: if the range was freed or split, or belongs to another allocator.
        """
        with self._locked():
            self._table.free(allocated)
            granted = self._serve()
        self._wake(granted)

    def split(
        self, allocated: AllocatedRange, position: SupportsIndex
    ) -> tuple[AllocatedRange, AllocatedRange]:
        """Replace a range by two; see ``AllocatedRange.split_at``."""
        with self._locked():
            self._check_open()
            return self._table.split(allocated, position)

    def claim(self, offset: SupportsIndex, length: SupportsIndex) -> AllocatedRange:
        """Get a handle to a range that was allocated when the state was saved.

        Args:
            offset: the offset of the range, from the start of the file.
            length: its length in bytes.
        Raises:
            ReceiptError: if no such range was allocated then, or it was claimed already.
            anyio.ClosedResourceError: if the allocator or the file is closed.
        """
        self._core.check_usable()
        with self._locked():
            self._check_open()
            return self._table.claim(offset, length)

    def is_valid(self, allocated: AllocatedRange) -> bool:
        """Tell whether this allocator handed the range out, and it was neither freed nor split."""
        return not self._closed and self._table.is_valid(allocated)

    def state(self) -> bytes:
        """Return all allocated ranges as bytes, for ``MappedFile.allocator(state=...)``.

        Returns:
            48 bytes, and 16 for each range.
        Durability: none by itself. After a crash only a state that you made durable counts. So
            make the state durable before you rely on bytes of a new range: an older state would
            hand these bytes out again. A range that was freed after the state was saved merely
            stays allocated, and can be claimed.
        Concurrency: takes about a microsecond per range; with very many, call it in a thread.
        """
        with self._locked():
            make = self._table.copy()
        return make().encode()

    def close(self) -> None:
        """Hand out nothing more; ranges become invalid, and waiting tasks get an error.

        ``state`` and ``free`` go on working. Closing the file closes its allocators. A second call
        does nothing.
        """
        with self._locked():
            self._closed = True
            waiters = list(self._waiters)
            self._waiters.clear()
        for waiter in waiters:
            self._call(waiter.woken.set)

    async def _wait(self, waiter: _Waiter) -> AllocatedRange:
        try:
            await waiter.woken.wait()
        except GeneratorExit:
            # The garbage collector ends the coroutine after its loop has ended. This thread may
            # hold the mutex at that moment. The next call that serves the waiter frees the range
            # (allocator.3).
            raise
        except BaseException:
            self._withdraw(waiter)
            raise
        if waiter.granted is None:
            raise self._closed_error()
        return waiter.granted

    def _withdraw(self, waiter: _Waiter) -> None:
        with self._locked():
            if waiter.granted is not None:
                self._table.free(waiter.granted)
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            granted = self._serve()
        self._wake(granted)

    def _serve(self) -> list[_Waiter]:
        """Grant ranges to waiters from the head of the queue, while they fit (allocator.2).

        The caller releases the mutex and then wakes the tasks (allocator.1).
        """
        granted = []
        while self._waiters:
            if not self._waiters[0].try_grant(self._table):
                break
            granted.append(self._waiters.popleft())
        return granted

    def _wake(self, granted: list[_Waiter]) -> None:
        while granted:
            lost = [waiter.granted for waiter in granted if not self._call(waiter.woken.set)]
            with self._locked():
                for allocated in lost:
                    assert allocated is not None
                    self._table.free(allocated)
                granted = self._serve()

    def _locked(self) -> Mutex:
        """Return the mutex (allocator.1); raise in a forked child (I10).

        A thread of the parent may have held it at the fork, and nobody would release it here.
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
        table = self._table
        never = length > table.capacity()
        return OutOfBoundsError(
            table.start,
            length,
            limit,
            f"no room for {length} bytes in [{table.start}, {table.end}): at most {limit} in one "
            f"piece ({table.remaining} bytes are free in {table.runs()} runs, alignment is "
            f"{table.alignment}); ask for less"
            + ("" if never else ", free a range, or wait for one with acquire()"),
        )

    def __reduce__(self) -> NoReturn:
        raise not_copied(self, "pass the file and state(), and make another one from those")

    def __repr__(self) -> str:
        table, state = self._table, " closed" if self._closed else ""
        return (
            f"<RangeAllocator of {self._core.path} [{table.start}, {table.end}) "
            f"{table.remaining} bytes free{state}>"
        )
