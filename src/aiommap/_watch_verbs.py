"""The verbs of a mapped file that speak of what others do to it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ._change import Change, FileState
from ._core import Core
from ._listeners import Subscription
from ._subscribers import DEFAULT_BUFFER, Changes, ErrorCallback, call_on_change
from ._watching import Watcher

#: The times of files come from a clock that may be behind by so much.
FILE_CLOCK_TICK_NS = 10_000_000


class FileWatch:
    """The subscriptions of one mapped file."""

    __slots__ = ("_core", "_subscribers", "_watcher")

    def __init__(self, watcher: Watcher, core: Core) -> None:
        self._watcher = watcher
        self._core = core
        self._subscribers: weakref.WeakSet[Changes] = weakref.WeakSet()

    def subscribe(
        self, *, buffer: int, poll_interval: float | None, called_ns: int | None = None
    ) -> Changes:
        """Make a subscription, of changes since a moment that is given or else since it begins."""
        changes = self._watcher.subscribe(
            self._core.path,
            buffer=buffer,
            poll_interval=poll_interval,
            since=self._since(called_ns),
        )
        self._subscribers.add(changes)
        return changes

    def end(self) -> None:
        """End all subscriptions."""
        for changes in self._subscribers:
            changes.end()

    def _since(self, called_ns: int | None) -> Callable[[FileState | None], FileState | None]:
        core, done = self._core, self._done()

        def since(state: FileState | None) -> FileState | None:
            opened = replace(core.state, size=core.mapping.size)
            if state is None or not state.is_same_file(opened):
                return opened
            if core.size_changes % 2 or self._done() != done:
                return state  # we are at it ourselves
            touched = called_ns is not None and state.ctime_ns >= called_ns
            return opened if touched or state.size != opened.size else state

        return since

    def _done(self) -> tuple[int, int]:
        return self._core.mapping.sequence, self._core.size_changes


class WatchedVerbs:
    """What ``MappedFile`` does about changes by others."""

    __slots__ = ()

    if TYPE_CHECKING:
        _core: Core
        _watch: FileWatch

    @property
    def orphaned(self) -> bool:
        """Whether the path was last seen to name another file, or none.

        Found out while this path is watched, and by ``reopen``. An orphan can be read; what is
        written to it reaches no path, and flushing it raises ``FlushError``.
        """
        return self._core.orphaned

    def watch(self, *, buffer: int = DEFAULT_BUFFER, poll_interval: float | None = None) -> Changes:
        """Watch the path for changes by others: ``async with f.watch() as changes: async for ...``.

        The block begins when the path is watched. What this hub itself writes, flushes or resizes
        is not reported. If the path already names another file than the one that is mapped, or
        that has another size, this is the first change. See docs/watching for the limits.

        Args:
            buffer: how many changes may wait to be fetched; beyond that they are merged.
            poll_interval: seconds between looks for what the kernel tells nobody, as stores
                through a mapping of another process; by default 0.25, or more for many files.
        Raises:
            ValueError: if an argument is not positive.
            anyio.ClosedResourceError: if the file is closed; when entered, if the hub is.
        Cancellation: ends the subscription; nothing else is affected.
        Concurrency: any number of subscriptions; each gets every change, and none waits for
            another.
        Source: inotify(7), stat(2).
        """
        self._core.check_usable()
        return self._watch.subscribe(buffer=buffer, poll_interval=poll_interval)

    def on_change(
        self,
        callback: Callable[[Change], object],
        *,
        on_error: ErrorCallback | None = None,
        buffer: int = DEFAULT_BUFFER,
        poll_interval: float | None = None,
    ) -> Subscription:
        """Have a function, sync or async, called on the loop with each change by others.

        One call ends before the next begins; meanwhile changes are buffered as for ``watch``.

        Args:
            on_error: called with an exception that the callback raised, and the change; or with
                None for a change if watching could not begin. By default it is logged.
            buffer, poll_interval: as for ``watch``.
        Returns:
            A subscription; its ``cancel`` ends it.
        Raises:
            ValueError, TypeError: for arguments that cannot be meant.
            anyio.ClosedResourceError: if the file is closed.
        """
        self._core.check_usable()
        called = time.time_ns() - FILE_CLOCK_TICK_NS
        changes = self._watch.subscribe(
            buffer=buffer, poll_interval=poll_interval, called_ns=called
        )
        return call_on_change(changes, callback, on_error)
