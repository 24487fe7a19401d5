"""Waiting until a word that several processes share has changed, in few threads for many waiters.

Theory of operation. ``futex_waitv(2)`` waits for up to 127 words at once, and for the futex of a
``Wakeup``, by which other threads reach the thread that waits. So up to 127 waiters share one
*waiter thread*. The kernel names only one of the notified words. So a waiter thread loads each of
its words when the call returns. A wait ends when its word has another value than the expected one,
and never before. A notification is thus a hint to load the word, and an extra one does no harm.

Invariants.
  1  A thread holds ``_registry_lock`` while it touches ``_waiter_threads`` or the lists of a waiter
     thread, and holds it only for moments.
  2  A waiter thread runs exactly while it is in ``_waiter_threads``, and ends once it has no
     waiters. It takes no token of any limiter (I12), and no waiter needs a token to be cancelled.
  3  A waiter that left may have got a notification. The waiter thread passes it on, after the
     kernel has stopped waiting for that waiter's word.
  4  A waiter thread keeps its waiters alive, so no finalizer ends one: a finalizer could not take
     ``_registry_lock``. If a loop ends without ending its waits, the next change of the word ends
     them; or a garbage collection wakes the waiter thread, which ends them.
  5  A forked child starts with no waiter threads.
"""

from __future__ import annotations

import errno
import gc
import os
from contextlib import suppress
from functools import partial

import anyio

from .._core.file_core import FileCore
from .._errors import MappedFileError, UnsupportedError
from .._native import MAX_WAIT_WORDS, Wakeup, Word
from .._runtime.asyncio_loop import OLD_GENERATION
from .._runtime.event_loop import Event
from .._runtime.loops import call_later
from .._runtime.threads import Mutex, run_in_thread

#: How many waiters share a thread; docs/decisions has the numbers of one thread for each.
MAX_WAITERS = MAX_WAIT_WORDS


class _Waiter:
    """One task that waits."""

    __slots__ = ("_call", "_core", "_outcome", "_thread", "expected", "woken", "word")

    def __init__(self, core: FileCore, word: Word, expected: int) -> None:
        self.word = word
        self.expected = expected
        self.woken: Event = core.workers.event()
        self._core = core
        self._call = core.workers.call_from_thread
        self._thread: _WaiterThread | None = None
        self._outcome: int | BaseException | None = None

    @property
    def abandoned(self) -> bool:
        """Whether the loop of the task has ended."""
        return self._core.workers.ended

    def enter(self, thread: _WaiterThread) -> None:
        """Note which thread waits for the word; under ``_registry_lock``."""
        self._thread = thread

    def finish(self, outcome: int | BaseException) -> None:
        """Set the outcome of the wait, before the task wakes.

        Called once, by the thread that took the waiter out of the list.
        """
        self._outcome = outcome

    def result(self) -> int:
        """Return the value that ended the wait, or raise what ended it."""
        outcome = self._outcome
        assert outcome is not None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def check(self, problem: int) -> int | BaseException | None:
        """Load the word, and return the outcome of the wait; None if it goes on.

        A problem is the errno with which the kernel refuses to wait for the word, or 0.
        """
        try:
            found = self.word.load()
        except Exception as error:
            return error
        if found != self.expected:
            return found
        return self._refusal(problem) if problem else None

    def _refusal(self, problem: int) -> Exception:
        """Make the error for a word that can be loaded, but for which the kernel cannot wait."""
        reason = os.strerror(problem)
        if problem == errno.ENOSYS:
            reason = (
                "the kernel has no futex_waitv(2), which came with Linux 5.16, or a sandbox "
                "refuses it"
            )
        elif problem == errno.EFAULT:
            reason = "the kernel cannot reach the page that holds it"
        what = f"wait for the word at {self.word.offset} of {self._core.path} to change"
        return UnsupportedError(what, reason, problem)

    def wake(self) -> None:
        """Wake the task. If its loop has ended, notify another waiter instead."""
        if not self._call(self._wake):
            self.pass_on()

    def _wake(self) -> None:
        self.woken.set()

    def pass_on(self) -> None:
        """Give another waiter the notification that this one may have got (futex.3)."""
        with suppress(MappedFileError, OSError, anyio.ClosedResourceError):
            if self.word.load() != self.expected:
                self.word._notify(1)  # noqa: SLF001  the two are one mechanism

    def leave(self) -> bool:
        """Take the waiter out; False if the waiter thread has ended its wait already."""
        assert self._thread is not None
        return self._thread.remove(self)

    def close(self) -> None:
        """End the wait because the file is being closed or was reopened; on the loop thread."""
        if self.leave():
            reason = "the file was closed while a task waited"
            retired = self._core.lifecycle.retired
            self.finish(
                self._core.lifecycle.ended() if retired else anyio.ClosedResourceError(reason)
            )
        self.woken.set()

    def expire(self, timeout: float) -> None:
        """End the wait because its timeout has ended; on the loop thread."""
        if self.leave():
            still = f"the word at {self.word.offset} is still {self.expected}"
            self.finish(TimeoutError(f"{self._core.path}: {still} after {timeout} seconds"))
            self.woken.set()


