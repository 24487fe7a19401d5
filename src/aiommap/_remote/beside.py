"""``run_beside``: work that another thread does while the caller waits for a store."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import TypeVar

from .._runtime.threads import run_in_thread

T = TypeVar("T")


def run_beside(function: Callable[[], T]) -> Callable[[], T]:
    """Call a function in another thread, from now on; worker threads only.

    If no thread can be started, it is called here, at once.

    Returns:
        A function that waits for the end, and returns or raises what came; to be called once.
    """
    came: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def run() -> None:
        came.put(outcome_of(function))

    def take() -> T:
        return came.get()()

    try:
        run_in_thread(run)
    except RuntimeError:
        return outcome_of(function)
    return take


def outcome_of(function: Callable[[], T]) -> Callable[[], T]:
    """Call a function; return one that returns the same result, or raises the same error."""
    try:
        result = function()
    except BaseException as error:
        failure = [error]

        def fail() -> T:
            raise failure.pop()  # or its traceback and this function would keep each other alive

        return fail
    return lambda: result
