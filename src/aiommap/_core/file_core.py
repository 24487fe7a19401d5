"""What all verbs of one mapped file share: its mapping, its state, and the checks before a verb.

Invariants.
  1  No verb passes ``check_usable`` once ``closing`` is set; what passed before is counted in
      ``_active``, or waits in the commit queue, until it is done, and closing waits for both.
  2  ``failure`` is set once and never cleared: the first failed flush latches (I5).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple, Unpack

import anyio

from .._errors import (
    AccessModeError,
    FlushError,
    ForkedError,
    MappingFaultError,
    UnsupportedError,
    name_file,
)
from .._flush_policy import FlushPolicy
from .._native import Mapping, Receipt
from .._ranges import RangeSet
from .._runtime.loops import Event
from .._runtime.threads import Mutex
from .._runtime.workers import Limiter, Workers
from .disk import Disk, Store
from .file_state import FileState, Identity
from .opening import Opened
from .options import OpenOptions
from .own_activity import OwnActivity
from .paths import NewName

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Errors that say there is no room: on the disk, for a user, or for the size of files of a process.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Lanes:
    """What others ask of the two queues in which the writes of one file wait.

    ``Writer`` has the store queue; ``Flusher`` has the commit queue, in which writes that have to
    be durable ride. Both are built on the core, and enter here how they are asked.
    """

    __slots__ = ("draining", "durable_writes", "storing", "wait_served", "wait_stored")

    def __init__(self) -> None:
        #: Writes are requests of the commit queue, unless others still wait in the store queue.
        self.durable_writes: bool = False
        #: Writes of a policy that was replaced may still wait in the commit queue.
        self.draining: bool = False
        #: Whether a write to a part of [offset, end) is still under way.
        self.storing: Callable[[int, int], bool] = _nothing_stored
        #: Waits until the writes submitted so far have been applied.
        self.wait_stored: Callable[[], Awaitable[None]] = _nothing_to_await
        #: Waits until what was submitted to the commit queue so far has been served.
        self.wait_served: Callable[[], Awaitable[None]] = _nothing_to_await


class FileCore:
    """The shared state of one mapped file; touched on the loop thread unless it says otherwise."""

    __slots__ = (
        "_active",
        "_idle",
        "at_close",
        "changes",
        "closing",
        "created",
        "dirtied",
        "disk",
        "failure",
        "huge_page_bytes",
        "identity",
        "lanes",
        "made",
        "mapping",
        "mode",
        "named",
        "offloaded_reads",
        "options",
        "orphaned",
        "own",
        "path",
        "policy",
        "prepared",
        "resized",
        "retired",
        "size_changed",
        "state",
        "undo",
        "workers",
    )

    def __init__(self, opened: Opened, options: OpenOptions, workers: Workers) -> None:
        self.options: OpenOptions = options
        self.mapping: Mapping = opened.mapping
        #: The mapping again, where a worker asks the disk through it.
        self.disk: Disk = opened.mapping
        self.path: str = options.path
        self.mode: str = options.mode.name
        self.policy: FlushPolicy = options.flush
        self.identity: Identity = opened.identity
        #: Whether it ever had a name, as memfd_create(2), O_TMPFILE and some FUSE drivers give
        #: none. By the flush worker, once it is open.
        self.named: bool = opened.named
        #: What stat(2) said when the file was opened.
        self.state: FileState = opened.state
        #: Whether the path was last seen to name another file, or none.
        self.orphaned: bool = False
        self.workers: Workers = workers
        #: The name that this opening gave to the file; it also holds the directory open.
        self.made: NewName | None = opened.made
        #: Opening is over, and will not be undone.
        self.prepared: bool = False
        #: The directory entry is not durable yet. Cleared by the flush worker, one at a time.
        self.created: bool = opened.made is not None
        made = options.mode.makes
        #: The size, or which blocks there are, was changed since the last flush of everything.
        self.size_changed: bool = made
        #: The size was; so the next flush also looks whether the file still has it.
        self.resized: bool = made
        #: What watchers must not take for somebody else's doing.
        self.own: OwnActivity = OwnActivity(opened.mapping, opened.identity, size_changed=made)
        self.lanes: Lanes = Lanes()
        self.failure: FlushError | None = None
        #: Keeps stores and changes of size apart. Taken in worker threads only.
        self.changes: Mutex = Mutex()
        #: Told, in any thread, after the file may have become dirty by other means than a write.
        self.dirtied: Callable[[], None] = _nothing
        #: End waits that nothing else would end, once closing or retiring begins; on the loop.
        self.at_close: set[Callable[[], None]] = set()
        self.closing: bool = False
        #: The mapped file went on to another core. Verbs that had begun finish on this one.
        self.retired: bool = False
        #: Opening failed or was cancelled after the file had been created: remove it again.
        self.undo: bool = False
        #: What the last count of them found. Set in worker threads, one at a time is enough.
        self.huge_page_bytes: int | None = None
        self.offloaded_reads: int = 0
        self._active = 0
        self._idle: Event | None = None

    def name_is_durable(self) -> None:
        """Take note that the directory entry is; in the flush worker."""
        self.created = False
        self.release_directory()

    def end_opening(self) -> None:
        """Take note that opening will not be undone; on the loop."""
        self.prepared = True
        self.release_directory()

    def release_directory(self) -> None:
        """Close the directory of a new file once neither undoing nor syncing needs it."""
        if self.made is not None and self.prepared and not self.created:
            self.made.close()

    @property
    def shared_writable(self) -> bool:
        """Whether stores reach the file, so that there is something to flush."""
        return self.mode not in ("r", "c")

    def choose_inline_writes(self) -> None:
        """Let native code store on the loop thread, unless option, policy or a failure forbid it.

        Not while writes wait in the commit queue either, of a policy that was replaced: they come
        first (I9).
        """
        each = self.policy.flush_each_write and self.shared_writable
        self.lanes.durable_writes = each or self.lanes.draining
        inline = self.options.inline_writes and self.mode != "r"
        inline = inline and not self.lanes.durable_writes and self.failure is None
        self.mapping.inline_writes = inline

    @property
    def sound(self) -> bool:
        """Whether no flush failed and no page is gone: what ``check_whole`` and others raise."""
        return self.failure is None and self.mapping.first_bad is None

    def check_loop(self) -> None:
        """Raise unless on the loop of the file, which may have gone on in another thread.

        Where the inline way ends: native code knows the thread, but not the loop.
        """
        if self.workers.on_loop():
            self.mapping.bind_loop_thread()
        else:
            self.check_open()
            self.workers.check_loop(self.path)

    def check_usable(self) -> None:
        """Raise unless the file is open, in this process, and whole."""
        self.check_open()
        self.check_whole()
        if self.mode == "c":
            self.check_mapped()  # its verbs answer from the mapping where there are private stores

    def check_mapped(self) -> None:
        """Raise if the mapping shows another file than the one that reads and ``reopen`` find."""
        if not self.mapping.current:
            reason = (
                "overlayfs has copied it up since it was opened, as somebody opened it to write, "
                "and its mapping keeps the old bytes: call reopen()"
            )
            raise UnsupportedError(f"map {self.path}", reason, errno.ESTALE)

    def check_current(self) -> None:
        """Raise unless the file is usable, and its path was not reopened: nobody waits here then.

        For what waits for others, and would be ended by nothing once ``at_close`` was told.
        """
        self.check_usable()
        if self.retired:
            raise self.ended()

    def ended(self) -> anyio.ClosedResourceError:
        """Make the error for a wait that closing or reopening ends."""
        if self.retired:
            return anyio.ClosedResourceError(
                f"{self.path} was reopened, and this belongs to the file that it was before: make "
                "it anew, a view or a word as well as an AsyncLock"
            )
        return anyio.ClosedResourceError(f"{self.path} is closed: open it again to use it")

    def end_waits(self) -> None:
        """Tell whoever waits for others that closing or retiring begins."""
        for end_wait in tuple(self.at_close):
            end_wait()

    def check_open(self) -> None:
        """Raise unless the file is open, and open in this process."""
        if self.closing:
            raise self.ended()
        if self.mapping.forked:
            raise ForkedError(self.path)

    def check_whole(self) -> None:
        """Raise if a load or store through a view met a page that is gone."""
        damage = self.damage()
        if damage is not None:
            raise damage

    def damage(self, copied: int = 0) -> MappingFaultError | None:
        """Make the error for a poisoned mapping, if it is; in any thread."""
        first = self.mapping.first_bad
        if first is None:
            return None
        number = self.mapping.damage_errno
        discards = self.shared_writable or (self.mode == "c" and self.mapping.dirty_bytes() > 0)
        return MappingFaultError(
            first, copied, None, self.path, number, poisoned=True, discards=discards
        )

    def check_growable(self, operation: str) -> None:
        """Raise unless the file can become longer."""
        self.check_writable(operation, 'open it with "r+"')
        if self.mode == "c":
            raise AccessModeError(operation, "c", 'a private file has a fixed size: use "r+"')

    def check_writable(
        self, operation: str, remedy: str = 'open it with "r+", or with "c" for private changes'
    ) -> None:
        """Raise unless stores are allowed and believed in."""
        self.check_usable()
        if self.mode == "r":
            raise AccessModeError(operation, self.mode, remedy)
        self.check_flushed()

    def check_flushed(self) -> None:
        """Raise the failure of an earlier flush again (I5)."""
        if self.failure is not None:
            first = self.failure
            # A store that was under way when the flush failed came after its list of ranges.
            ranges = RangeSet([*first.ranges, *self.mapping.dirty_runs()])
            raise FlushError(
                first.path, first.reason, tuple(ranges), first.errno or errno.EIO
            ) from first

    @contextmanager
    def activity(self) -> Iterator[None]:
        """Keep ``wait_idle`` waiting for as long as the block runs."""
        self.begin_activity()
        try:
            yield
        finally:
            self.end_activity()

    def begin_activity(self) -> None:
        """Keep ``wait_idle`` waiting until ``end_activity``."""
        self._active += 1

    def end_activity(self) -> None:
        """End what ``begin_activity`` began."""
        self._active -= 1
        if not self._active and self._idle is not None:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no verb is under way, nor begun by one that was; called when closing."""
        while self._active:
            self._idle = self.workers.event()
            await self._idle.wait()
        await self.lanes.wait_served()

    async def finish(
        self,
        limiter: Limiter,
        function: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> T:
        """Run a job that closing waits for."""
        with self.activity():
            try:
                return await self.workers.finish(limiter, function, *args)
            except OSError as error:
                name_file(error, self.path)
                raise

    # Worker threads only, from here on: these ask the file system.

    def fault(
        self, offset: int, length: int, copied: int, number: int = errno.EFAULT
    ) -> MappingFaultError:
        """Make the error for a copy of [offset, offset + length) that stopped."""
        damage = self.damage(copied)
        if damage is not None:
            return damage
        size = os.fstat(self.mapping.fd).st_size
        unreachable = offset + copied
        if size < offset + length:  # a page may read as zeros beyond the end of the file
            unreachable = max(unreachable, size)
        return MappingFaultError(unreachable, copied, size, self.path, number)

    def outcome(
        self, stores: Sequence[Store], results: Sequence[Receipt | tuple[int, int]]
    ) -> int | OSError:
        """Take the last one's sequence, or make the error for the first that stopped short."""
        sequence = self.mapping.sequence
        for (offset, data), result in zip(stores, results, strict=True):
            if isinstance(result, tuple):
                return self.store_fault(offset, len(data), *result)
            sequence = result.sequence
        return sequence

    def store_fault(self, offset: int, length: int, copied: int, number: int = 0) -> OSError:
        """Make the error for a store that stopped; a full disk is told from a lost page."""
        if number in FULL:
            return self.no_room(number, offset, length)
        if number not in (0, errno.EIO, errno.EFAULT):
            return OSError(number, os.strerror(number), self.path)
        return self.fault(offset, length, copied, number or errno.EFAULT)

    def no_room(self, number: int, offset: int, length: int) -> OSError:
        """Make the error for a range that the disk has no blocks for."""
        reason = f"{os.strerror(number)} for {length} bytes at {offset}, where the file has a hole"
        return OSError(number, f"{reason}: make room, and repeat what was asked", self.path)


async def _nothing_to_await() -> None:
    """Stand in where nothing is under way."""


def _nothing() -> None:
    """Stand in where nobody listens."""


def _nothing_stored(offset: int, end: int) -> bool:  # noqa: ARG001  stands in for Writer.storing
    return False
