"""Subscribers of changes: an iterator with a bounded buffer, and callbacks fed from one.

Everything here runs on the loop thread. Whoever pushes a change never waits and never fails; what
a subscriber does with it, and how long that takes, is between it and its own buffer.
"""

from __future__ import annotations

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
from .changes import Change, ChangeBuffer

#: How many changes a subscriber may be behind before they are merged.
DEFAULT_BUFFER = 64


#: Given the state a path had when watching began, says which state to compare that with.
Since = Callable[[FileState | None], FileState | None]


def from_now(state: FileState | None) -> FileState | None:
    """Compare with what is found: whatever happened before does not count."""
    return state


class Source(Protocol):
    """Where subscribers get their changes from."""

    @property
    def workers(self) -> Workers: ...
    def begin(self, subscriber: Subscriber) -> None: ...
    def forget(self, subscriber: Subscriber) -> None: ...
    def check_process(self, path: str) -> None: ...


class Subscriber:
    """One subscription, as the watcher sees it.

    Args:
        path: absolute; need not exist.
        buffer: how many changes may wait to be fetched before they are merged.
        poll_interval: seconds between looks that nothing asked for; None for the default.
        since: says what counts as having happened already when watching began.
    """

    __slots__ = (
        "_arrived",
        "_buffer",
        "_error",
        "_started",
        "ended",
        "path",
        "poll_interval",
        "since",
    )

    def __init__(
        self, path: str, *, buffer: int, poll_interval: float | None, since: Since
    ) -> None:
        limit = at_least(1, buffer, "buffer", "it has to hold at least 1 change")
        if poll_interval is not None and seconds(poll_interval, "poll_interval") <= 0:
            raise ValueError(f"poll_interval is {poll_interval}: give a positive number of seconds")
        self.path: str = path
        self.poll_interval: float | None = poll_interval
        self.since: Since = since
        self.ended: bool = False
        self._buffer = ChangeBuffer(limit)
        self._arrived: Waiter[None] | None = None
        self._started: Event | None = None
        self._error: BaseException | None = None

    def push(self, change: Change) -> None:
        """Hand a change over."""
        if not self.ended:
            self._buffer.push(change)
            self._wake()

    def start(self, error: BaseException | None = None) -> None:
        """Say that everything from now on will be pushed, or why not."""
        self._error = error
        if self._started is not None:
            self._started.set()

    def end(self) -> None:
        """Say that there will be no more."""
        self.ended = True
        self._wake()
        self.start(self._error)

    async def wait_started(self, source: Source) -> None:
        """Begin, and wait for ``start``."""
        if self._started is not None:
            raise RuntimeError("a subscription is entered once: call watch() again for another")
        source.check_process(self.path)
        self._started = source.workers.event()
        source.begin(self)
        await self._started.wait()
        if self._error is not None:
            raise self._error

    async def fetch(self, source: Source) -> Change:
        """Take the oldest change out, once there is one; ends the iteration if there will be none.

        A thousand subscribers may wait here, and wake in the same turn of the loop: what each of
        them makes anew, the garbage collector goes through in between, at a microsecond apiece.
        So it is a single coroutine and a single future.
        """
        if self._started is None:
            raise RuntimeError("nothing is watched yet: use async with on what watch() returns")
        source.check_process(self.path)
        if self._buffer:
            await anyio.lowlevel.checkpoint()
        while not self._buffer:
            if self.ended:
                raise StopAsyncIteration
            if self._arrived is not None:
                raise anyio.BusyResourceError(
                    f"fetching changes of {self.path} (call watch() once for each task) from"
                )
            self._arrived = source.workers.waiter()
            try:
                await self._arrived
            finally:
                self._arrived = None
        return self._buffer.pop()

    def drop(self) -> None:
        """Forget what was not fetched."""
        while self._buffer:
            self._buffer.pop()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


class Changes:
    """External changes as they come: ``async with f.watch() as changes: async for c in changes``.

    The iteration ends when the file or the hub is closed; what was found before that is still
    handed out. A subscriber that is slow finds changes merged, see ``Change.merged``, and delays
    nobody else.

    It is for one task: a second one that waits for a change meanwhile gets BusyResourceError.
    """

    __slots__ = ("__weakref__", "_ended", "_source", "_subscriber")

    def __init__(
        self,
        source: Source,
        subscriber: Subscriber,
        ended: Callable[[Changes], object] | None = None,
    ) -> None:
        self._source = source
        self._subscriber = subscriber
        #: Told once that it ended; dropped then, as whoever is told may refer to it.
        self._ended = ended

    @property
    def ended(self) -> bool:
        """Whether nothing more will be found; what was found may still wait to be fetched."""
        return self._subscriber.ended

    def close(self) -> None:
        """Watch no longer: the iteration ends, and what was not fetched yet is dropped."""
        self.end()
        self._subscriber.drop()

    def end(self) -> None:
        """Watch no longer: the iteration ends after what was found before."""
        if not self._subscriber.ended:
            self._source.forget(self._subscriber)
        self._subscriber.end()
        told, self._ended = self._ended, None
        if told is not None:
            told(self)

    async def __aenter__(self) -> Self:
        try:
            await self._subscriber.wait_started(self._source)
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
        return self._subscriber.fetch(self._source)


ChangeCallback = Callable[[Change], object]
ErrorCallback = Callable[[Exception, Change | None], object]


def call_on_change(
    changes: Changes, callback: ChangeCallback, on_error: ErrorCallback | None
) -> Subscription:
    """Call a function, sync or async, with each change; a call begins after the last one ended."""
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
