"""Events, tasks and timers of asyncio and trio behind one set of names."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar, TypeVarTuple, Unpack

import anyio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


#: How soon an exception is raised in a task again that could not take it at that moment.
RAISE_SECONDS = 0.001
#: How soon a task that waits a job out learns of a Ctrl-C that trio has nobody to tell.
INTERRUPT_SECONDS = 0.1

#: asyncio keeps only weak references to tasks; these live until they are done, or their loop is.
_background: dict[asyncio.AbstractEventLoop, set[asyncio.Task[None]]] = {}
#: Collections of what is old; since Python 3.14 they are done in steps, and are the second kind.
OLD_GENERATION = 1 if sys.version_info >= (3, 14) else 2


def _forget_ended(phase: str, info: dict[str, int]) -> None:
    """Let go of tasks whose loop was closed, before garbage is collected: they are a part of it."""
    if phase == "start" and info["generation"] >= OLD_GENERATION:
        for loop in tuple(_background):
            if loop.is_closed():
                for task in _background.pop(loop, ()):
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001


def _forget_done(task: asyncio.Task[None]) -> None:
    loop = task.get_loop()
    tasks = _background.get(loop, set())
    tasks.discard(task)
    if not tasks:
        _background.pop(loop, None)


gc.callbacks.append(_forget_ended)


def _load_backend() -> None:
    """Have what anyio needs for the loop that runs here; it imports that when first asked.

    That could be when a file is closed: without a descriptor, in a chroot or without the privilege
    to read the modules it would fail there (I15). A part of it is imported together with us.
    """
    anyio.get_cancelled_exc_class()
    anyio.CancelScope()


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


def _trio() -> Any:
    """Return the trio module if trio is what runs this thread; also right in a callback."""
    trio = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_run() else None


class _TrioWaiter:
    """As much of a future as a ``Waiter`` needs."""

    __slots__ = ("_event", "_result")

    def __init__(self, event: Event) -> None:
        self._event = event

    def done(self) -> bool:
        return self._event.is_set()

    def set_result(self, result: Any) -> None:
        self._result = result
        self._event.set()

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._event.is_set():
            yield from self._event.wait().__await__()
        return self._result


class _Background(asyncio.Task[None]):
    """A task that cannot be cancelled, so that ``asyncio.run`` waits for it when it ends."""

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002  the signature is asyncio's
        """Refuse: what it does has to be done, and ends by itself."""
        return False


def spawn(function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
    """Start a background task that nothing cancels; the function must not raise (workers.3)."""
    _spawn(_Background, function, *args)


def spawn_user_task(function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
    """Start a background task that runs code of the application; it ends when the loop does."""
    _spawn(asyncio.Task, function, *args)


def _spawn(
    kind: type[asyncio.Task[None]],
    function: Callable[[Unpack[Ts]], Awaitable[None]],
    *args: *Ts,
) -> None:
    trio = _trio()
    if trio is not None:
        trio.lowlevel.spawn_system_task(_run_for_trio, trio, partial(function, *args))
        return

    async def run() -> None:
        try:
            await function(*args)
        except BaseExceptionGroup as error:
            raise _ends_the_program(error, asyncio.CancelledError) or error from None

    task = kind(run(), loop=asyncio.get_running_loop())
    _background.setdefault(task.get_loop(), set()).add(task)
    task.add_done_callback(_forget_done)


async def _run_for_trio(trio: Any, function: Callable[[], Awaitable[None]]) -> None:
    """Run a background task whose KeyboardInterrupt or SystemExit leaves trio (workers.4)."""
    try:
        await function()
    except BaseException as error:
        end = _ends_the_program(error, trio.Cancelled)
        main = _main_task(trio)
        if isinstance(end, KeyboardInterrupt) and _interrupt_is_pending(trio):
            return  # the one that trio raises itself
        if end is None or main is None:
            raise
        _raise_in(trio, main, end)


def _ends_the_program(error: BaseException, cancelled: type[BaseException]) -> BaseException | None:
    """Find what no task may keep to itself in an exception, or in a group of several."""
    if isinstance(error, BaseExceptionGroup):
        found = (_ends_the_program(part, cancelled) for part in error.exceptions)
        return next((end for end in found if end is not None), None)
    return None if isinstance(error, (Exception, GeneratorExit, cancelled)) else error


def _main_task(trio: Any) -> Any:
    """Return the task that ``trio.run`` was given, unless it is over."""
    root = trio.lowlevel.current_root_task()
    tasks = root.child_nurseries[-1].child_tasks if root.child_nurseries else ()
    return next((task for task in tasks if hasattr(task, "_attempt_abort")), None)


def _raise_in(trio: Any, main: Any, error: BaseException) -> None:
    """Raise an exception in trio's main task where it waits next, as trio does with Ctrl-C."""
    if main is not _main_task(trio):
        return  # over by now, and whatever ended it ends the program
    if main._abort_func is None:  # noqa: SLF001  it has no public name
        call_later(RAISE_SECONDS, partial(_raise_in, trio, main, error))
        return

    def throw(*_: object, **__: object) -> NoReturn:
        raise error

    main._attempt_abort(throw)  # noqa: SLF001  likewise


def call_later(delay: float, function: Callable[[], object]) -> Callable[[], object]:
    """Call a function on the running loop after so many seconds; returns what cancels that."""
    trio = _trio()
    if trio is None:
        return asyncio.get_running_loop().call_later(delay, function).cancel
    scope = trio.CancelScope()

    async def wait() -> None:
        with scope:
            await trio.sleep(delay)
        if not scope.cancelled_caught:
            function()

    trio.lowlevel.spawn_system_task(wait)
    cancel: Callable[[], object] = scope.cancel
    return cancel


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


async def wait_out(done: Event) -> None:
    """Wait with a cancellation in hand, which is delivered afterwards, and whatever more come.

    What ends the program does not wait: a job may hang for good, on a dead server for instance.
    asyncio throws that out of its loop, trio into its main task only, so that other tasks look.

    Raises:
        KeyboardInterrupt: on trio, if Ctrl-C was pressed and no task can be told of it.
    """
    trio = _trio()
    with anyio.CancelScope(shield=True):
        while not done.is_set():
            try:
                if trio is None:
                    await done.wait()
                    continue
                with trio.move_on_after(INTERRUPT_SECONDS):
                    await done.wait()
            except anyio.get_cancelled_exc_class():
                continue  # asyncio's own cancel again
            if not done.is_set() and _interrupt_is_pending(trio):
                raise KeyboardInterrupt


def _interrupt_is_pending(trio: Any) -> bool:
    """Tell whether trio has a Ctrl-C that it could not raise: its main task was told already."""
    runner = trio.lowlevel.current_task()._runner  # noqa: SLF001  it has no public name
    return bool(runner.ki_pending)
