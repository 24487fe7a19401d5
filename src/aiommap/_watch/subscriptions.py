"""Subscriptions to changes: an iterator with a bounded buffer, and callbacks fed from one.

Everything here runs on the loop thread. Pushing a change never waits and never fails. A slow
subscriber delays no other: its own buffer merges the changes that it does not fetch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self

import anyio
import anyio.lowlevel

from .._arguments import at_least, seconds
from .._core.file_state import FileState
from .._logs import CALLBACKS
from .._runtime.callbacks import Subscription, call_user
from .._runtime.event_loop import Event, Waiter
from .._runtime.loops import spawn_user_task
from .._runtime.workers import Workers
from .changes import Change, ChangeBuffer, classify

#: How many changes wait for a slow subscriber before they are merged.
DEFAULT_BUFFER = 64


#: Takes the state of a path when watching began, and returns the state to compare it with.
Since = Callable[[FileState | None], FileState | None]


def from_now(state: FileState | None) -> FileState | None:
    """Compare with the present state: changes before it do not count."""
    return state


class Source(Protocol):
    """The watcher, from which subscriptions get their changes."""

    @property
    def workers(self) -> Workers: ...
    def begin(self, changes: Changes, path: str, poll_interval: float | None) -> None: ...
    def forget(self, changes: Changes, path: str) -> None: ...
    def check_process(self, path: str) -> None: ...


class Changes:
    """External changes as they come: ``async with f.watch() as changes: async for c in changes``.

    The iteration ends when the file or the hub is closed, after the changes that were found before.
    A slow subscriber gets changes merged (see ``Change.merged``), and delays no other.

    One task at a time may wait for a change; a second one gets ``anyio.BusyResourceError``.
    """

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_buffer",
        "_error",
        "_is_ended",
        "_on_change",
        "_on_end",
        "_path",
        "_poll_interval",
        "_since",
        "_source",
        "_started",
    )

    def __init__(
        self,
        source: Source,
        path: str,
        *,
        buffer: int,
        poll_interval: float | None,
        since: Since,
        on_change: Callable[[Change], object] | None = None,
        on_end: Callable[[Changes], object] | None = None,
    ) -> None:
        limit = at_least(1, buffer, "buffer", "it has to hold at least 1 change")
        if poll_interval is not None and seconds(poll_interval, "poll_interval") <= 0:
            raise ValueError(f"poll_interval is {poll_interval}: give a positive number of seconds")
        self._source = source
        self._path = path
        self._poll_interval = poll_interval
        self._since = since
        #: Gets each change at once, instead of the buffer; must not raise.
        self._on_change = on_change
        #: Called once, when the subscription ends; then dropped, as it may refer to this object.
        self._on_end = on_end
        self._is_ended = False
        self._buffer = ChangeBuffer(limit)
        self._arrived: Waiter[None] | None = None
        self._started: Event | None = None
        self._error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether no more changes will be found; some may still wait to be fetched."""
        return self._is_ended

    def close(self) -> None:
        """Stop watching: the iteration ends, and changes that were not fetched are dropped."""
        self.end()
        while self._buffer:
            self._buffer.pop()

    def end(self) -> None:
        """Stop watching: the iteration ends after the changes that were found before."""
        if not self._is_ended:
            self._source.forget(self, self._path)
        self._finish()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Change]:
        return self._fetch()

    async def _begin(self) -> None:
        """Subscribe, and wait until the source calls ``_start``."""
        if self._started is not None:
            raise RuntimeError("a subscription is entered once: call watch() again for another")
        self._source.check_process(self._path)
        self._started = self._source.workers.event()
        if self._is_ended:  # a callback that was cancelled before its task began
            return
        self._source.begin(self, self._path, self._poll_interval)
        await self._started.wait()
        if self._error is not None:
            raise self._error

    async def _fetch(self) -> Change:
        """Take the oldest change out once there is one; end the iteration if none will come.

        Thousands of subscribers may wake in one turn of the loop. Each allocates one coroutine and
        one future, because the garbage collector would scan anything more, at a microsecond apiece.
        """
        if self._started is None:
            raise RuntimeError("nothing is watched yet: use async with on what watch() returns")
        self._source.check_process(self._path)
        if self._buffer:
            await anyio.lowlevel.checkpoint()
        while not self._buffer:
            if self._is_ended:
                raise StopAsyncIteration
            if self._arrived is not None:
                raise anyio.BusyResourceError(
                    f"fetching changes of {self._path} (call watch() once for each task) from"
                )
            self._arrived = self._source.workers.waiter()
            try:
                await self._arrived
            finally:
                self._arrived = None
        return self._buffer.pop()

    # The source calls these.

    def _push(self, change: Change) -> None:
        """Buffer a change, and wake the task that waits for one."""
        if self._is_ended:
            return
        if self._on_change is not None:
            self._on_change(change)
            return
        self._buffer.push(change)
        self._wake()

    def _start(self, state: FileState | None) -> None:
        """Begin with a state: the source pushes every later change."""
        old = self._since(state)
        kind = classify(old, state)
        if kind is not None:
            self._push(Change(kind, self._path, old, state, 0, "start", time.time_ns()))
        self._set_started()

    def _fail(self, error: BaseException) -> None:
        """Have ``_begin`` raise an error."""
        self._error = error
        self._set_started()

    def _finish(self) -> None:
        """End the iteration after the changes in the buffer."""
        self._is_ended = True
        self._wake()
        self._set_started()

    def _set_started(self) -> None:
        if self._started is not None:
            self._started.set()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


ChangeCallback = Callable[[Change], object]
ErrorCallback = Callable[[Exception, Change | None], object]


def call_on_change(
    changes: Changes, callback: ChangeCallback, on_error: ErrorCallback | None
) -> Subscription:
    """Call a function, sync or async, with each change; one call ends before the next begins."""
    for function in (callback,) if on_error is None else (callback, on_error):
        if not callable(function):
            raise TypeError(f"asked to call {function!r}: pass a function")
    spawn_user_task(_call_with_each, changes, callback, on_error)
    return Subscription(lambda _: changes.close())


async def _call_with_each(
    changes: Changes, callback: ChangeCallback, on_error: ErrorCallback | None
) -> None:
    try:
        async with changes:
            async for change in changes:
                try:
                    await call_user(callback, change)
                except Exception as error:
                    await _report(error, change, callback, on_error)
    except anyio.ClosedResourceError:
        return
    except Exception as error:
        await _report(error, None, callback, on_error)


async def _report(
    error: Exception,
    change: Change | None,
    callback: ChangeCallback,
    on_error: ErrorCallback | None,
) -> None:
    if on_error is not None:
        try:
            await call_user(on_error, error, change)
        except Exception:
            CALLBACKS.exception("%r failed when it was told of %r", on_error, error)
        return
    told = "watching could not begin" if change is None else f"it was told of {change!r}"
    CALLBACKS.error("%r failed: %s", callback, told, exc_info=error)
