"""What all verbs of one mapped file share: its mapping, its state, and the checks before a verb.

Invariants.
  C1  No verb passes ``check_usable`` once ``closing`` is set; what passed before is counted in
      ``_active``, or waits in the flush lane, until it is done, and closing waits for both.
  C2  ``failure`` is set once and never cleared: the first failed flush latches (I5).
"""

from __future__ import annotations

import errno
import os
import reprlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple, Unpack

import anyio

from ._change import FileState
from ._errors import (
    AccessModeError,
    FlushError,
    ForkedError,
    MappingFaultError,
    OutOfBoundsError,
)
from ._native import Mapping, Receipt
from ._policy import FlushPolicy
from ._ranges import RangeSet, integer
from ._workers import Limiter, Mutex, Workers

if TYPE_CHECKING:
    from ._typing import Buffer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: A write that was checked: an offset, and the bytes to store there.
Store = tuple[int, bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a file from another one at the same path."""

    device: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        """Take the identity out of a stat result."""
        return cls(found.st_dev, found.st_ino)


class Disk(Protocol):
    """What a mapping does that waits for the disk and fails with it; the words are ``Mapping``'s.

    For worker threads. They ask ``Core.disk`` anew each time and keep no reference to it, because
    ``aiommap.testing`` lays a disk that fails or waits over it while a file is open.
    """

    def read(self, offset: int, length: int, /) -> bytes: ...
    def read_into(self, offset: int, buffer: Buffer, /) -> int: ...
    def write_many(self, items: list[Store], /) -> list[Receipt | tuple[int, int]]: ...
    def populate(self, offset: int, length: int, write: bool, /) -> int: ...
    def sync(self, metadata: bool, /) -> None: ...
    def sync_range(self, offset: int, length: int, /) -> None: ...


class Core:
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
        "draining",
        "durable_stores",
        "durable_writes",
        "failure",
        "huge_page_bytes",
        "identity",
        "mapping",
        "mode",
        "offloaded_reads",
        "offloaded_writes",
        "orphaned",
        "path",
        "policy",
        "queued_bytes",
        "resized",
        "retired",
        "served",
        "settle",
        "size_changed",
        "size_changes",
        "sparse",
        "state",
        "storing",
        "touches",
        "touching",
        "undo",
        "workers",
    )

    def __init__(
        self,
        mapping: Mapping,
        *,
        path: str,
        mode: str,
        policy: FlushPolicy,
        sparse: bool,
        created: bool,
        size_changed: bool,
        identity: Identity,
        state: FileState,
        workers: Workers,
    ) -> None:
        self.mapping: Mapping = mapping
        #: The mapping again, where a worker asks the disk through it.
        self.disk: Disk = mapping
        self.path: str = path
        self.mode: str = mode
        self.policy: FlushPolicy = policy
        self.sparse: bool = sparse
        self.identity: Identity = identity
        #: What stat(2) said when the file was opened.
        self.state: FileState = state
        #: Whether the path was last seen to name another file, or none.
        self.orphaned: bool = False
        self.workers: Workers = workers
        #: The directory entry is not durable yet. Cleared by the flush worker, one at a time.
        self.created: bool = created
        #: The size, or which blocks there are, was changed since the last flush of everything.
        self.size_changed: bool = size_changed
        #: The size was; so the next flush also looks whether the file still has it.
        self.resized: bool = size_changed
        # For watchers, which must not take for somebody else's what we do ourselves.
        #: Odd while a worker changes the size or the blocks of the file.
        self.size_changes: int = 2 if size_changed else 0
        #: Operations that moved the times of the file without storing, and those under way.
        self.touches: int = 0
        self.touching: int = 0
        self.failure: FlushError | None = None
        #: Bytes of writes that wait in the lane or are being applied there.
        self.queued_bytes: int = 0
        #: Writes that a flush worker is applying.
        self.durable_stores: int = 0
        #: Writes of a policy that was replaced may still wait in the flush lane.
        self.draining: bool = False
        #: Writes are requests of the flush lane, unless others still wait in the store lane.
        self.durable_writes: bool = False
        #: Waits until the writes submitted so far have been applied.
        self.settle: Callable[[], Awaitable[None]] = _nothing_to_await
        #: Waits until what was submitted to the flush lane so far has been served.
        self.served: Callable[[], Awaitable[None]] = _nothing_to_await
        #: Keeps stores and changes of size apart. Taken in worker threads only.
        self.changes: Mutex = Mutex()
        #: Told after the file may have become dirty by other means than a write.
        self.dirtied: Callable[[], None] = _nothing
        #: Told on the loop when closing or retiring begins: ends waits that nothing else would end.
        self.at_close: set[Callable[[], None]] = set()
        #: Whether a write to a part of [offset, end) is still under way.
        self.storing: Callable[[int, int], bool] = _nothing_stored
        self.closing: bool = False
        #: The mapped file went on to another core. Verbs that had begun finish on this one.
        self.retired: bool = False
        #: Opening failed or was cancelled after the file had been created: remove it again.
        self.undo: bool = False
        #: What the last count of them found. Set in worker threads, one at a time is enough.
        self.huge_page_bytes: int | None = None
        self.offloaded_reads: int = 0
        self.offloaded_writes: int = 0
        self._active = 0
        self._idle: anyio.Event | None = None

    @property
    def inode(self) -> tuple[int, int]:
        """The identity, in the form that watchers use."""
        return self.identity.device, self.identity.inode

    @property
    def shared_writable(self) -> bool:
        """Whether stores reach the file, so that there is something to flush."""
        return self.mode not in ("r", "c")

    def choose_inline_writes(self) -> None:
        """Let native code store on the loop thread, unless the policy or a failure forbids it.

        Not while writes wait in the flush lane either, of a policy that was replaced: they come
        first (I9).
        """
        each = self.policy.flush_each_write and self.shared_writable
        self.durable_writes = each or self.draining
        inline = self.mode != "r" and not self.durable_writes and self.failure is None
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
            self.mapping.settle()
        else:
            self.check_open()
            self.workers.check_loop(self.path)

    def check_usable(self) -> None:
        """Raise unless the file is open, in this process, and whole."""
        self.check_open()
        self.check_whole()

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
                f"{self.path} was reopened, and this belongs to the file that it was before: lock "
                "it again, with an AsyncLock or a word made anew"
            )
        return anyio.ClosedResourceError(f"{self.path} is closed: open it again to use it")

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

    @contextmanager
    def touch(self) -> Iterator[None]:
        """Say that the block may move the times of the file."""
        self.touching += 1
        try:
            yield
        finally:
            self.touching -= 1
            self.touches += 1

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
            self._idle = anyio.Event()
            await self._idle.wait()
        await self.served()

    async def finish(
        self,
        limiter: Limiter,
        function: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> T:
        """Run a job that closing waits for."""
        with self.activity():
            return await self.workers.finish(limiter, function, *args)

    # Worker threads only, from here on: these ask the file system.

    def within(
        self, function: Callable[[int, int, Unpack[Ts]], T], offset: int, length: int, *args: *Ts
    ) -> T:
        """Call a native function of a range that was checked, but may be cut off by now."""
        try:
            return function(offset, length, *args)
        except ValueError as error:
            limit = self.mapping.size
            if offset + length > limit:
                raise OutOfBoundsError(offset, length, limit) from error
            raise

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
        if number not in (0, errno.EIO, errno.EFAULT):
            return OSError(number, os.strerror(number), self.path)
        fault = self.fault(offset, length, copied, number or errno.EFAULT)
        reached = not fault.poisoned and (fault.size or 0) >= offset + length
        if self.shared_writable and reached:
            try:
                # Asking for the blocks says what the store could not: ENOSPC, EDQUOT, EIO.
                os.posix_fallocate(self.mapping.fd, offset, length)
            except OSError as error:
                return OSError(error.errno, os.strerror(error.errno or errno.EIO), self.path)
        return fault


async def _nothing_to_await() -> None:
    """Stand in where nothing is under way."""


def _nothing() -> None:
    """Stand in where nobody listens."""


def _nothing_stored(offset: int, end: int) -> bool:  # noqa: ARG001  stands in for Writer.storing
    return False


def plain_integers(*numbers: object) -> bool:
    """Tell whether the native verbs take these as they are; NumPy's integers they do not."""
    return all(isinstance(number, int) for number in numbers)


def contiguous(data: object) -> memoryview:
    """View a C-contiguous buffer as bytes, without a copy."""
    try:
        view = memoryview(data)  # type: ignore[arg-type]  # this finds out
    except TypeError:
        hint = ": encode it first" if isinstance(data, str) else ""
        raise TypeError(
            f"data is {reprlib.repr(data)}, not bytes or another buffer of them{hint}"
        ) from None
    if not view.c_contiguous:
        raise BufferError("asked to use a buffer that is not C-contiguous: make a copy of it first")
    if view.ndim == 1 and view.format == "B":
        return view
    return view.cast("B") if view.nbytes else memoryview(b"")


#: No process can map more: half of what 48 bits address.
MOST_BYTES = 1 << 47


def byte_count(size: object, name: str) -> int:
    """Check a size given by the caller."""
    count = integer(size, name)
    if count < 0:
        raise ValueError(f"{name} is {count}: it is a number of bytes and cannot be negative")
    if count > MOST_BYTES:
        raise ValueError(f"{name} is {count}: no process can map more than {MOST_BYTES} bytes")
    return count
