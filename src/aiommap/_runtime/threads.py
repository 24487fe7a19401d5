"""Threads that run jobs: as many as there are jobs at a time, and idle ones are used again.

Neither anyio's nor concurrent.futures' pool, because a hop through them costs twice as much
(docs/decisions), and a hop is most of what a durable write costs beside the disk itself.

Invariants.
  1  A worker is in ``_idle`` only while it waits for a job, or is about to; whoever takes it out
      owns it and must give it one. Taking out and putting in are single operations, so no lock is
      needed.
  2  A forked child starts with no workers.
"""

from __future__ import annotations

import _thread
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]

#: A lock between threads, for state that several of them touch; held for moments, never over a
#: wait, so that the loop thread may take it too.
Mutex = threading.Lock
#: The same, where what runs at any moment, as finalizers do, may take it in a thread that has it.
ReentrantMutex = threading.RLock

#: A thread that had nothing to do for so long ends.
IDLE_SECONDS = 10.0

_idle: deque[_Worker] = deque()
os.register_at_fork(after_in_child=_idle.clear)


class Forks:
    """Counts the forks between the process that loaded this module and this one (I10)."""

    count = 0

    @classmethod
    def add(cls) -> None:
        """Count one; called in the child."""
        cls.count += 1


os.register_at_fork(after_in_child=Forks.add)


def run_in_thread(job: Job, tell: Job | None = None) -> None:
    """Run a job in a thread of its own; it must not raise. Who bounds their number is the caller.

    What tells that the job is done is called when the thread can be had for the next one: else
    who is told, and has a next one at once, would wake another thread with colder caches.

    The threads are daemons: a job that hangs, on a dead network file system for instance, does
    not keep the interpreter from ending.
    """
    try:
        worker = _idle.pop()  # the one that was busy last has the warmest caches
    except IndexError:
        worker = _Worker()
    worker.give(job, tell)


def check_threads() -> None:
    """Raise RuntimeError if no thread can be started, for code that would not survive that.

    Two are started at once, as the end of one may take a moment more than waiting for it.
    """
    held, probes = threading.Event(), []
    try:
        for _ in range(2):
            probe = threading.Thread(target=held.wait, name="aiommap probe", daemon=True)
            probe.start()
            probes.append(probe)
    finally:
        held.set()
        for probe in probes:
            probe.join()


class _Worker:
    __slots__ = ("_jobs",)

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Job, Job | None]] = queue.SimpleQueue()
        thread = threading.Thread(target=self._run, name="aiommap worker", daemon=True)
        # Not from here: start() waits until the thread runs, and so for the GIL, which others may
        # keep for as long as they like while the event loop stands still.
        _thread.start_new_thread(self._start, (thread,))

    def _start(self, thread: threading.Thread) -> None:
        try:
            thread.start()
        except RuntimeError:  # no more threads: this one has to do
            self._run()

    def give(self, job: Job, tell: Job | None) -> None:
        self._jobs.put((job, tell))

    def _run(self) -> None:
        # A thread inherits the mask of who started it; one that blocks SIGBUS dies of a fault.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGBUS})
        while True:
            try:
                job, tell = self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                try:
                    _idle.remove(self)
                except ValueError:  # threads.1: somebody has just taken it out, with a job
                    job, tell = self._jobs.get()
                else:
                    return
            job()
            _idle.append(self)
            if tell is not None:
                tell()
            del job, tell  # what they refer to must not live until the next one comes
