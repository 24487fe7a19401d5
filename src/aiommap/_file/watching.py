"""The verbs of a mapped file that speak of what others do to it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from .._arguments import flag
from .._core.file_core import FileCore
from .._core.file_state import FileState
from .._errors import AccessModeError, FlushError
from .._flush.background import BackgroundFlush
from .._flush.flusher import Flusher
from .._runtime.callbacks import Listeners, Subscription
from .._watch.changes import Change
from .._watch.subscriptions import DEFAULT_BUFFER, Changes, ErrorCallback, call_on_change
from .._watch.watched_path import TICK_NS
from .._watch.watcher import Watcher
from .reopening import Retired, Surroundings, bring_home
from .resizing import Resizer, change_size


class FileWatch:
    """The subscriptions of one mapped file, and the turns of those who move it."""

    __slots__ = ("_moving", "_subscribers", "_watcher", "core")

    core: FileCore

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        #: Those that have not ended; they leave by themselves, so that none passes by the others.
        self._subscribers: dict[Changes, None] = {}
        self._moving: anyio.Lock | None = None

    def subscribe(
        self, *, buffer: int, poll_interval: float | None, called_ns: int | None = None
    ) -> Changes:
        """Make a subscription, of changes since a moment that is given or else since it begins."""
        changes = self._watcher.subscribe(
            self.core.path,
            buffer=buffer,
            poll_interval=poll_interval,
            since=self._since(called_ns),
            on_end=self._forget,
        )
        self._subscribers[changes] = None
        return changes

    def _forget(self, changes: Changes) -> None:
        self._subscribers.pop(changes, None)

    def moving(self) -> anyio.Lock:
        """Return the lock for moving; made when first needed, as few of many files are moved."""
        if self._moving is None:
            self._moving = anyio.Lock()
        return self._moving

    def end(self) -> None:
        """End all subscriptions."""
        for changes in tuple(self._subscribers):
            changes.end()

    def _since(self, called_ns: int | None) -> Callable[[FileState | None], FileState | None]:
        core, done = self.core, self._done()

        def since(state: FileState | None) -> FileState | None:
            if self.core is not core:
                return state  # reopened while watching began
            opened = replace(core.state, size=core.mapping.file_end)
            if state is None or not state.is_same_file(opened):
                return opened
            if core.own.being_resized or self._done() != done:
                return state  # we are at it ourselves
            touched = called_ns is not None and state.ctime_ns >= called_ns
            return opened if touched or state.size != opened.size else state

        return since

    def _done(self) -> tuple[int, int, int]:
        mapping = self.core.mapping
        return mapping.sequence, self.core.own.size_changes, mapping.file_end


class WatchedVerbs:
    """What ``MappedFile`` does about changes by others."""

    __slots__ = ()

    if TYPE_CHECKING:
        _background: BackgroundFlush
        _core: FileCore
        _flusher: Flusher
        _hub: Surroundings
        _leave: Callable[[], Awaitable[None]]
        _resizer: Resizer
        _retired: Retired
        _watch: FileWatch

        def _assemble(self, core: FileCore, failed: Listeners[FlushError]) -> None: ...

    @property
    def orphaned(self) -> bool:
        """Whether the path was last seen to name another file, or none.

        Found out while this path is watched, and by ``reopen``. An orphan can be read, written
        and flushed for as long as the file has any name, as one that was renamed has. When it has
        none any more, flushing it raises ``FlushError``: what was written is gone at close.
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
            callback: a function of one argument, the change.
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
        called = time.time_ns()
        if not self._core.mapping.sequence:  # else what we stored just now would count, too
            called -= TICK_NS
        changes = self._watch.subscribe(
            buffer=buffer, poll_interval=poll_interval, called_ns=called
        )
        return call_on_change(changes, callback, on_error)

    async def refresh(self) -> None:
        """Take over the size that others gave to the file: ``size`` is then what the file has.

        A tail that others appended can be read and written from then on; up to ``capacity``
        nothing moves, and beyond it the file is mapped anew as ``resize`` does. If others cut the
        file off, ``size`` shrinks, and views of what is gone read zeros.

        Raises:
            AccessModeError: in mode "c", whose size is fixed.
            FlushError: if bytes were cut off that were written here and not flushed; it latches.
            UnsupportedError: if overlayfs has copied the file up, and the path leads elsewhere by
                now. Else it is mapped anew, as ``reopen`` would.
        Cancellation: one that has begun is waited out.
        Durability: none.
        """
        core = self._core
        core.check_usable()
        if core.mode == "c":
            raise AccessModeError("refresh", "c", "a private file has a fixed size: open it again")
        if not core.mapping.current:
            await self._map_copy()
            return
        await change_size(core, self._flusher, self._resizer.follow, ours=False)

    async def reopen(self, *, discard: bool = False) -> None:
        """Move to the file that the path names by now; if that is this one, only ``refresh``.

        A poisoned file is mapped anew and usable again, also if it is the same one; so is one that
        overlayfs has copied up.

        Verbs that have begun finish on the old file. Views, atomics and allocators that were made
        before belong to it: make them anew. Memory keeps showing the old file, and verbs of such a
        view raise ``anyio.ClosedResourceError``. Locks belong to the old file, too: who is inside a
        ``file_lock`` or an ``AsyncLock`` stays inside until the block ends, who waits for one or
        for a word gets ``anyio.ClosedResourceError``, and an ``AsyncLock`` has to be made anew.
        Subscriptions and ``on_error`` go on; statistics begin again, and so do advice and pinned
        pages.

        Args:
            discard: let go of what was written to the old file and is not durable, also if a
                flush of it failed before. Receipts of it never become durable.
        Raises:
            FlushError: if something was written to the old file that cannot be made durable, as
                it has no name left. Nothing is lost yet: the old file stays until ``discard=True``.
                Not raised under ``FlushPolicy.never()``, which lets such bytes go.
            AccessModeError: in mode "c" if there are private stores, which would be lost.
            MappingFaultError: the same if the file is poisoned, and was or could be stored to.
            FileNotFoundError, PermissionError, UnsupportedError: as ``aiommap.open``; the old
                file stays.
        Cancellation: before the move it leaves the old file; afterwards there is nothing to wait
            for.
        Durability: what was written before is durable, or discarded.
        """
        flag(discard, "discard")
        self._core.check_open()
        async with self._watch.moving():
            old = self._core
            old.check_open()
            new = await self._hub.open_again(old)
            if new is not None:
                await self._move_to(new, discard=discard)
                return
        old.note_path(old.identity)
        if old.mode != "c":
            await self.refresh()

    async def _map_copy(self) -> None:
        """Move to the copy that overlayfs has made of this same file."""
        async with self._watch.moving():
            old = self._core
            new = await self._hub.open_again(old)
            if new is not None and new.identity == old.identity:
                await self._move_to(new, discard=False)
            elif new is not None:
                await self._hub.release(new)
                old.check_mapped()

    async def _move_to(self, new: FileCore, *, discard: bool) -> None:
        old = self._core
        try:
            old.note_path(new.identity)
            if not discard:
                await bring_home(old, self._flusher)
            old.check_open()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._hub.release(new)
            raise
        # reopening.2: no waiting from here on.
        background, leave = self._background, self._leave
        self._hub.move(old, new)
        self._assemble(new, self._flusher.failed)
        # Now: the clock's thread must not end in between, as another one may not be had.
        background.stop()
        self._retired.add(old, leave)
