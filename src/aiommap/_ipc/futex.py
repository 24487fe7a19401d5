"""Waiting until a word that several processes share has changed, in few threads for many waiters.

Theory of operation. ``futex_waitv(2)`` waits for up to 127 words at once, and for the wakeup by
which we reach the thread that waits. So all waiters of a process share one thread, called a post,
and a second one only beyond that number. A post whose call returns looks at each of its words
itself, as the kernel names only one of those that were notified: a waiter is done when its word is
not what it expected any more, and never before. A notification is thus a hint to look, and one too
many does no harm.

Invariants.
  1  ``_posts`` and the lists of each post are touched under ``_books``, which is held for moments.
  2  A post has a thread exactly while it is in ``_posts``, and leaves once nobody waits there.
      These threads take no token of any limiter (I12), and no waiter needs one to be cancelled.
  3  A notification that may have gone to a waiter who is gone is passed on, after the kernel let
      go of that waiter's word.
  4  A post keeps its waiters alive, so none is ever ended by a finalizer, which could not take
      ``_books``; if a loop ends without ending its waits, the next change of the word does, or the
      post, which collecting garbage makes look.
  5  A forked child starts with no posts.
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
from .._runtime.loops import OLD_GENERATION, Event, call_later
from .._runtime.threads import Mutex, run_in_thread

#: How many waiters share a thread; docs/decisions has the numbers of one thread for each.
POST_WAITERS = MAX_WAIT_WORDS


class _Waiter:
    """One task that waits. ``outcome`` is set once, under ``_books``, before it is told."""

    __slots__ = ("_call", "_core", "expected", "outcome", "post", "told", "word")

    def __init__(self, core: FileCore, word: Word, expected: int) -> None:
        self.word = word
        self.expected = expected
        self.told: Event = core.workers.event()
        self._core = core
        self._call = core.workers.call_from_thread
        self.post: _Post | None = None
        self.outcome: int | BaseException | None = None

    @property
    def abandoned(self) -> bool:
        """Whether nobody can be told any more."""
        return self._core.workers.ended

    def look(self, problem: int) -> int | BaseException | None:
        """Look at the word; None while there is nothing to tell.

        A problem is the errno with which the kernel refuses to wait for it, or 0.
        """
        try:
            seen = self.word.load()
        except Exception as error:
            return error
        if seen != self.expected:
            return seen
        return self._refusal(problem) if problem else None

    def _refusal(self, problem: int) -> Exception:
        """Say what keeps the kernel from waiting for a word that can be loaded."""
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

    def tell(self) -> None:
        """Wake the task, or if its loop is gone, somebody else."""
        if not self._call(self._wake):
            self.pass_on()

    def _wake(self) -> None:
        self.told.set()

    def pass_on(self) -> None:
        """Let another waiter have a notification that this one may have got (futex.3)."""
        with suppress(MappedFileError, OSError, anyio.ClosedResourceError):
            if self.word.load() != self.expected:
                self.word._notify(1)  # noqa: SLF001  the two are one mechanism

    def close(self) -> None:
        """End the wait, as the file is being closed or was reopened; on the loop thread."""
        if _leave(self):
            told = "the file was closed while a task waited"
            retired = self._core.retired
            self.outcome = self._core.ended() if retired else anyio.ClosedResourceError(told)
        self.told.set()

    def expire(self, timeout: float) -> None:
        """End the wait, as its time is over; on the loop thread."""
        if _leave(self):
            still = f"the word at {self.word.offset} is still {self.expected}"
            self.outcome = TimeoutError(f"{self._core.path}: {still} after {timeout} seconds")
            self.told.set()


class _Post:
    """One thread and those who wait in it."""

    __slots__ = ("gone", "waiters", "wakeup")

    def __init__(self) -> None:
        self.wakeup = Wakeup()
        self.waiters: list[_Waiter] = []
        #: Left before they were told; the kernel may know of them until the call returns.
        self.gone: list[_Waiter] = []

    def serve(self) -> None:
        """Wait until nobody waits here any more; the thread's job, which does not raise."""
        try:
            self._serve()
        except Exception as error:
            with _books:
                _posts.remove(self)
                waiters, self.waiters = self.waiters, []
                for waiter in waiters:
                    waiter.outcome = error
            for waiter in waiters:
                waiter.tell()

    def _serve(self) -> None:
        while True:
            with _books:
                count = self.wakeup.count()
                self.gone += [waiter for waiter in self.waiters if waiter.abandoned]
                self.waiters = [waiter for waiter in self.waiters if not waiter.abandoned]
                waiting, gone = self.waiters[:], self.gone[:]
                self.gone.clear()
                if not waiting and not gone:
                    _posts.remove(self)  # futex.2
                    return
            while gone:
                gone.pop().pass_on()
            if not waiting:
                continue  # nobody would ring any more
            found = self.wakeup.wait(count, [(w.word, w.expected) for w in waiting])
            self._settle([(waiting[i], problem) for i, problem in found])

    def _settle(self, found: list[tuple[_Waiter, int]]) -> None:
        for waiter, problem in found:
            outcome = waiter.look(problem)
            if outcome is None:
                continue
            with _books:
                if waiter not in self.waiters:
                    continue  # it is among the gone
                self.waiters.remove(waiter)
                waiter.outcome = outcome
            waiter.tell()


