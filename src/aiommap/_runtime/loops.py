"""The event loop that runs in this thread, and functions that use it without a hub."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TypeVarTuple, Unpack

import anyio

from .asyncio_loop import AsyncioLoop
from .event_loop import Event, EventLoop
from .trio_loop import TrioLoop

Ts = TypeVarTuple("Ts")

import_module("anyio._backends._asyncio")
#: The kinds of loops for which anyio has imported its modules.
_loaded: set[str] = set()


def load_backend() -> None:
    """Make anyio import its modules for the loop that runs here, which it does at the first call.

    Otherwise the first call might be at close. Without a free descriptor, in a chroot, or without
    the privilege to read the modules, the import would fail there (I15). The import of this module
    loads the part for asyncio.
    """
    trio = sys.modules.get("trio")
    kind = "asyncio" if trio is None or not trio.lowlevel.in_trio_run() else "trio"
    if kind not in _loaded:  # or each hub and cache would pay for it: 60 us at first
        anyio.get_cancelled_exc_class()
        anyio.CancelScope()
        _loaded.add(kind)


def running_loop() -> EventLoop:
    """Return the loop that runs in this thread, in a task or in a callback.

    Raises:
        RuntimeError: if no loop runs here.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return TrioLoop(trio)
    return AsyncioLoop()


def spawn(function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
    """Start a background task that nothing cancels; the function must not raise (workers.3)."""
    running_loop().spawn(function, *args)


def spawn_user_task(function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
    """Start a background task that runs code of the application; it ends when the loop does."""
    running_loop().spawn_user_task(function, *args)


def call_later(delay: float, function: Callable[[], object]) -> Callable[[], object]:
    """Call a function on the running loop after a delay in seconds; return a cancel function."""
    return running_loop().call_later(delay, function)


async def wait_out(done: Event) -> None:
    """Wait although the task is cancelled; it sees the cancellation afterwards."""
    await running_loop().wait_out(done)


async def wait_or_withdraw(done: Event, withdraw: Callable[[], bool]) -> None:
    """Wait; on cancellation withdraw a job that has not begun, or else wait for it (workers.2)."""
    try:
        await done.wait()
    except GeneratorExit:
        raise  # the loop is gone, and nothing can be awaited any more
    except BaseException:
        if not withdraw():
            await wait_out(done)
        raise
