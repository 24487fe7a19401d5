"""The pool of worker threads. The process has one pool, and this module owns it.

Who owns which thread:

    this module     the workers. A worker is started when a job finds no idle one, and ends after
                    ``IDLE_SECONDS`` without a job. ``Workers`` limits how many jobs a hub has at
                    a time; ``FlushScheduler`` limits its background flushes.
    kept_threads    the clock and the reserve: one thread each, for as long as somebody keeps them.
    a scanner of    its own thread, for as long as a path is watched (``_watch/scanner``).
    ``_watch``

We use neither anyio's pool nor that of concurrent.futures. A hop through them costs twice as much
(docs/decisions), and a hop is most of what a durable write costs beside the disk itself.

Invariants.
  1  A worker is in ``_idle`` only while it waits for a job, or is about to. Whoever takes it out
      owns it and must give it a job. Taking out and putting in are single operations, so no lock
      is needed.
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

#: A lock between threads. If the loop thread takes a mutex, no holder of it may wait meanwhile.
Mutex = threading.Lock
#: The same for a mutex that finalizers take: one may run at any moment in the thread that holds it.
ReentrantMutex = threading.RLock
#: Returns the number of the calling thread.
this_thread = threading.get_ident

#: An idle worker ends after this time.
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
    """Run a job in a worker. It must not raise. The caller limits how many jobs there are.

    ``tell`` runs after the job, and only after this worker is idle again. Otherwise the waiter's
    next job would start a second, colder thread.

    The threads are daemons. A job may hang, on a dead network file system for instance, and the
    interpreter still ends.

    Raises:
        RuntimeError: if a thread is needed and none can be started.
    """
    try:
        worker = _idle.pop()  # the one that was busy last has the warmest caches
    except IndexError:
        worker = _Worker()
    worker.give(job, tell)


def run_apart(job: Job) -> None:
    """Run a job in a worker; or here if no thread can be started, as at the interpreter's end.

    For finalizers: they may run on the loop thread, which must not wait (I1).
    """
    try:
        run_in_thread(job)
    except RuntimeError:
        job()


def check_threads() -> None:
    """Raise RuntimeError if no thread can be started; for code that cannot handle that later.

    It starts two at once: a thread may end a moment after the wait for it returns.
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
        # Another thread calls start(): it waits until the new thread runs, and so for the GIL,
        # which other threads may keep for long. The event loop would stand still.
        _thread.start_new_thread(self._start, (thread,))

    def _start(self, thread: threading.Thread) -> None:
        try:
            thread.start()
        except RuntimeError:  # no second thread can be started: use this one
            self._run()

    def give(self, job: Job, tell: Job | None) -> None:
        self._jobs.put((job, tell))

    def _run(self) -> None:
        # A thread inherits the signal mask of its starter. If SIGBUS is blocked, a fault kills us.
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
            del job, tell  # else the objects they refer to would live until the next job
