"""The event loop of trio; this module never imports trio, and is used only while trio runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVarTuple, Unpack

from .event_loop import Event, EventLoop, Waiter, find_program_end

Ts = TypeVarTuple("Ts")

#: How soon to try again to raise an exception in a task that could not take it.
RAISE_SECONDS = 0.001
#: How soon a cancelled task that waits for a job learns of a Ctrl-C that trio cannot raise.
INTERRUPT_SECONDS = 0.1


class TrioLoop(EventLoop):
    """An ``EventLoop`` over the run of trio in this thread."""

    __slots__ = (
        "_trio",
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

    def __init__(self, trio: Any) -> None:
        self._trio = trio
        token = trio.lowlevel.current_trio_token()
        self.token: object = token
        self.find_token: Callable[[], object] = trio.lowlevel.current_trio_token
        self.checkpoint: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.pause: Awaitable[None] | None = None
        self.call_soon: Callable[[Callable[[], object]], object] = token.run_sync_soon
        self.call_from_thread: Callable[[Callable[[], object]], object] = token.run_sync_soon
        self.event: Callable[[], Event] = trio.Event
        self.future_loop: object | None = None
        self.waiter: Callable[[], Waiter[Any]] = lambda: _TrioWaiter(trio.Event())

    @property
    def ended(self) -> bool:
        """Always False: a run of trio ends only after its tasks."""
        return False

    def call_later(self, delay: float, function: Callable[[], object]) -> Callable[[], object]:
        """Call a function after a delay in seconds; return a function that cancels that."""
        scope = self._trio.CancelScope()

        async def wait() -> None:
            with scope:
                await self._trio.sleep(delay)
            if not scope.cancelled_caught:
                function()

        self._trio.lowlevel.spawn_system_task(wait)
        cancel: Callable[[], object] = scope.cancel
        return cancel

    def add_reader(
        self, fd: int, function: Callable[[], object], may_end: Callable[[], bool]
    ) -> Callable[[], object]:
        """Call a function whenever a descriptor is readable; return a function that ends that."""
        lowlevel = self._trio.lowlevel
        watched = [fd]

        async def watch() -> None:
            with suppress(self._trio.ClosedResourceError):
                try:
                    while watched:
                        await lowlevel.wait_readable(fd)
                        function()
                finally:  # the end of trio cancels it
                    with self._trio.CancelScope(shield=True):
                        while watched and not may_end():
                            # With a limit: another call of the function may have taken the rest.
                            with self._trio.move_on_after(INTERRUPT_SECONDS):
                                await lowlevel.wait_readable(fd)
                            function()

        def end() -> None:
            watched.clear()
            with suppress(RuntimeError):  # trio has ended, and watches nothing
                lowlevel.notify_closing(fd)

        lowlevel.spawn_system_task(watch)
        return end

    def spawn(self, function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
        """Start a background task. The end of trio cancels it: it shields what must be done."""
        self._trio.lowlevel.spawn_system_task(self._run, partial(function, *args))

    #: Code of the application has the same kind of task, and ends at its next checkpoint.
    spawn_user_task = spawn

    async def _run(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a task whose KeyboardInterrupt or SystemExit leaves ``trio.run`` (workers.4)."""
        try:
            await function()
        except BaseException as error:
            end = find_program_end(error, self._trio.Cancelled)
            main = self._main_task()
            if end is None or main is None:
                raise
            self._raise_in(main, end)

    def _main_task(self) -> Any:
        """Return the task that ``trio.run`` was given, unless it is over."""
        root = self._trio.lowlevel.current_root_task()
        tasks = root.child_nurseries[-1].child_tasks if root.child_nurseries else ()
        return next((task for task in tasks if hasattr(task, "_attempt_abort")), None)

    def _raise_in(self, main: Any, error: BaseException) -> None:
        """Raise an exception in the main task where it waits next, as trio does with Ctrl-C."""
        if main is not self._main_task():
            return  # the main task has ended, and with it the program ends
        if main._abort_func is None:  # noqa: SLF001  it has no public name
            self.call_later(RAISE_SECONDS, partial(self._raise_in, main, error))
            return

        def throw(*_: object, **__: object) -> NoReturn:
            raise error

        main._attempt_abort(throw)  # noqa: SLF001  likewise

    async def wait_out(self, done: Event) -> None:
        """Wait although the task is cancelled.

        trio raises Ctrl-C only in its main task. If the main task is already cancelled and waits
        here, trio raises the next Ctrl-C nowhere. So this wait looks for it.
        """
        with self._trio.CancelScope(shield=True):
            while not done.is_set():
                with self._trio.move_on_after(INTERRUPT_SECONDS):
                    await done.wait()
                if not done.is_set() and self._interrupt_is_pending():
                    raise KeyboardInterrupt

    def _interrupt_is_pending(self) -> bool:
        """Tell whether trio has a Ctrl-C that it could not raise in its main task."""
        runner = self._trio.lowlevel.current_task()._runner  # noqa: SLF001  it has no public name
        return bool(runner.ki_pending)


class _TrioWaiter:
    """The part of a future that a ``Waiter`` needs."""

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
