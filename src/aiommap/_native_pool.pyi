"""The contract of the native module, as far as its own threads go.

Everything here is for the thread of one event loop; ``mapping`` is a ``Mapping``. A verb of
``PoolQueue`` returns None where the pool cannot do it, and a worker thread has to. The outcome of a
job is bytes, all of them, or else what the system call returned: the number of bytes it filled,
fewer than asked for, or a negative errno number, -EAGAIN if no thread could be started.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, final

from typing_extensions import Buffer

_Outcome: TypeAlias = bytes | int

@final
class PoolRead:
    """Reads that were begun; they go on, and keep what they need, whoever holds this."""

    @property
    def waiter(self) -> Any:
        """What to wait for: it gives the outcome, or a list of them. None once it has landed."""

    def withdraw(self) -> bool:
        """Set no waiter any more, and run nothing that has not begun; tell if nothing runs now."""

@final
class PoolCommit:
    """A call that stores or makes durable, and that is not taken back.

    Its function ``tell`` is called on the loop with this when the call was made.
    """

    #: Whether all went well and nothing suspicious was seen. Only before ``outcome``.
    succeeded: bool

    def wait(self) -> None:
        """Wait until the call was made (waits)."""

    def outcome(self) -> Any:
        """Count what was done, the first time; the outcome. RuntimeError before that is there."""

Tell: TypeAlias = Callable[[PoolCommit], object]

@final
class PoolQueue:
    """The place of one file in a pool."""

    def read(
        self, mapping: object, offset: int, length: int, at_once: bool = True, /
    ) -> PoolRead | None:
        """Read; None also if it is time to give way, unless there is a fourth argument."""

    def read_many(self, mapping: object, ranges: list[tuple[int, int]], /) -> PoolRead | None:
        """Read (offset, length) pairs at once; their outcomes are a list."""

    def read_into(
        self, mapping: object, offset: int, memory: Buffer, tell: Callable[[int], object], /
    ) -> PoolRead | None:
        """Fill memory, which is kept until ``tell`` is called with the outcome."""

    def read_ahead(
        self, mapping: object, offset: int, length: int, tell: Callable[[int], object], /
    ) -> PoolRead | None:
        """posix_fadvise(2) with POSIX_FADV_WILLNEED."""

    def read_file(
        self, fd: int, offset: int, length: int, tell: Callable[[_Outcome], object], /
    ) -> PoolRead | None:
        """Read a descriptor, which has to stay open until ``tell`` is called with the outcome."""

@final
class Pool:
    """Threads that make calls which wait; they are started when there is something to do."""

    #: Jobs that were begun and whose outcome nobody was told yet; how many of them are commits.
    in_flight: int
    commits: int
    threads: int
    #: Settable: no more commits are taken, as nobody calls ``drain`` when they land.
    deaf: bool

    def __new__(cls, make_waiter: Callable[[], Any], call_soon: Callable[..., object], /) -> Pool:
        """Make a pool for a loop.

        Raises:
            OSError: if no descriptor is left.
        """

    def queue(self, hub: int, limit: int, device: int, /) -> PoolQueue:
        """Make the place of a file; of all with this ``hub``, ``limit`` jobs run at a time."""

    def fileno(self) -> int:
        """Return what becomes readable when ``drain`` has something to do; -1 once closed."""

    def drain(self) -> None:
        """Tell the outcomes of what has landed, and have what was begun in this turn run."""

    def when_empty(self, function: Callable[[], object], /) -> None:
        """Call a function when nothing is in flight: now, or by the ``drain`` that ends that."""

    def close(self) -> None:
        """End the threads. RuntimeError if anything is in flight."""