class _WaiterThread:
    """One thread, and the waiters whose words it waits for."""

    __slots__ = ("_gone", "waiters", "wakeup")

    def __init__(self) -> None:
        self.wakeup = Wakeup()
        self.waiters: list[_Waiter] = []
        #: Waiters that left. The kernel may refer to their words until the call returns.
        self._gone: list[_Waiter] = []

    def run(self) -> None:
        """Wait for words until there are no waiters; does not raise."""
        try:
            self._run()
        except Exception as error:
            with _registry_lock:
                _waiter_threads.remove(self)
                waiters, self.waiters = self.waiters, []
                for waiter in waiters:
                    waiter.finish(error)
            for waiter in waiters:
                waiter.wake()

    def add(self, waiter: _Waiter) -> None:
        """Add a waiter, for whose word the thread then waits; under ``_registry_lock``."""
        self.waiters.append(waiter)
        waiter.enter(self)

    def remove(self, waiter: _Waiter) -> bool:
        """Take a waiter out; False if its wait has ended already."""
        with _registry_lock:
            if waiter not in self.waiters:
                return False
            self.waiters.remove(waiter)
            self._gone.append(waiter)
        self.wakeup.wake()
        return True

    def _run(self) -> None:
        while True:
            with _registry_lock:
                count = self.wakeup.count()
                self._gone += [waiter for waiter in self.waiters if waiter.abandoned]
                self.waiters = [waiter for waiter in self.waiters if not waiter.abandoned]
                waiting, gone = self.waiters[:], self._gone[:]
                self._gone.clear()
                if not waiting and not gone:
                    _waiter_threads.remove(self)  # futex.2
                    return
            while gone:
                gone.pop().pass_on()
            if not waiting:
                continue  # do not wait without waiters: nobody would wake this thread
            found = self.wakeup.wait(count, [(w.word, w.expected) for w in waiting])
            self._end_waits([(waiting[i], problem) for i, problem in found])

    def _end_waits(self, found: list[tuple[_Waiter, int]]) -> None:
        for waiter, problem in found:
            outcome = waiter.check(problem)
            if outcome is None:
                continue
            with _registry_lock:
                if waiter not in self.waiters:
                    continue  # it left
                self.waiters.remove(waiter)
                waiter.finish(outcome)
            waiter.wake()


_registry_lock = Mutex()
_waiter_threads: list[_WaiterThread] = []


def _reset_in_child() -> None:
    global _registry_lock
    _registry_lock = Mutex()  # futex.5: a thread of the parent may have held the other one
    _waiter_threads.clear()


os.register_at_fork(after_in_child=_reset_in_child)


def _wake_abandoned(phase: str, info: dict[str, int]) -> None:
    """Wake threads with waiters of closed loops, when a garbage collection begins (futex.4)."""
    if phase == "start" and info["generation"] >= OLD_GENERATION:
        for thread in tuple(_waiter_threads):  # without the lock: this thread may hold it
            if any(waiter.abandoned for waiter in tuple(thread.waiters)):
                thread.wakeup.wake()


gc.callbacks.append(_wake_abandoned)


def _enter(waiter: _Waiter) -> None:
    """Give a waiter to a waiter thread, and start one if all are full."""
    with _registry_lock:
        thread = next((it for it in _waiter_threads if len(it.waiters) < MAX_WAITERS), None)
        fresh = thread is None
        if thread is None:
            thread = _WaiterThread()
            _waiter_threads.append(thread)
        thread.add(waiter)
    if not fresh:
        thread.wakeup.wake()
        return
    try:
        run_in_thread(thread.run)
    except RuntimeError:  # no thread can be started
        with _registry_lock:
            _waiter_threads.remove(thread)
        raise


def check_all_words() -> None:
    """Have all waiter threads load their words, because a file became shorter; in any thread."""
    with _registry_lock:
        threads = _waiter_threads[:]
    for thread in threads:
        thread.wakeup.wake()


async def wait_for_change(
    core: FileCore, word: Word, expected: int, timeout: float | None = None
) -> int:
    """Wait until a word has another value than the expected one, and return that value.

    The timeout limits only the wait: the value of a word that differs is returned in any case.
    """
    core.check_current()
    found = word.load()
    if found != expected:
        await core.workers.checkpoint_if_due()
        return found
    core.workers.check_loop()
    waiter = _Waiter(core, word, expected)
    _enter(waiter)
    core.lifecycle.add_wait(waiter.close)
    # No cancel scope of anyio for the timeout: it would keep tasks alive after their loop closed.
    cancel = (
        None if timeout is None else call_later(max(timeout, 0), partial(waiter.expire, timeout))
    )
    try:
        await waiter.woken.wait()
    except BaseException:
        if not waiter.leave():
            waiter.pass_on()
        raise
    finally:
        core.lifecycle.remove_wait(waiter.close)
        if cancel is not None:
            cancel()
    return waiter.result()
