"""One mapping of a file with everything that works on it, made and given up as a whole.

A mapped file holds one ``OpenFile``, and ``reopen`` puts a new one in its place. The old one is
*retired*: verbs that had begun finish on it, then its mapping is given up. Views made before keep
their pages (I7). Closing and retiring run in the background, so that no cancellation stops them
half-way.

Invariants.
  1  ``reopen`` leaves no bytes behind that were written and are not known to be durable, unless the
      caller asked for that. A dirty orphan stays in its place (I4), and so do private stores.
  2  Between the last look for such bytes and the step to the new ``OpenFile`` no other task runs.
  3  A task that holds a lock of a retired file keeps it until it leaves the block. No task waits
      for such a lock (lifecycle.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass

import anyio
import anyio.lowlevel

from .._allocation.allocators import Allocators
from .._core.file_core import FileCore
from .._core.receipt import WriteReceipt
from .._errors import AccessModeError, FlushError, MappedFileError, ReceiptError
from .._flush.background import BackgroundFlush
from .._flush.flusher import Flusher
from .._flush.scheduler import FlushScheduler
from .._ipc.atomics import WordPolicy
from .._ipc.file_locks import FileLocks
from .._logs import FILES
from .._pages.pager import Pager
from .._runtime.blocks import close_after
from .._runtime.callbacks import Listeners
from .._runtime.event_loop import Event
from .._runtime.loops import spawn, wait_or_withdraw
from .._watch.watcher import Watcher
from .appending import Appender
from .reading import Reader
from .resizing import Resizer
from .searching import Searcher
from .watching import FileWatch
from .writing import Writer


@dataclass(frozen=True, slots=True)
class HubServices:
    """What a mapped file needs of its hub."""

    scheduler: FlushScheduler
    watcher: Watcher
    #: Gives up the mapping and the descriptors of a core.
    release: Callable[[FileCore], Awaitable[None]]
    #: Opens the path again; None if it still names the file of that core.
    open_again: Callable[[FileCore], Awaitable[FileCore | None]]
    #: Notes, on the loop, that a file moved from one core to another.
    move: Callable[[FileCore, FileCore], None]


class OpenFile:
    """One mapping of a file with everything that works on it; on the loop thread.

    Args:
        core: the mapping and its state.
        hub: the services of the hub.
        failed: the callbacks of ``on_error``; they outlive this object.
        watched: the subscriptions of the path; they outlive this object unless it is closed.
        earlier: retired files that are not given up yet; closing waits for them.
    """

    __slots__ = (
        "_done",
        "_earlier",
        "_error",
        "_gone",
        "_release",
        "_told",
        "allocators",
        "appender",
        "background",
        "core",
        "failed",
        "flusher",
        "locks",
        "pager",
        "reader",
        "resizer",
        "searcher",
        "watched",
        "words",
        "writer",
    )

    def __init__(
        self,
        core: FileCore,
        hub: HubServices,
        failed: Listeners[FlushError],
        watched: FileWatch,
        earlier: Sequence[OpenFile] = (),
    ) -> None:
        self.core: FileCore = core
        self.failed: Listeners[FlushError] = failed
        self.watched: FileWatch = watched
        self.flusher: Flusher = Flusher(core, failed)
        self.background: BackgroundFlush = BackgroundFlush(core, self.flusher, hub.scheduler)
        self.reader: Reader = Reader(core)
        self.searcher: Searcher = Searcher(core, self.reader)
        self.writer: Writer = Writer(core, self.flusher, self.background)
        self.pager: Pager = Pager(core)
        self.resizer: Resizer = Resizer(core, self.pager)
        self.appender: Appender = Appender(
            core, self.flusher, self.background, self.writer, self.resizer
        )
        self.words: WordPolicy = WordPolicy(core, self.writer.storing, self.background.plan)
        self.locks: FileLocks = FileLocks(core)
        self.allocators: Allocators = Allocators(core)
        core.mapping.attach(self.flusher, WriteReceipt)
        self._release = hub.release
        self._earlier = list(earlier)
        #: Set once this retired file was given up.
        self._gone: anyio.Event | None = None
        #: Set once closing has ended.
        self._done: Event | None = None
        #: The error of closing, and whether ``close`` has raised it.
        self._error: Exception | None = None
        self._told = False

    async def flush_receipt(self, receipt: WriteReceipt) -> None:
        """Make the bytes of a receipt of this file durable."""
        if receipt._owner is not self.flusher:  # noqa: SLF001  the two are one mechanism
            raise ReceiptError(
                f"{receipt!r} is not a receipt of {self.core.path}: ask its own file"
            )
        if self.core.flushable:
            await self.flusher.flush_pages_of(receipt)

    async def change_size(self, act: Callable[[], bool], *, ours: bool = True) -> None:
        """Change the size after the writes submitted so far.

        Args:
            act: changes the size, in a worker. It returns False, with nothing done, if the change
                would hide that others cut off stores; this call then fails as a flush does.
            ours: whether we change the file; False if we take over what somebody else did.
        """
        lost = False

        def change() -> None:
            nonlocal lost
            lost = not act()

        with self.core.lifecycle.activity():
            await self.writer.wait_stored()
            await self.flusher.change(change, ours=ours)
            if lost:
                await self.flusher.flush_everything()  # which finds the loss, and latches (I5)

    # Reopening.

    async def flush_before_reopen(self) -> None:
        """Flush until nothing is left to lose (open_file.1).

        It does not give way between its last look and its return (open_file.2).
        """
        core, flusher = self.core, self.flusher
        if not core.shared_writable:
            await self._check_private()
            return
        core.check_flushed()
        while True:
            await self.writer.wait_stored()
            await flusher.wait_served()
            self.writer.store_gathered()
            # As at close: a policy that does not flush at close gives its stores up.
            dirty = core.route.policy.flush_at_close and flusher.has_work()
            if not dirty and not core.own.queued_bytes and not flusher.busy:
                return
            if dirty:
                await flusher.flush_everything()
            await anyio.lowlevel.checkpoint()  # as in _check_private

    async def _check_private(self) -> None:
        """Raise if a reopen would lose stores of mode "c", which no flush can make durable."""
        core = self.core
        while core.own.queued_bytes:
            await self.writer.wait_stored()
            await anyio.lowlevel.checkpoint()  # a writer that wakes after us still counts its bytes
        if core.mapping.dirty_bytes():
            remedy = "its private stores would be lost: copy them, then pass discard=True"
            raise AccessModeError("reopen", core.mode, remedy)

    def replace(self, core: FileCore, hub: HubServices) -> OpenFile:
        """Make the ``OpenFile`` that takes the place of this one, and retire this; in one step."""
        earlier = [old for old in (*self._earlier, self) if not old.is_gone]
        self._earlier = []
        new = OpenFile(core, hub, self.failed, self.watched, earlier)
        # Only now that the new one keeps the clock: its thread must not end in between, because
        # the system might refuse another one.
        self.background.stop()
        self._gone = anyio.Event()
        self.core.lifecycle.retire()
        spawn(self._retire)
        return new

    async def _retire(self) -> None:
        """Give this file up once no verb uses it, and its locks when the last task leaves them."""
        core = self.core
        assert self._gone is not None
        try:
            # The lifecycle does not count inline verbs that give way to the loop; they return
            # within a turn.
            for _ in range(2):
                await self._wait_idle()
                await anyio.lowlevel.checkpoint()
            await self._wait_idle()
            core.begin_closing()
            self.allocators.close()
            await self._trim_retired()
            await self.locks.leave()
            await self._release(core)
            core.lifecycle.end_closing()
        except Exception as error:
            # close(2) failed; a file that was given up has nothing left to lose.
            FILES.debug("%s was not closed cleanly after it was reopened: %s", core.path, error)
        finally:
            self._gone.set()

    async def _trim_retired(self) -> None:
        """Cut off what growth added and nobody used, as closing does.

        The file may live on under another name. A file that failed or is poisoned is left as it is.
        """
        core = self.core
        await self.flusher.quiesce()
        if core.shared_writable and core.sound and self.resizer.wants_trim:
            with suppress(OSError):  # nobody waits for it, and the file has all that was written
                await self.flusher.change(self.resizer.trim)

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left of this retired file, not even a lock."""
        return self._gone is not None and self._gone.is_set() and not self.locks.held

    async def wait_gone(self) -> None:
        """Wait until this retired file was given up."""
        assert self._gone is not None
        await wait_or_withdraw(self._gone, lambda: False)

    async def wait_earlier(self) -> None:
        """Wait until all earlier files are given up; then end their locks, whoever holds them."""
        for old in list(self._earlier):
            await old.wait_gone()
        for old in self._earlier:
            await old.locks.aclose()

    # Closing.

    def start_closing(self) -> None:
        """Begin to close, unless that was done before."""
        core = self.core
        if core.mapping.forked:
            core.begin_closing()
            core.mapping.close()  # the parent's file: flush nothing, and enter no thread (I10)
            self._done = None
            return
        if core.lifecycle.closing:
            return
        core.workers.check_loop()
        done = core.workers.event()
        spawn(self._close, done)  # first: at the end of trio's run it fails, before anything began
        self.writer.store_gathered()
        core.begin_closing()
        self.background.stop()
        self._done = done

    def start_closing_unasked(self) -> None:
        """Begin to close a file for which nobody waits; called where no error can be reported.

        In a loop that takes no more tasks this does nothing, and the garbage collector gives the
        mapping up.
        """
        with suppress(RuntimeError):
            self.start_closing()

    @property
    def is_closing(self) -> bool:
        """Whether closing has begun and not ended."""
        return self._done is not None and not self._done.is_set()

    async def close(self) -> None:
        """Close, or wait for the call that closes; every call raises the failure (I15)."""
        self.start_closing()
        if self._done is None:
            return
        await wait_or_withdraw(self._done, lambda: False)
        if self._error is not None:
            self._told = True
            # A copy: the traceback of a raised error refers to frames that refer to this object.
            raise copy(self._error) from self._error.__cause__

    async def close_after(self, error: BaseException | None) -> None:
        """Close at the end of a block, without replacing an exception that is under way.

        A failure that ``close`` raised inside the block is not raised again here.
        """
        if not self._told:
            await close_after(error, self.close, self.core.path, (MappedFileError, OSError))

    async def _close(self, done: Event) -> None:
        core = self.core
        try:
            await self._wait_idle()
            await self.flusher.quiesce()
            if not core.undo:
                if core.shared_writable:
                    await self._flush_at_close()
                core.check_whole()
        except Exception as error:
            self._note(error)
        finally:
            try:
                await self._give_up()
            except Exception as error:
                self._note(error)
            finally:
                done.set()

    async def _wait_idle(self) -> None:
        """Wait until no verb is under way, and no request that a verb left in the commit queue."""
        await self.core.lifecycle.wait_idle()
        await self.flusher.wait_served()

    async def _flush_at_close(self) -> None:
        self.core.check_flushed()
        if self.resizer.wants_trim:
            await self.flusher.change(self.resizer.trim)
        if self.core.flushable and self._flushes_at_close():
            await self.flusher.flush_everything()

    def _flushes_at_close(self) -> bool:
        return self.core.route.policy.flush_at_close and self.flusher.has_work()

    async def _give_up(self) -> None:
        """Release everything, whoever still uses it."""
        self.watched.end()
        self.allocators.close()
        await self.locks.aclose()
        await self.wait_earlier()
        await self._release(self.core)
        self.core.lifecycle.end_closing()

    def _note(self, error: Exception) -> None:
        if self._error is None:
            self._error = error.with_traceback(None)
