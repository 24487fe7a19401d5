"""The interface to an event loop that the rest of the library uses.

``AsyncioLoop`` and ``TrioLoop`` implement it, each in a module of its own. ``loops`` picks the one
that runs. No other module knows which one that is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Event(Protocol):
    """The methods that the events of asyncio, trio and anyio have in common."""

    def set(self) -> object: ...
    def is_set(self) -> bool: ...
    def wait(self) -> Coroutine[Any, Any, object]: ...


class Waiter(Protocol[T]):
    """An object for which one task waits: a future of asyncio, or its substitute in trio."""

    def done(self) -> bool: ...
    def set_result(self, result: T, /) -> None: ...
    def __await__(self) -> Generator[Any, None, T]: ...


class EventLoop(Protocol):
    """One event loop, made in its own thread while it runs."""

    __slots__ = ()

    #: An object that stands for the loop.
    token: object
    #: Returns the token of the loop that runs in this thread, or raises RuntimeError.
    find_token: Callable[[], object]
    #: Gives way to other tasks and sees a pending cancellation.
    checkpoint: Callable[[], Awaitable[None]]
    #: Does the same when awaited, and costs little more than the switch of tasks; None if the loop
    #: has no such thing. All tasks that wake in one turn reach it before one of them goes on.
    pause: Awaitable[None] | None
    #: Calls a function in the next turn of the loop; for the loop thread.
    call_soon: Callable[[Callable[[], object]], object]
    #: The same in any thread. Raises RuntimeError if the loop has ended.
    call_from_thread: Callable[[Callable[[], object]], object]
    #: Makes an event of this loop's own kind; anyio's costs each waiter a microsecond more.
    event: Callable[[], Event]
    #: What a future of asyncio returns as its loop; None if tasks cannot wait for such a future.
    future_loop: object | None
    #: Makes a waiter for a single task, for half the cost of an event.
    waiter: Callable[[], Waiter[Any]]

    @property
    def ended(self) -> bool:
        """Whether the loop was closed, so that its tasks will never wake; in any thread."""
        ...

    def call_later(self, delay: float, function: Callable[[], object]) -> Callable[[], object]:
        """Call a function after a delay in seconds; return a function that cancels that."""
        ...

    def add_reader(
        self, fd: int, function: Callable[[], object], may_end: Callable[[], bool]
    ) -> Callable[[], object]:
        """Call a function whenever a descriptor is readable; return a function that ends that.

        The caller ends it before it closes the descriptor. It keeps neither the loop nor a run of
        it going. But if the end of a run has to end it, that waits until ``may_end`` returns True.
        """
        ...

    def spawn(self, function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
        """Start a background task that nothing cancels; the function must not raise (workers.3)."""

    def spawn_user_task(
        self, function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts
    ) -> None:
        """Start a background task that runs code of the application; it ends when the loop does."""

    async def wait_out(self, done: Event) -> None:
        """Wait although the task is cancelled, even twice; deliver the cancellation afterwards.

        Only the end of the program ends this wait: a job may hang for good, on a dead server for
        instance.

        Raises:
            KeyboardInterrupt: if Ctrl-C was pressed and no other task can raise it.
        """


def find_program_end(error: BaseException, cancelled: type[BaseException]) -> BaseException | None:
    """Find the exception that has to end the program in an exception or a group; None if none."""
    if isinstance(error, BaseExceptionGroup):
        found = (find_program_end(part, cancelled) for part in error.exceptions)
        return next((end for end in found if end is not None), None)
    return None if isinstance(error, (Exception, GeneratorExit, cancelled)) else error
