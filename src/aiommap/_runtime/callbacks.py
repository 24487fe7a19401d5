"""Callbacks of the application, sync or async: called on the loop, each in a task of its own."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from typing import Generic, ParamSpec, TypeVar

import anyio

from .._logs import CALLBACKS
from .loops import spawn_user_task

T = TypeVar("T")
P = ParamSpec("P")


def nothing() -> None:
    """Stand in where there is nothing to call."""


def when_garbage(
    owner: T, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
) -> weakref.finalize[P, T]:
    """Call a function when an object becomes garbage, but not at the end of the interpreter."""
    ending = weakref.finalize(owner, function, *args, **kwargs)
    ending.atexit = False
    return ending


class Subscription:
    """One registered callback; ``cancel`` ends it."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[Subscription], object]) -> None:
        self._end = end

    def cancel(self) -> None:
        """Stop calling the callback. A call under way goes on; a second ``cancel`` does nothing."""
        self._end(self)


class Listeners(Generic[T]):
    """Registered callbacks of one kind."""

    __slots__ = ("_callbacks",)

    def __init__(self) -> None:
        self._callbacks: dict[Subscription, Callable[[T], object]] = {}

    def add(self, callback: Callable[[T], object]) -> Subscription:
        """Register a function or a coroutine function of one argument."""
        if not callable(callback):
            raise TypeError(f"asked to call {callback!r}: pass a function of one argument")
        subscription = Subscription(self._remove)
        self._callbacks[subscription] = callback
        return subscription

    def tell(self, value: T) -> None:
        """Call all of them in the background. If one raises, that is logged and stops no other."""
        for callback in list(self._callbacks.values()):
            spawn_user_task(_call, callback, value)

    def _remove(self, subscription: Subscription) -> None:
        self._callbacks.pop(subscription, None)


async def call_user(function: Callable[..., object], *arguments: object) -> object:
    """Call a function of the application, sync or async; return its answer or raise its error.

    The call has a task of its own. The function may raise a cancellation that nobody asked for, by
    awaiting a task that somebody else cancelled. That is a failure of the function, a RuntimeError,
    and does not cancel the caller.
    """
    outcome = _Outcome()
    async with anyio.create_task_group() as group:
        group.start_soon(outcome.keep, function, arguments)
    return outcome.take()


class _Outcome:
    """The outcome of a call; until the call has ended, the error for a cancellation of its own."""

    __slots__ = ("_answer", "_error")

    def __init__(self) -> None:
        self._answer: object = None
        self._error: BaseException | None = RuntimeError(
            "what was called ended by a cancellation of its own: catch it there if it is expected"
        )

    async def keep(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        """Call, and keep the outcome."""
        try:
            answer = function(*arguments)
            self._answer = await answer if isinstance(answer, Awaitable) else answer
            self._error = None
        except GeneratorExit:
            raise  # the loop is gone, and cannot be asked for its cancellation class
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self._error = error

    def take(self) -> object:
        """Return the answer or raise the error."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._answer


async def _call(callback: Callable[[T], object], value: T) -> None:
    try:
        await call_user(callback, value)
    except Exception:
        CALLBACKS.exception("%r failed when it was told of %r", callback, value)
