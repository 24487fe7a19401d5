"""What the rest of the library asks of an event loop, whichever it is.

``AsyncioLoop`` and ``TrioLoop`` do it, each in a module of its own; ``loops`` picks the one that
runs. No other module knows which it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Event(Protocol):
    """What asyncio's, trio's and anyio's events have in common."""

    def set(self) -> object: ...
    def is_set(self) -> bool: ...
    def wait(self) -> Coroutine[Any, Any, object]: ...


class Waiter(Protocol[T]):
    """What one task waits for: asyncio's own future, or what stands for it in trio."""

    def done(self) -> bool: ...
    def set_result(self, result: T, /) -> None: ...
    def __await__(self) -> Generator[Any, None, T]: ...


class EventLoop(Protocol):
    """One event loop, made in its own thread while it runs."""

    __slots__ = ()

    #: What stands for the loop, and what finds it in the thread it runs in, or raises RuntimeError.
    token: object
    find_token: Callable[[], object]
    #: Gives way to other tasks and sees a pending cancellation.
    checkpoint: Callable[[], Awaitable[None]]
    #: Awaited it does so, too, and costs little more than the switch of tasks; None where nothing
    #: costs so little. All tasks that wake in one turn get to it before one of them goes on.
    pause: Awaitable[None] | None
    #: Calls a function in the next turn of the loop; for the loop thread.
    call_soon: Callable[[Callable[[], object]], object]
    #: The same in any thread. Raises RuntimeError if the loop has ended.
    call_from_thread: Callable[[Callable[[], object]], object]
    #: Makes an event of this loop's own kind: anyio's costs each waiter a microsecond more.
    event: Callable[[], Event]
    #: Makes what a single task waits for: half of what an event costs.
    waiter: Callable[[], Waiter[Any]]

    @property
    def ended(self) -> bool:
        """Whether the loop was closed, which ends tasks that wait without a word; any thread."""
        ...

    def call_later(self, delay: float, function: Callable[[], object]) -> Callable[[], object]:
        """Call a function after a delay in seconds; returns what cancels that."""
        ...

    def add_reader(
        self, fd: int, function: Callable[[], object], may_end: Callable[[], bool]
    ) -> Callable[[], object]:
        """Call a function whenever a descriptor is readable; returns what ends that.

        End it before the descriptor is closed. It keeps neither the loop nor a run of it going; but
        if the end of a run ends it, only once ``may_end``, which is asked from then on, says so.
        """
        ...

    def spawn(self, function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
        """Start a background task that nothing cancels; the function must not raise (workers.3)."""

    def spawn_user_task(
        self, function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts
    ) -> None:
        """Start a background task that runs code of the application; it ends when the loop does."""

    async def wait_out(self, done: Event) -> None:
        """Wait with a cancellation in hand, which is delivered afterwards, and whatever more come.

        What ends the program does not wait: a job may hang for good, on a dead server for instance.

        Raises:
            KeyboardInterrupt: if Ctrl-C was pressed and no other task can raise it.
        """


def find_program_end(error: BaseException, cancelled: type[BaseException]) -> BaseException | None:
    """Find what no task may keep to itself in an exception, or in a group of several."""
    if isinstance(error, BaseExceptionGroup):
        found = (find_program_end(part, cancelled) for part in error.exceptions)
        return next((end for end in found if end is not None), None)
    return None if isinstance(error, (Exception, GeneratorExit, cancelled)) else error