_books = Mutex()
_posts: list[_Post] = []


def _forget() -> None:
    global _books
    _books = Mutex()  # futex.5: the thread that may have held the other one is not in this process
    _posts.clear()


os.register_at_fork(after_in_child=_forget)


def _find_abandoned(phase: str, info: dict[str, int]) -> None:
    """Have posts look for waiters whose loop was closed, before garbage is collected (futex.4)."""
    if phase == "start" and info["generation"] >= OLD_GENERATION:
        for post in tuple(_posts):  # not under _books: it may be this thread that has them
            if any(waiter.abandoned for waiter in tuple(post.waiters)):
                post.wakeup.wake()


gc.callbacks.append(_find_abandoned)


def _enter(waiter: _Waiter) -> None:
    """Have a post wait for a word from now on."""
    with _books:
        post = next((post for post in _posts if len(post.waiters) < POST_WAITERS), None)
        fresh = post is None
        if post is None:
            post = _Post()
            _posts.append(post)
        post.waiters.append(waiter)
        waiter.post = post
    if not fresh:
        post.wakeup.wake()
        return
    try:
        run_in_thread(post.serve)
    except RuntimeError:  # no thread can be started
        with _books:
            _posts.remove(post)
        raise


def _leave(waiter: _Waiter) -> bool:
    """Take a waiter out before it is told; false if its outcome was there first."""
    post = waiter.post
    assert post is not None
    with _books:
        if waiter not in post.waiters:
            return False
        post.waiters.remove(waiter)
        post.gone.append(waiter)
    post.wakeup.wake()
    return True


def look_again() -> None:
    """Have all posts look at their words, as a file became shorter; in any thread."""
    with _books:
        posts = _posts[:]
    for post in posts:
        post.wakeup.wake()


async def wait_for_change(
    core: FileCore, word: Word, expected: int, timeout: float | None = None
) -> int:
    """Wait until a word is not what is expected, and return what it then was.

    The time limit is for waiting: a word that differs already is looked at in any case.
    """
    core.check_current()
    seen = word.load()
    if seen != expected:
        await core.workers.give_way()
        return seen
    core.workers.check_loop()
    waiter = _Waiter(core, word, expected)
    _enter(waiter)
    core.at_close.add(waiter.close)
    # No scope of anyio's: it keeps the tasks in it alive when their loop is closed.
    cancel = (
        None if timeout is None else call_later(max(timeout, 0), partial(waiter.expire, timeout))
    )
    try:
        await waiter.told.wait()
    except BaseException:
        if not _leave(waiter):
            waiter.pass_on()
        raise
    finally:
        core.at_close.discard(waiter.close)
        if cancel is not None:
            cancel()
    outcome = waiter.outcome
    assert outcome is not None
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
