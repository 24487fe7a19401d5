"""Callbacks, sync or async: told on the event loop, kept apart from one another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ._logs import CALLBACKS
from ._workers import spawn_foreign

T = TypeVar("T")


class Subscription:
    """Stands for one registered callback; ``cancel`` ends it."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[Subscription], object]) -> None:
        self._end = end

    def cancel(self) -> None:
        """Call the callback no more; a call under way goes on. Twice is once."""
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
        """Call them all in the background; one that raises is logged and stops no other."""
        for callback in list(self._callbacks.values()):
            spawn_foreign(_call, callback, value)

    def _remove(self, subscription: Subscription) -> None:
        self._callbacks.pop(subscription, None)


async def _call(callback: Callable[[T], object], value: T) -> None:
    try:
        answer = callback(value)
        if isinstance(answer, Awaitable):
            await answer
    except Exception:
        CALLBACKS.exception("%r failed when it was told of %r", callback, value)
