"""Locks on byte ranges of a file, between processes and between the tasks of one.

Theory of operation. The kernel keeps processes apart, by "open file description" locks of fcntl(2)
on a descriptor that is opened for nothing else. They end when the process dies. If no such
descriptor can be opened (privileges were given up, there is no /proc, no descriptor is left) the
locks are on the file's own descriptor. The mappings keep that one open as well, so a call has to
unlock.

The kernel does not keep the tasks of one process apart. So they queue here first, in the order in
which they came. The task whose turn it is asks the kernel, again and again with growing pauses. A
call that waits in the kernel would cost a thread for each waiter, and nothing could cancel it.

Invariants.
  1  Requests of one file whose turn it is do not conflict. A request never overtakes an earlier
     one that it conflicts with.
  2  One call to the kernel runs at a time, in the order in which the tasks asked for them, in a
     thread that takes no token of reads or stores (I12).
  3  A release unlocks only bytes that no other granted request covers: shared requests of one
     process may overlap, and the kernel keeps one lock for all of them. ``_granted`` is what the
     kernel has granted, so only the calls to it (file_locks.2) touch ``_granted``.
  4  Closing and reopening wake the waiting tasks without giving them the turn: a task that wakes
     checks for both (open_file.3).
  5  A forked child closes its copy of the descriptor, which would keep the parent's locks alive.
     If the locks are on the file's own descriptor, the child also gives up the mapping; then only
     memory of views that the child has keeps them alive.
  6  A task that would wait without limit for its own lock gets an error instead. ``_requested``
     serves only that, and covers all mapped files of the process. It keeps no request alive,
     because a request refers to its task, and the task to the file.
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
from .._errors import UnsupportedError, name_file
from .._ranges import RangeSet
from .._runtime.loops import call_later
from .._runtime.workers import Limiter, OnCancel
from .turns import Turns

FIRST_PAUSE_SECONDS = 0.0005
LONGEST_PAUSE_SECONDS = 0.02

#: None if the system has no such locks.
_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None)
#: struct flock, with the padding behind its last field.
_FLOCK = struct.Struct("hhqqi0q")


class RetryWait(Protocol):
    """How to wait before the kernel is asked again."""

    def begin(self) -> None:
        """Note the state of the lock, before we ask the kernel."""

    async def pause(self, longest: float) -> None:
        """Wait for a change of that state after the kernel refused; at most ``longest`` seconds."""


class Backoff:
    """Growing pauses, because other programs notify nobody when they unlock."""

    def __init__(self) -> None:
        self._seconds = FIRST_PAUSE_SECONDS

    def begin(self) -> None:
        """Do nothing: pauses need no state."""

    async def pause(self, longest: float) -> None:
        """Sleep, 1.5 times as long each time."""
        await anyio.sleep(min(self._seconds, longest))
        self._seconds = min(self._seconds * 1.5, LONGEST_PAUSE_SECONDS)


@dataclass(eq=False, slots=True, weakref_slot=True)
class LockRequest:
    """A range that a task holds, or waits for."""

    file: Identity
    offset: int
    end: int
    shared: bool
    task: anyio.TaskInfo = field(default_factory=anyio.get_current_task)
    #: Whether no earlier request conflicts with it.
    has_turn: bool = False
    #: Set when its turn has come, or can no more come.
    woken: anyio.Event = field(default_factory=anyio.Event)
    #: The entry for it in ``_requested``.
    _reference: weakref.ref[LockRequest] | None = field(default=None, init=False)

    def give_turn(self) -> None:
        """Let the task ask the kernel."""
        self.has_turn = True
        self.woken.set()

    def conflicts(self, other: LockRequest) -> bool:
        """Tell whether two requests of one file exclude each other."""
        overlap = max(self.offset, other.offset) < min(self.end, other.end)
        return overlap and not (self.shared and other.shared)

    def waits_for_itself(self) -> bool:
        """Tell whether the task waits for a lock that it holds itself (file_locks.6).

        A waiting task makes no other request meanwhile, so its other requests are granted.
        """
        others = (reference() for reference in tuple(_requested.get(self._key, ())))
        return any(
            other is not None and other is not self and other.conflicts(self) for other in others
        )

    def enter(self) -> None:
        """Let ``waits_for_itself`` find this request."""
        key = self._key

        def forget(reference: weakref.ref[LockRequest]) -> None:
            requests = _requested.get(key, set())
            requests.discard(reference)
            if not requests:
                _requested.pop(key, None)

        self._reference = weakref.ref(self, forget)
        _requested.setdefault(key, set()).add(self._reference)

    def leave(self) -> None:
        """Hide this request from ``waits_for_itself``."""
        requests = _requested.get(self._key, set())
        if self._reference is not None:
            requests.discard(self._reference)
        if not requests:
            _requested.pop(self._key, None)

    @property
    def _key(self) -> tuple[Identity, int]:
        return self.file, id(self.task.coro)  # the request keeps it alive, so the id is not reused

    def __str__(self) -> str:
        return f"bytes [{self.offset}, {self.end})"


#: All requests of tasks of this process, granted or waiting, by file and task.
_requested: dict[tuple[Identity, int], set[weakref.ref[LockRequest]]] = {}


class FileLocks:
    """The locks that one mapped file holds and waits for; for the loop thread."""

    __slots__ = (
        "__weakref__",
        "_core",
        "_descriptor",
        "_granted",
        "_is_dedicated",
        "_leaving",
        "_limiter",
        "_turns",
    )

    def __init__(self, core: FileCore) -> None:
        self._core = core
        self._turns = Turns[LockRequest]()
        self._granted: dict[LockRequest, None] = {}
        self._descriptor = -1
        #: Whether the descriptor was opened for locks alone; see ``_open``.
        self._is_dedicated = False
        #: Whether the last release closes the descriptor; only calls to the kernel touch it
        #: (file_locks.2).
        self._leaving = False
        self._limiter: Limiter | None = None

    async def acquire(
        self,
        offset: int,
        length: int,
        *,
        shared: bool,
        timeout: float | None = None,
        retry: RetryWait | None = None,
    ) -> LockRequest:
        """Lock a range, and return the request, which the caller passes to ``release``.

        The timeout limits only the wait: a free range is locked in any case.
        """
        request = LockRequest(self._core.identity, offset, offset + length, shared)
        try:
            await self._take(request, retry or Backoff(), timeout)
        except TimeoutError as error:
            by = ": it is this very task that locked them" if request.waits_for_itself() else ""
            raise TimeoutError(
                f"{self._core.path}: {request} are still locked after {timeout} seconds{by}"
            ) from error
        return request

    def _token(self) -> Limiter:
        """Return the one token (file_locks.2); made when needed, as few open files have locks."""
        if self._limiter is None:
            self._limiter = Limiter(1)
            _all.add(self)
        return self._limiter

    async def release(
        self, request: LockRequest, before: Callable[[int], None] | None = None
    ) -> None:
        """Unlock the range of a request; a cancellation is delivered afterwards.

        Args:
            before: a worker calls it with a descriptor of the file, just before it unlocks.
        """
        try:
            if request.has_turn and self._descriptor >= 0:
                await self._run_to_end(self._unlock, request, before)
        finally:
            request.leave()
            for other in self._turns.leave(request):  # file_locks.1
                other.give_turn()

    @property
    def held(self) -> bool:
        """Whether the kernel has locks of ours; ask only while no call to it runs."""
        return self._descriptor >= 0

    async def leave(self) -> None:
        """Close the descriptor as soon as the last lock is released; no request may follow."""
        if self._descriptor >= 0:
            await self._run_to_end(self._leave)

    async def aclose(self) -> None:
        """Close the descriptor, and with it release every lock."""
        if self._descriptor >= 0:
            await self._run_to_end(self.drop)

    async def _run_to_end(self, function: Callable[..., None], *args: object) -> None:
        """Run a function that releases locks, in a worker; a cancellation waits for it."""
        await self._core.workers.run(self._token(), function, *args, on_cancel=OnCancel.WAIT)

    async def _take(self, request: LockRequest, retry: RetryWait, timeout: float | None) -> None:
        core = self._core
        core.check_current()
        deadline = math.inf if timeout is None else anyio.current_time() + timeout
        if self._turns.enter(request):  # file_locks.1
            request.give_turn()
        request.enter()
        core.lifecycle.add_wait(request.woken.set)
        cancel = None
        try:
            if request.has_turn and await self._ask(request, retry):
                return
            if timeout is None and request.waits_for_itself():
                raise RuntimeError(
                    f"{core.path}: {request} were asked for by the very task that has them locked, "
                    "and would wait for itself: locks are not reentrant, so leave the first one "
                    "before, or call what is inside of it without locking again"
                )
            if timeout is not None:  # without a cancel scope: see wait_for_change
                left = max(deadline - anyio.current_time(), 0)
                cancel = call_later(left, request.woken.set)
            await self._wait(request, retry, deadline)
        except GeneratorExit:
            raise  # the loop has ended, so nothing can be awaited any more
        except BaseException:
            await self.release(request)
            raise
        finally:
            core.lifecycle.remove_wait(request.woken.set)
            if cancel is not None:
                cancel()

    async def _wait(self, request: LockRequest, retry: RetryWait, deadline: float) -> None:
        if request.has_turn:
            await self._retry_wait(retry, deadline)
        await request.woken.wait()
        self._core.check_current()
        if not request.has_turn:
            raise TimeoutError
        while not await self._ask(request, retry):
            await self._retry_wait(retry, deadline)

    async def _retry_wait(self, retry: RetryWait, deadline: float) -> None:
        left = deadline - anyio.current_time()
        if left <= 0:
            raise TimeoutError
        await retry.pause(left)

    async def _ask(self, request: LockRequest, retry: RetryWait) -> bool:
        self._core.check_current()
        if request.offset == request.end:
            await anyio.lowlevel.checkpoint()
            return True
        retry.begin()
        return await self._core.run(self._token(), self._lock, request)

    # From here on: worker threads only, one at a time (file_locks.2).

    def _lock(self, request: LockRequest) -> bool:
        """Ask the kernel for the lock; false if another process has locked a part of the range."""
        if _SET_LOCK is None:
            raise UnsupportedError(f"lock bytes of {self._core.path}", "the system cannot")
        if self._descriptor < 0 or not (self._is_dedicated or self._granted):
            self._open()
        try:
            self._set(
                fcntl.F_RDLCK if request.shared else fcntl.F_WRLCK, request.offset, request.end
            )
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        self._granted[request] = None
        return True

    def _unlock(self, request: LockRequest, before: Callable[[int], None] | None) -> None:
        if request not in self._granted:  # never granted, or released with the descriptor
            return
        if before is not None:
            before(self._descriptor)
        del self._granted[request]
        rest = RangeSet([(request.offset, request.end)])
        if request.shared:  # file_locks.3; no other request covers an exclusive one
            for other in self._granted:
                rest.discard(other.offset, other.end)
        for offset, end in rest:
            self._set(fcntl.F_UNLCK, offset, end)
        if self._leaving:
            self._leave()

    def _leave(self) -> None:
        self._leaving = True
        if not self._granted:
            self.drop()
        elif self._descriptor == self._core.mapping.fd:  # closing the file closes that descriptor
            self._descriptor = os.dup(self._descriptor)

    def _set(self, kind: int, offset: int, end: int) -> None:
        assert _SET_LOCK is not None
        lock = _FLOCK.pack(kind, os.SEEK_SET, offset, end - offset, 0)
        try:
            fcntl.fcntl(self._descriptor, _SET_LOCK, lock)
        except OSError as error:
            name_file(error, self._core.path)
            raise

    def _open(self) -> None:
        core = self._core
        if core.mapping.closed:
            raise core.lifecycle.ended()
        access = os.O_RDWR if core.shared_writable else os.O_RDONLY
        own = core.mapping.fd
        try:
            # Through the descriptor: the path may name another file by now.
            self._descriptor = os.open(f"/proc/self/fd/{own}", access | os.O_CLOEXEC)
            self._is_dedicated = True
        except OSError:
            self._descriptor, self._is_dedicated = own, False

    def drop(self) -> None:
        """Close the descriptor, and with it release every lock; in any thread and in finalizers."""
        granted, self._granted = self._granted, {}
        descriptor = self._descriptor
        if descriptor < 0:
            return
        if granted and not self._is_dedicated:
            with suppress(OSError):
                self._set(fcntl.F_UNLCK, 0, 0)  # to the end
        self._descriptor = -1
        if descriptor != self._core.mapping.fd:
            os.close(descriptor)

    def drop_in_child(self) -> None:
        """Close a forked child's copy (file_locks.5); to unlock would free the parent's locks."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0 and descriptor != self._core.mapping.fd:
            os.close(descriptor)
        if not self._is_dedicated and self._granted:
            self._core.mapping.close()
        self._granted = {}

    def __del__(self) -> None:
        self.drop()


_all: weakref.WeakSet[FileLocks] = weakref.WeakSet()


def _drop_all() -> None:
    _requested.clear()
    for locks in list(_all):
        locks.drop_in_child()


os.register_at_fork(after_in_child=_drop_all)
