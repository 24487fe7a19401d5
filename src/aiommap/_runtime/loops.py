"""The event loop that runs in this thread, and what is asked of it without a hub."""

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


def load_backend() -> None:
    """Have what anyio needs for the loop that runs here; it imports that when first asked.

    That could be when a file is closed: without a descriptor, in a chroot or without the privilege
    to read the modules it would fail there (I15). A part of it is imported together with us.
    """
    anyio.get_cancelled_exc_class()
    anyio.CancelScope()


def running_loop() -> EventLoop:
    """Return the loop that runs in this thread; also right in a callback.

    Raises:
        RuntimeError: if none does.
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
    """Call a function on the running loop after a delay in seconds; returns what cancels that."""
    return running_loop().call_later(delay, function)


async def wait_out(done: Event) -> None:
    """Wait with a cancellation in hand, which is delivered afterwards, and whatever more come."""
    await running_loop().wait_out(done)


async def wait_or_withdraw(done: Event, withdraw: Callable[[], bool]) -> None:
    """Wait; on cancellation withdraw what has not begun, or else wait it out first (workers.2)."""
    try:
        await done.wait()
    except GeneratorExit:
        raise  # the loop is gone, and nothing can be awaited any more
    except BaseException:
        if not withdraw():
            await wait_out(done)
        raise
