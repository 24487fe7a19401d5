"""Closing one file: drain, flush, give the mapping up; whatever happens to the caller meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import copy

from .._core.file_core import FileCore
from .._errors import MappedFileError
from .._flush.background import BackgroundFlush
from .._flush.flusher import Flusher
from .._runtime.event_loop import Event
from .._runtime.loops import spawn, wait_or_withdraw
from .resizing import Resizer


class Closer:
    """Closes one file once. It runs in the background, so no cancellation can stop it half-way."""

    __slots__ = (
        "_background",
        "_core",
        "_done",
        "_error",
        "_flusher",
        "_release",
        "_resizer",
        "_told",
    )

    def __init__(
        self,
        core: FileCore,
        flusher: Flusher,
        background: BackgroundFlush,
        resizer: Resizer,
        release: Callable[[FileCore], Awaitable[None]],
    ) -> None:
        self._core = core
        self._flusher = flusher
        self._background = background
        self._resizer = resizer
        self._release = release
        self._done: Event | None = None
        self._error: Exception | None = None
        self._told = False

    def start(self) -> None:
        """Begin to close, unless that was done before."""
        core = self._core
        if core.mapping.forked:
            core.begin_closing()
            core.mapping.close()  # the parent's file: nothing is flushed, no thread entered (I10)
            self._done = None
            return
        if core.lifecycle.closing:
            return
        core.workers.check_loop()
        done = core.workers.event()
        spawn(self._run, done)  # first: it fails at the end of trio's run, and nothing has begun
        core.begin_closing()
        self._background.stop()
        self._done = done

    def start_unasked(self) -> None:
        """Begin to close what nobody waits for; in a loop that takes no more tasks, do nothing.

        The mapping is then given up as garbage. It is called where nobody could be told.
        """
        with suppress(RuntimeError):
            self.start()

    @property
    def under_way(self) -> bool:
        """Whether closing was begun, and is not over."""
        return self._done is not None and not self._done.is_set()

    async def aclose(self) -> None:
        """Close, or wait for the call that does; whoever asks is told of a failure (I15)."""
        self.start()
        if self._done is None:
            return
        await wait_or_withdraw(self._done, lambda: False)
        if self._error is not None:
            self._told = True
            # A copy: the traceback of what is raised refers to frames that refer to this.
            raise copy(self._error) from self._error.__cause__

    async def leave(self, error: BaseException | None) -> None:
        """Close at the end of a block; an exception that is under way is not replaced.

        Nor is told again what ``aclose`` raised inside of the block, to whoever went on from there.
        """
        if self._told:
            return
        try:
            await self.aclose()
        except (MappedFileError, OSError) as failure:
            if error is None:
                raise
            error.add_note(f"closing {self._core.path} failed, too: {failure}")

    async def _run(self, done: Event) -> None:
        try:
            await self._core.lifecycle.wait_idle()
            await self._core.lanes.wait_served()
            await self._flusher.quiesce()
            if self._core.shared_writable and not self._core.undo:
                await self._flush()
            if not self._core.undo:
                self._core.check_whole()
        except Exception as error:
            self._note(error)
        finally:
            try:
                await self._release(self._core)
            except Exception as error:
                self._note(error)
            finally:
                done.set()

    def _note(self, error: Exception) -> None:
        if self._error is None:
            self._error = error.with_traceback(None)

    async def give_up(self) -> None:
        """Leave a file that was reopened as closing would: without what growth made and none used.

        It may live on under another name. One that cannot be believed is left as it is.
        """
        core = self._core
        await self._flusher.quiesce()
        whole = core.unsynced.failure is None and core.faults.damage() is None
        if core.shared_writable and whole and self._resizer.wants_trim:
            with suppress(OSError):  # nobody waits, and what was written is in it
                await self._flusher.change(self._resizer.trim)

    async def _flush(self) -> None:
        self._core.check_flushed()
        if self._resizer.wants_trim:
            await self._flusher.change(self._resizer.trim)
        if self._core.route.policy.flush_at_close and self._flusher.has_work():
            await self._flusher.flush_everything()
