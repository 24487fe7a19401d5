"""Worker threads: who may use how many of them, and the rules for leaving a wait early.

Terms. A *hop* is one trip to a worker thread and back, some 40 microseconds. A *job* is one hop
that runs to its end once a thread has begun it. Its thread and the cancellation of its waiter both
try to claim it: whichever is first decides whether it runs.

Invariants.
  1  Every hop takes a token of one of our own limiters, never of the application's (I12). Reads,
      stores, flushes, and opening or closing have separate limiters, so none can starve another.
  2  A job that has begun ends before the cancellation of its waiter is delivered. A job that has
      not begun is withdrawn and never runs (I8). This also holds for asyncio's own
      ``Task.cancel``, from which an anyio cancel scope does not shield. ``OnCancel`` names the
      exceptions.
  3  Background tasks belong to no scope of the caller: one task may open a file and another close
      it. Their failures reach a waiter, never the event loop. Nothing cancels them, not even the
      end of ``asyncio.run``, which cancels all tasks it knows of.
  4  KeyboardInterrupt and SystemExit leave the loop from a callback of the application as they do
      from any other task; on trio they leave through the main task.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, Unpack, cast

from .._native import PoolQueue, time_slice_renew, time_slice_spent, time_slice_yield
from .callbacks import nothing
from .engine import Engine
from .event_loop import Event, Waiter
from .kept_threads import reserve, run_in_some_thread
from .loops import load_backend, running_loop, wait_out
from .threads import Forks

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DEFAULT_READERS = 16
STORE_WORKERS = 4
FLUSH_WORKERS = 4
CONTROL_WORKERS = 2


class OnCancel(Enum):
    """The fate of a job whose waiter is cancelled."""

    #: Withdraw it if it has not begun, else leave it behind: it fills only a buffer of its own.
    ABANDON = auto()
    #: Withdraw it if it has not begun, else wait for it (workers.2).
    WITHDRAW = auto()
    #: Wait for it even if it has not begun, because it undoes something.
    WAIT = auto()


class _Job:
    """One hop. Its thread and the cancellation of its waiter both try to claim it."""

    __slots__ = ("_claim", "_ended", "_function", "error", "result", "withdrawn")

    def __init__(self, function: Callable[[], Any], ended: Callable[[], object]) -> None:
        self._claim = threading.Lock()
        self._function = function
        self._ended = ended
        self.withdrawn: bool = False
        self.result: Any = None
        self.error: BaseException | None = None

    def claim(self) -> bool:
        return self._claim.acquire(blocking=False)

    def withdraw(self) -> bool:
        """Keep the job from running, if it has not begun; tell whether it will never run."""
        self.withdrawn = self.withdrawn or self.claim()
        return self.withdrawn

    def run(self) -> None:
        """Run in a worker, unless it was withdrawn."""
        if self.claim():
            try:
                self.result = self._function()
            except BaseException as error:
                self.error = error

    def end(self) -> None:
        """Wake the waiter, once. Drop the functions, which refer to the job."""
        ended, self._ended, self._function = self._ended, nothing, nothing
        ended()

    def take(self) -> tuple[Any, BaseException | None]:
        """Return the result and the error, and keep neither.

        The traceback of an error refers to the job it ran in.
        """
        result, self.result = self.result, None
        error, self.error = self.error, None
        return result, error

    def outcome(self) -> Any:
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # else its traceback and the job would keep each other alive
        return self.result


class Limiter:
    """Tokens for jobs, given in the order of the requests.

    For the loop thread. Jobs wait here for tokens, or functions that begin something. No task
    waits here, because a task could be cancelled meanwhile.
    """

    __slots__ = ("_free", "_is_giving", "_waiting", "total_tokens")

    def __init__(self, tokens: int) -> None:
        self.total_tokens: int = tokens
        self._free = tokens
        #: Whether ``give`` runs: a function that it begins may give its token back at once.
        self._is_giving = False
        self._waiting: deque[tuple[_Job | None, Callable[[], object]]] = deque()

    def take(self) -> bool:
        """Take a token if one is free."""
        if not self._free:
            return False
        self._free -= 1
        return True

    @property
    def queued(self) -> int:
        """How many wait."""
        return sum(job is None or not job.withdrawn for job, _ in self._waiting)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits, or did and was withdrawn; in any thread."""
        return bool(self._waiting)

    def begin(self, begin: Callable[[], object]) -> None:
        """Call a function that begins something once it has a token: at once, or at its turn."""
        if self.take():
            begin()
        else:
            self.queue(begin)

    def queue(self, begin: Callable[[], object], job: _Job | None = None) -> None:
        """Call a function that begins something at its turn, unless its job was withdrawn."""
        self._waiting.append((job, begin))

    def give(self) -> None:
        """Give a token back; the next in the queue that was not withdrawn gets it."""
        self._free += 1
        if self._is_giving:
            return
        self._is_giving = True
        try:
            while self._free and self._waiting:
                job, begin = self._waiting.popleft()
                if job is None or not job.withdrawn:
                    self._free -= 1
                    begin()
        finally:
            self._is_giving = False


