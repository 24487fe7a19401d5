"""The part of the contract of the native module for its own threads, the native pool.

All of it is for the thread of one event loop; ``mapping`` is a ``Mapping``. A verb of ``PoolQueue``
returns None if the pool cannot do it; then a worker thread has to. The outcome of a job is all the
bytes, or else the result of the system call: the number of bytes that it filled, if fewer than
asked for, or a negative errno; -EAGAIN if no thread could be started.
"""

from collections.abc import Callable, Generator
from typing import Any, TypeAlias, final

from typing_extensions import Buffer

_Outcome: TypeAlias = bytes | int

class Awaited:
    """What a task of asyncio may await in the place of a future, whose methods it has.

    Tasks of trio cannot.
    """

    def __await__(self) -> Generator[Any, None, Any]: ...
    def done(self) -> bool:
        """Tell whether it was answered, or nobody waits any more."""

@final
class PoolRead(Awaited):
    """Reads that were begun; they go on, and keep what they need, even if nobody holds this.

    One task may await this, for the outcome or a list of them.
    """

    @property
    def waiter(self) -> Any:
        """What ``make_waiter`` made. None if it was not asked, and once this has landed."""

    def __await__(self) -> Generator[Any, None, Any]: ...
    def withdraw(self) -> bool:
        """Forget the waiter, and withdraw reads that have not begun; tell whether none runs."""

@final
class PoolCommit:
    """A job that stores or makes durable, and that cannot be withdrawn.

    When the job has landed, the loop calls its function ``tell`` with this object; and then what
    that returns, unless it is None.
    """

    #: Whether all calls succeeded and nothing unusual was found. Only before ``outcome``.
    succeeded: bool

    def wait(self) -> None:
        """Wait until the calls were made (waits)."""

    def outcome(self) -> Any:
        """Return the outcome; the first call also does the accounting.

        Raises:
            RuntimeError: if the calls were not made yet.
        """

Tell: TypeAlias = Callable[[PoolCommit], Callable[[], object] | None]

@final
class PoolQueue:
    """The place of one file in a pool."""

    def read(
        self, mapping: object, offset: int, length: int, at_once: bool = ..., /
    ) -> PoolRead | None:
        """Read.

        Without a fourth argument, None also means that the time slice is spent and the bytes seem
        to be in memory: give way, and try inline. With one, whatever its value, the pool reads.
        """

    def read_many(self, mapping: object, ranges: list[tuple[int, int]], /) -> PoolRead | None:
        """Read (offset, length) pairs together; the outcome is a list."""

    def read_into(
        self, mapping: object, offset: int, memory: Buffer, tell: Callable[[int], object], /
    ) -> PoolRead | None:
        """Fill memory, and keep it until ``tell`` is called with the outcome."""

    def read_ahead(
        self, mapping: object, offset: int, length: int, tell: Callable[[int], object], /
    ) -> PoolRead | None:
        """posix_fadvise(2) with POSIX_FADV_WILLNEED."""

    def read_file(
        self, fd: int, offset: int, length: int, tell: Callable[[_Outcome], object], /
    ) -> PoolRead | None:
        """Read a descriptor; the caller keeps it open until ``tell`` is called with the outcome."""

@final
class Pool:
    """Threads that make calls that wait; the pool starts them when there are jobs."""

    #: Jobs that were begun and not yet delivered, and how many of them are commits.
    in_flight: int
    commits: int
    threads: int
    #: Settable: take no more commits, because nobody calls ``drain`` when they land.
    deaf: bool

    def __new__(
        cls,
        make_waiter: Callable[[], Any],
        call_soon: Callable[..., object],
        loop: object | None = ...,
        /,
    ) -> Pool:
        """Make a pool for a loop.

        Tasks wait for what ``make_waiter`` makes. If ``loop`` is one of asyncio, its tasks wait for
        a ``PoolRead`` itself, and ``drain`` may run them.

        Raises:
            OSError: if no descriptor is left.
        """

    def queue(self, hub: int, limit: int, device: int, /) -> PoolQueue:
        """Make the place of a file; at most ``limit`` jobs of one ``hub`` run at a time."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``drain`` has work to do; -1 once closed."""

    def drain(self) -> None:
        """Deliver the outcomes of jobs that landed, and start jobs that were begun this turn."""

    def give_up(self) -> None:
        """Drain after the loop has ended: no task is woken."""

    def when_empty(self, function: Callable[[], object], /) -> None:
        """Call a function when no job is in flight: now, or in the ``drain`` of the last one."""

    def close(self) -> None:
        """End the threads. RuntimeError if a job is in flight."""
