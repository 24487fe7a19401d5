"""Locks on byte ranges of a file, between processes and between the tasks of one.

Theory of operation. Between processes it is the kernel that locks: "open file description" locks
of fcntl(2) on a descriptor opened for nothing else, which go when the process dies. Where none can
be opened (privileges were given up, there is no /proc, no descriptor is left) they are taken on the
file's own, which its mappings keep open as well; so they have to be undone by a call. They do not
keep the tasks of one process apart, so those take turns first, in the order in which they came.
Who has the turn asks the kernel, again and again with growing pauses: a call that waits in the
kernel would cost a thread for each waiter, and nothing could cancel it.

Invariants.
  1  Of the claims of one file, those that have their turn do not conflict; a claim never overtakes
      an earlier one that it conflicts with.
  2  Calls to the kernel are made one at a time, in the order in which they were asked for, in a
      thread that takes no token of reads or stores (I12).
  3  What a claim gives back is only what no other claim covers that the kernel granted: shared
      claims of one process may overlap, and the kernel keeps one lock for all of them. ``_granted``
      is what the kernel was last told, so it is touched in the calls to it only (file_locks.2).
  4  Closing and reopening wake who waits, and give nobody the turn: who wakes looks (reopening.3).
  5  A forked child closes its copy of the descriptor: it would keep the parent's locks alive. Of
      the file's own it gives up the mapping, too; only memory of views that it has keeps them then.
  6  No task waits without limit for what it has locked itself: it is told so. ``_claimed`` is for
      that alone, across all mapped files of the process. It keeps nothing alive: a claim refers to
      its task, and that to the file.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import struct
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import anyio.lowlevel

from .._core.file_core import FileCore
from .._core.file_state import Identity
from .._errors import UnsupportedError
from .._ranges import RangeSet
from .._runtime.loops import call_later
from .._runtime.workers import Limiter

FIRST_PAUSE_SECONDS = 0.0005
LONGEST_PAUSE_SECONDS = 0.02

#: None where the system has no such locks.
_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None)
#: struct flock, with the padding behind its last field.
_FLOCK = struct.Struct("hhqqi0q")


class Pauses(Protocol):
    """What to do between two questions to the kernel."""

    def look(self) -> None:
        """Note how things stand, before asking."""

    async def pause(self, longest: float) -> None:
        """Wait for them to change, after having been refused; at most so many seconds."""


class Backoff:
    """Pauses that grow: other programs say nothing when they unlock."""

    def __init__(self) -> None:
        self._seconds = FIRST_PAUSE_SECONDS

    def look(self) -> None:
        """See ``Pauses``: there is nothing to note."""

    async def pause(self, longest: float) -> None:
        """Sleep, half as long again each time."""
        await anyio.sleep(min(self._seconds, longest))
        self._seconds = min(self._seconds * 1.5, LONGEST_PAUSE_SECONDS)


@dataclass(eq=False, slots=True, weakref_slot=True)
class Claim:
    """A range that a task holds, or waits for."""

    file: Identity
    offset: int
    end: int
    shared: bool
    task: anyio.TaskInfo = field(default_factory=anyio.get_current_task)
    #: No earlier claim conflicts any more.
    has_turn: bool = False
    #: Told when it has its turn, or will not get it any more.
    woken: anyio.Event = field(default_factory=anyio.Event)
    #: What ``_claimed`` has of it.
    entry: weakref.ref[Claim] | None = None

    def conflicts(self, other: Claim) -> bool:
        """Tell whether the two, of one file, cannot be held at once."""
        overlap = max(self.offset, other.offset) < min(self.end, other.end)
        return overlap and not (self.shared and other.shared)

    def waits_for_itself(self) -> bool:
        """Tell whether the task that asks is the one that keeps it waiting (file_locks.6).

        A task that waits asks for nothing else meanwhile, so its other claims are granted.
        """
        others = (reference() for reference in tuple(_claimed.get(self._key, ())))
        return any(
            other is not None and other is not self and other.conflicts(self) for other in others
        )

    def enter(self) -> None:
        """Have it found by ``waits_for_itself``."""
        key = self._key

        def forget(reference: weakref.ref[Claim]) -> None:
            claims = _claimed.get(key, set())
            claims.discard(reference)
            if not claims:
                _claimed.pop(key, None)

        self.entry = weakref.ref(self, forget)
        _claimed.setdefault(key, set()).add(self.entry)

    def leave(self) -> None:
        """Have it found no more."""
        claims = _claimed.get(self._key, set())
        if self.entry is not None:
            claims.discard(self.entry)
        if not claims:
            _claimed.pop(self._key, None)

    @property
    def _key(self) -> tuple[Identity, int]:
        return self.file, id(self.task.coro)  # kept alive, so not a later task's

    def __str__(self) -> str:
        return f"bytes [{self.offset}, {self.end})"


#: All that is held or waited for in this process, by file and task.
_claimed: dict[tuple[Identity, int], set[weakref.ref[Claim]]] = {}


class FileLocks:
    """The locks that one mapped file holds and waits for; for the loop thread."""

    __slots__ = (
        "__weakref__",
        "_apart",
        "_claims",
        "_core",
        "_descriptor",
        "_granted",
        "_leaving",
        "_limiter",
    )

    def __init__(self, core: FileCore) -> None:
        self._core = core
        self._claims: list[Claim] = []
        self._granted: list[Claim] = []
        self._descriptor = -1
        #: Whether the descriptor was opened for nothing else; see ``_open``.
        self._apart = False
        #: Whether the last one out closes the descriptor. For calls to the kernel (file_locks.2).
        self._leaving = False
        self._limiter: Limiter | None = None

    async def acquire(
        self,
        offset: int,
        length: int,
        *,
        shared: bool,
        timeout: float | None = None,
        pauses: Pauses | None = None,
    ) -> Claim:
        """Lock a range, and return what ``release`` takes.

        The time limit is for waiting: a range that is free is had in any case.
        """
        claim = Claim(self._core.identity, offset, offset + length, shared)
        try:
            await self._take(claim, pauses or Backoff(), timeout)
        except TimeoutError as error:
            by = ": it is this very task that locked them" if claim.waits_for_itself() else ""
            raise TimeoutError(
                f"{self._core.path}: {claim} are still locked after {timeout} seconds{by}"
            ) from error
        return claim

    def _turns(self) -> Limiter:
        """The one token (file_locks.2). Made when first needed: few of many files are locked."""
        if self._limiter is None:
            self._limiter = Limiter(1)
            _all.add(self)
        return self._limiter

    async def release(self, claim: Claim, before: Callable[[int], None] | None = None) -> None:
        """Unlock what was acquired; a cancellation is delivered afterwards.

        Args:
            before: called in a worker, with a descriptor of the file, while it is still locked.
        """
        try:
            if claim.has_turn and self._descriptor >= 0:
                await self._core.workers.complete(self._turns(), self._unlock, claim, before)
        finally:
            self._claims.remove(claim)
            claim.leave()
            self._serve()

    @property
    def held(self) -> bool:
        """Whether the kernel keeps anything locked for us; when no call to it is under way."""
        return self._descriptor >= 0

    async def leave(self) -> None:
        """Give up the descriptor as soon as nobody is inside; nobody comes in any more."""
        if self._descriptor >= 0:
            await self._core.workers.complete(self._turns(), self._leave)

    async def aclose(self) -> None:
        """Give up the descriptor, and with it every lock."""
        if self._descriptor >= 0:
            await self._core.workers.complete(self._turns(), self.drop)

    async def _take(self, claim: Claim, pauses: Pauses, timeout: float | None) -> None:
        core = self._core
        core.check_current()
        deadline = math.inf if timeout is None else anyio.current_time() + timeout
        self._claims.append(claim)
        claim.enter()
        core.at_close.add(claim.woken.set)
        cancel = None
        try:
            self._serve()
            if claim.has_turn and await self._ask(claim, pauses):
                return
            if timeout is None and claim.waits_for_itself():
                raise RuntimeError(
                    f"{core.path}: {claim} were asked for by the very task that has them locked, "
                    "and would wait for itself: locks are not reentrant, so leave the first one "
                    "before, or call what is inside of it without locking again"
                )
            if timeout is not None:  # not a scope of anyio's: see wait_for_change
                left = max(deadline - anyio.current_time(), 0)
                cancel = call_later(left, claim.woken.set)
            await self._wait(claim, pauses, deadline)
        except GeneratorExit:
            raise  # the loop is gone, and nothing can be awaited any more
        except BaseException:
            await self.release(claim)
            raise
        finally:
            core.at_close.discard(claim.woken.set)
            if cancel is not None:
                cancel()

    async def _wait(self, claim: Claim, pauses: Pauses, deadline: float) -> None:
        if claim.has_turn:
            await self._pause(pauses, deadline)
        await claim.woken.wait()
        self._core.check_current()
        if not claim.has_turn:
            raise TimeoutError
        while not await self._ask(claim, pauses):
            await self._pause(pauses, deadline)

    async def _pause(self, pauses: Pauses, deadline: float) -> None:
        left = deadline - anyio.current_time()
        if left <= 0:
            raise TimeoutError
        await pauses.pause(left)

    async def _ask(self, claim: Claim, pauses: Pauses) -> bool:
        self._core.check_current()
        if claim.offset == claim.end:
            await anyio.lowlevel.checkpoint()
            return True
        pauses.look()
        return await self._core.finish(self._turns(), self._lock, claim)

    def _serve(self) -> None:
        """Give the turn to every claim that no earlier one keeps from it (file_locks.1)."""
        for number, claim in enumerate(self._claims):
            if not claim.has_turn and not any(map(claim.conflicts, self._claims[:number])):
                claim.has_turn = True
                claim.woken.set()

    # Worker threads only, from here on; one at a time (file_locks.2).

    def _lock(self, claim: Claim) -> bool:
        """Ask the kernel; false if another process has a part of the range."""
        if _SET_LOCK is None:
            raise UnsupportedError(f"lock bytes of {self._core.path}", "the system cannot")
        if self._descriptor < 0 or not (self._apart or self._granted):
            self._open()
        try:
            self._set(fcntl.F_RDLCK if claim.shared else fcntl.F_WRLCK, claim.offset, claim.end)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        self._granted.append(claim)
        return True

    def _unlock(self, claim: Claim, before: Callable[[int], None] | None) -> None:
        if claim not in self._granted:  # the kernel never gave it, or it went with the descriptor
            return
        if before is not None:
            before(self._descriptor)
        self._granted.remove(claim)
        rest = RangeSet([(claim.offset, claim.end)])
        for other in self._granted:  # file_locks.3
            rest.discard(other.offset, other.end)
        for offset, end in rest:
            self._set(fcntl.F_UNLCK, offset, end)
        if self._leaving:
            self._leave()

    def _leave(self) -> None:
        self._leaving = True
        if not self._granted:
            self.drop()
        elif self._descriptor == self._core.mapping.fd:  # which is going to be closed
            self._descriptor = os.dup(self._descriptor)

    def _set(self, kind: int, offset: int, end: int) -> None:
        assert _SET_LOCK is not None
        request = _FLOCK.pack(kind, os.SEEK_SET, offset, end - offset, 0)
        try:
            fcntl.fcntl(self._descriptor, _SET_LOCK, request)
        except OSError as error:
            error.filename = self._core.path
            raise

    def _open(self) -> None:
        core = self._core
        if core.mapping.closed:
            raise core.ended()
        access = os.O_RDWR if core.shared_writable else os.O_RDONLY
        own = core.mapping.fd
        try:
            # Through the descriptor: the path may name another file by now.
            self._descriptor = os.open(f"/proc/self/fd/{own}", access | os.O_CLOEXEC)
            self._apart = True
        except OSError:
            self._descriptor, self._apart = own, False

    def drop(self) -> None:
        """Give up the descriptor, and with it every lock; in any thread, also as garbage."""
        held, self._granted = self._granted, []
        descriptor = self._descriptor
        if descriptor < 0:
            return
        if held and not self._apart:
            with suppress(OSError):
                self._set(fcntl.F_UNLCK, 0, 0)  # to the end
        self._descriptor = -1
        if descriptor != self._core.mapping.fd:
            os.close(descriptor)

    def drop_in_child(self) -> None:
        """Close what a forked child has of it (file_locks.5); unlocking would be the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0 and descriptor != self._core.mapping.fd:
            os.close(descriptor)
        if not self._apart and self._granted:
            self._core.mapping.close()
        self._granted = []

    def __del__(self) -> None:
        self.drop()


_all: weakref.WeakSet[FileLocks] = weakref.WeakSet()


def _drop_all() -> None:
    _claimed.clear()
    for locks in list(_all):
        locks.drop_in_child()


os.register_at_fork(after_in_child=_drop_all)
