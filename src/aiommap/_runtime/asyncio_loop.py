"""The event loop of asyncio, or uvloop's, which has the same interface."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVarTuple, Unpack, cast

import anyio
import anyio._backends._asyncio as _asyncio_backend

from .event_loop import Event, EventLoop, Waiter, find_program_end

Ts = TypeVarTuple("Ts")

#: asyncio keeps only weak references to tasks. This keeps a task until it is done or its loop ends.
_background: dict[asyncio.AbstractEventLoop, set[asyncio.Task[None]]] = {}
#: The loops that files were used on and that nobody has found closed.
_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
#: The lowest generation whose collection finds old objects. Python 3.14 collects in steps, and
#: numbers its generations differently.
OLD_GENERATION = 1 if sys.version_info >= (3, 14) else 2


class _Pause:
    """Does the same as ``asyncio.sleep(0)``, for any number of tasks, without a generator each."""

    __slots__ = ()

    def __await__(self) -> Iterator[None]:
        return iter(_ONCE)


_ONCE = (None,)


class AsyncioLoop(EventLoop):
    """An ``EventLoop`` over the asyncio loop that runs in this thread."""

    __slots__ = (
        "_loop",
        "call_from_thread",
        "call_soon",
        "checkpoint",
        "event",
        "find_token",
        "future_loop",
        "pause",
        "token",
        "waiter",
    )

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        _loops.add(loop)
        self.token: object = loop
        self.find_token: Callable[[], object] = asyncio.get_running_loop
        # sleep(0) does the same as anyio's checkpoint in half the time. Inline verbs pay for it.
        self.checkpoint: Callable[[], Awaitable[None]] = partial(asyncio.sleep, 0)
        self.pause: Awaitable[None] | None = cast("Awaitable[None]", _Pause())
        self.call_soon: Callable[[Callable[[], object]], object] = loop.call_soon
        self.call_from_thread: Callable[[Callable[[], object]], object] = loop.call_soon_threadsafe
        self.event: Callable[[], Event] = asyncio.Event
        self.future_loop: object | None = loop
        self.waiter: Callable[[], Waiter[Any]] = loop.create_future

    @property
    def ended(self) -> bool:
        """Whether the loop was closed."""
        return self._loop.is_closed()

    def call_later(self, delay: float, function: Callable[[], object]) -> Callable[[], object]:
        """Call a function after a delay in seconds; return a function that cancels that."""
        return self._loop.call_later(delay, function).cancel

    def add_reader(
        self,
        fd: int,
        function: Callable[[], object],
        may_end: Callable[[], bool],  # noqa: ARG002  a reader outlives the runs of its loop
    ) -> Callable[[], object]:
        """Call a function whenever a descriptor is readable; return a function that ends that."""
        self._loop.add_reader(fd, function)
        return partial(self._remove_reader, fd)

    def _remove_reader(self, fd: int) -> None:
        with suppress(RuntimeError):  # the loop is closed, and has no readers
            self._loop.remove_reader(fd)

    def spawn(self, function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
        """Start a background task that nothing cancels."""
        self._spawn(_Background, partial(function, *args))

    def spawn_user_task(
        self, function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts
    ) -> None:
        """Start a background task that runs code of the application."""
        self._spawn(asyncio.Task, partial(function, *args))

    def _spawn(
        self, kind: type[asyncio.Task[None]], function: Callable[[], Awaitable[None]]
    ) -> None:
        task = kind(_run(function), loop=self._loop)
        _background.setdefault(self._loop, set()).add(task)
        task.add_done_callback(_forget_done)

    async def wait_out(self, done: Event) -> None:
        """Wait although cancelled. asyncio itself raises Ctrl-C out of its loop."""
        if isinstance(asyncio.current_task(), _Background):
            await done.wait()  # without a scope: nobody would leave it if the loop is closed
            return
        with anyio.CancelScope(shield=True):
            while not done.is_set():
                with suppress(asyncio.CancelledError):  # another ``Task.cancel``
                    await done.wait()


class _Background(asyncio.Task[None]):
    """A task that cannot be cancelled, so that ``asyncio.run`` waits for it when it ends."""

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002  the signature is asyncio's
        """Refuse: the work of the task has to be done, and ends by itself."""
        return False


async def _run(function: Callable[[], Awaitable[None]]) -> None:
    try:
        await function()
    except BaseExceptionGroup as error:
        raise find_program_end(error, asyncio.CancelledError) or error from None


def _forget_done(task: asyncio.Task[None]) -> None:
    if isinstance(task._exception, (KeyboardInterrupt, SystemExit)):  # noqa: SLF001
        task.exception()  # it has left the loop; so asyncio does not log it as never retrieved
    loop = task.get_loop()
    tasks = _background.get(loop, set())
    tasks.discard(task)
    if not tasks:
        _background.pop(loop, None)


def _forget_ended(phase: str, info: dict[str, int]) -> None:
    """Forget tasks whose loop was closed, before a garbage collection, which then frees them."""
    if phase == "start" and info["generation"] >= OLD_GENERATION:
        closed = [loop for loop in tuple(_loops) if loop.is_closed()]
        for loop in closed:
            _loops.discard(loop)
            for task in _background.pop(loop, ()):
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
        if closed:
            _forget_scopes()


def _forget_scopes() -> None:
    """Remove anyio's entries for tasks whose loop was closed, because nobody leaves their scopes.

    anyio maps a weak reference to the task to its cancel scope, and the scope refers to the task.
    So both would stay, with everything to which the task refers.
    """
    name = "_task_states"  # not public; another version of anyio may not have it
    states: MutableMapping[asyncio.Task[Any], object] = getattr(_asyncio_backend, name, {})
    for task in tuple(states):
        if task.get_loop().is_closed():
            states.pop(task, None)


gc.callbacks.append(_forget_ended)