class Workers:
    """The limiters of one hub, and the ways to run a job in a worker thread; for one loop."""

    __slots__ = (
        "__weakref__",
        "_checkpoint",
        "_closed",
        "_engine",
        "_find_token",
        "_forks",
        "_from_thread",
        "_loop",
        "_readers",
        "_release_engine",
        "_release_reserve",
        "_token",
        "call_soon",
        "control",
        "event",
        "flushes",
        "future_loop",
        "pause",
        "reads",
        "stores",
        "waiter",
    )

    def __init__(self, readers: int | None = None) -> None:
        load_backend()
        self._release_reserve = reserve.keep(self)
        #: A forked child has a copy of the loop, which must not answer for it.
        self._forks = Forks.count
        # Functions of the loop, kept here because each step to them would slow each durable write.
        self._loop = loop = running_loop()
        self._token, self._find_token = loop.token, loop.find_token
        self._checkpoint = loop.checkpoint
        self._from_thread = loop.call_from_thread
        self.pause: Awaitable[None] | None = loop.pause
        self.call_soon: Callable[[Callable[[], object]], object] = loop.call_soon
        self.event: Callable[[], Event] = loop.event
        self.future_loop: object | None = loop.future_loop
        self.waiter: Callable[[], Waiter[Any]] = loop.waiter
        #: The engine, kept from the first read or flush that uses it.
        self._engine: Engine | None = None
        self._release_engine: Callable[[], object] = nothing
        self._closed = False
        self._readers = readers
        self.reads: Limiter = Limiter(readers or DEFAULT_READERS)
        self.stores: Limiter = Limiter(STORE_WORKERS)
        self.flushes: Limiter = Limiter(FLUSH_WORKERS)
        self.control: Limiter = Limiter(CONTROL_WORKERS)

    def close(self) -> None:
        """Release the reserve and the engine; all files of these workers are closed."""
        self._release_reserve()
        self._release_engine()
        self._engine, self._closed = None, True

    def queue(self, device: int) -> PoolQueue | None:
        """Make the place of a file in the engine, for its reads.

        None if there is no engine, for want of a descriptor for instance; then use ``run``.
        """
        self.check_loop()
        engine = self._keep_engine()
        return None if engine is None else engine.queue(self, self._readers, device)

    def flush_queue(self, device: int) -> PoolQueue | None:
        """Make another place for the flushes of a file, which never wait for reads of the hub."""
        engine = self._keep_engine()
        return None if engine is None else engine.queue(self.flushes, None, device)

    def _keep_engine(self) -> Engine | None:
        if self._engine is None and not self._closed:
            try:
                self._engine = Engine.of_loop(self._loop)
            except (OSError, NotImplementedError):
                return None
            self._release_engine = self._engine.keep(self)
        return self._engine

    def call_from_thread(self, function: Callable[[], object]) -> bool:
        """Call a function on the loop soon, from any thread; False if the loop has ended."""
        try:
            self._from_thread(function)
        except RuntimeError:
            return False
        return True

    def on_loop(self) -> bool:
        """Tell whether this thread is the one that runs the loop."""
        try:
            return self._find_token() is self._token
        except RuntimeError:
            return False

    def call_on_loop(self, function: Callable[[], object]) -> None:
        """Call a function on the loop: at once in its own thread, soon in any other."""
        if self.on_loop():
            function()
        else:
            self.call_from_thread(function)

    @property
    def ended(self) -> bool:
        """Whether the loop was closed, so that its tasks will never wake; in any thread."""
        return self._loop.ended

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child of the one that made these workers."""
        return self._forks != Forks.count

    def check_loop(self, what: str = "a file or hub") -> None:
        """Raise unless this is the loop of these workers; a task of another would never wake."""
        try:  # the body of ``on_loop``, because each durable write would pay for the call
            here = self._find_token() is self._token
        except RuntimeError:
            here = False
        if not here or self._forks != Forks.count:
            raise RuntimeError(self._elsewhere(what))

    def _elsewhere(self, what: str) -> str:
        """Make the message for an object that is used outside its loop."""
        if self.forked:
            return f"{what} is used in a forked child: open it again in there"
        try:
            self._find_token()
        except RuntimeError:
            where = "a thread that runs no event loop"
        else:
            where = "another event loop"
        return (
            f"{what} is used in {where}, but it belongs to the event loop it was opened in: use it "
            "there, or open it again in this one"
        )

    async def checkpoint_if_due(self) -> bool:
        """If the time slice is spent, give way and see a cancellation; tell whether it was."""
        # In a forked child no other task may run: the copied tasks would do the parent's work, and
        # take events out of the queue that the two loops share.
        if not time_slice_spent() or self._forks != Forks.count:
            return False
        before = time_slice_yield()
        await self._checkpoint()
        time_slice_renew(before)
        return True

    async def run(
        self,
        limiter: Limiter,
        function: Callable[[Unpack[Ts]], T],
        *args: *Ts,
        on_cancel: OnCancel = OnCancel.WITHDRAW,
    ) -> T:
        """Run a job in a thread, and return its result or raise its error."""
        self.check_loop()
        done = self.event()
        job = self._start(limiter, partial(function, *args), done.set)
        try:
            await done.wait()
        except BaseException as error:
            over = on_cancel is not OnCancel.WAIT and job.withdraw()
            loop_ended = isinstance(error, GeneratorExit)  # then nothing can be awaited
            if not (over or loop_ended or on_cancel is OnCancel.ABANDON):
                await wait_out(done)
            raise
        return cast("T", job.outcome())

    def start(
        self,
        limiter: Limiter,
        function: Callable[[], T],
        ended: Callable[[T | None, BaseException | None], object],
    ) -> None:
        """Run a job that nobody withdraws; ``ended`` gets its result or error, on the loop.

        The caller makes sure that this is the loop thread.
        """

        def tell() -> None:
            ended(*job.take())

        job = self._start(limiter, function, tell)

    def _start(
        self,
        limiter: Limiter,
        function: Callable[[], T],
        ended: Callable[[], object],
    ) -> _Job:
        job = _Job(function, ended)
        if limiter.take():
            self._launch(limiter, job)
        else:
            limiter.queue(partial(self._launch, limiter, job), job)
        return job

    def _launch(self, limiter: Limiter, job: _Job) -> None:
        def end() -> None:
            try:
                job.end()
            finally:
                limiter.give()

        def tell() -> None:
            # A loop that has ended raises RuntimeError; nobody is left there to wake.
            with suppress(RuntimeError):
                self._from_thread(end)

        run_in_some_thread(job.run, tell)
