"""The subscriptions of one mapped file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .._core.file_core import FileCore
from .._core.file_state import FileState
from .._watch.subscriptions import Changes
from .._watch.watcher import Watcher


class FileWatch:
    """The subscriptions of one mapped file; they go on when it is reopened."""

    __slots__ = ("_subscribers", "_watcher")

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        #: The subscriptions that have not ended, in order; each removes itself when it ends.
        self._subscribers: dict[Changes, None] = {}

    def subscribe(
        self,
        core: FileCore,
        *,
        buffer: int,
        poll_interval: float | None,
        called_ns: int | None = None,
    ) -> Changes:
        """Make a subscription to changes since ``called_ns``, or else since the block begins."""
        changes = self._watcher.subscribe(
            core.path,
            buffer=buffer,
            poll_interval=poll_interval,
            since=_since(core, called_ns),
            on_end=self._forget,
        )
        self._subscribers[changes] = None
        return changes

    def _forget(self, changes: Changes) -> None:
        self._subscribers.pop(changes, None)

    def end(self) -> None:
        """End all subscriptions."""
        for changes in tuple(self._subscribers):
            changes.end()


def _since(core: FileCore, called_ns: int | None) -> Callable[[FileState | None], FileState | None]:
    """Make the function that turns the state found at the beginning into the one to compare with.

    A state other than the one found makes the difference the first change.
    """
    done = _done(core)

    def since(state: FileState | None) -> FileState | None:
        if core.lifecycle.retired:
            return state  # reopened while watching began
        opened = replace(core.state, size=core.mapping.file_end)
        if state is None or not state.is_same_file(opened):
            return opened
        if core.own.being_resized or _done(core) != done:
            return state  # the difference is our own doing
        touched = called_ns is not None and state.ctime_ns >= called_ns
        return opened if touched or state.size != opened.size else state

    return since


def _done(core: FileCore) -> tuple[int, int, int]:
    """Count what we have done to the file ourselves."""
    return core.mapping.sequence, core.own.size_changes, core.mapping.file_end
