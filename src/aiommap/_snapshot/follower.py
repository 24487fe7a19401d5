"""Following a source: what is in service, what is on trial, and how long generations stay open.

Terms. A *source* names one thing at any moment, such as the file at a path. It opens that thing,
and sends *news* when it may name another one. A *generation* is a thing that was opened, found good
and put in service. A *candidate* is on *trial*: it is open, and not yet found good. A trial returns
a *value*, such as what ``load`` made of the file. A trial is *overtaken* when the source names
something else before the trial ends.

Theory of operation. There are two background tasks. One listens to the source: each piece of news
only means that the source may name something else now. The other runs one trial after another, each
of the thing that the source names at that moment. So many files that come and go quickly at a path
cost one trial. It does not matter how a file got there: renamed, linked, reached by a symbolic
link, created, or written in place.

No call closes a generation: ``_snapshot/generation`` says why, and how it is closed.

Invariants.
  1  ``current`` is always a generation that was found good, and ``value`` is the value of its
     trial. One step on the loop thread replaces both, so a caller gets the old ones or the new
     ones, and the generation is open.
  2  A generation is not closed while anything refers to it, unless the follower or the source is
     closed. In this module only ``_current`` and ``_candidate`` refer to one, and perhaps a value.
  3  An overtaken candidate is never put in service, and its failure is not reported. But after
     ``MAX_OVERTAKEN`` overtaken trials in a row the next one counts even if it is overtaken, too.
     Otherwise a path that is replaced faster than files can be tried would stay with its first
     file.
  4  When the source stops changing, the thing that it names is tried last; if it is good, it is
     ``current``. While that is being opened its state is unknown, so every change counts.
  5  A failed trial is reported, and changes nothing else. Before the first generation a source may
     name nothing, and that is no failure.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import anyio

from .._errors import ForkedError, StaleSnapshotError
from .._logs import FOLLOWING
from .._runtime.callbacks import Listeners
from .._runtime.loops import spawn_user_task
from .._runtime.threads import Forks

#: How many overtaken trials in a row are abandoned.
MAX_OVERTAKEN = 3


class Resource(Protocol):
    """What a generation keeps open."""

    @property
    def is_closed(self) -> bool: ...
    async def aclose(self) -> None: ...


class Candidate(Protocol):
    """A thing that a source opened; as a generation it stays open while anything refers to it."""

    @property
    def resource(self) -> Resource: ...
    @property
    def size(self) -> int: ...
    @property
    def is_held(self) -> bool: ...

    def is_of(self, state: Any, *, strictly: bool = False) -> bool:
        """Tell whether it is the thing that a source named by a state.

        With ``strictly``, return False if it may have been changed in place since it was opened.
        """
        ...

    def is_same_as(self, other: Self, /) -> bool:
        """Tell whether another candidate is the same thing in the same state."""
        ...

    def is_changed_in(self, other: Self, /) -> bool:
        """Tell whether another candidate is the same thing, changed in place."""
        ...

    def retire(self) -> None:
        """Close when there is no hold on it, even if something still refers to it."""
        ...

    async def ended(self) -> None:
        """Wait until it is closed after ``retire``."""
        ...


@dataclass(frozen=True, slots=True)
class News:
    """Says what a source names now.

    Attributes:
        state: the state that tells it from others, for ``Candidate.is_of``; None if it names
            nothing.
        doubtful: whether it may have been changed in place even if its state does not show that.
    """

    state: Any
    doubtful: bool = False


Served = TypeVar("Served", bound=Candidate)
Opened = TypeVar("Opened", bound=Candidate, covariant=True)
Value = TypeVar("Value")


class Source(Protocol[Opened]):
    """What a follower follows. ``begin`` is called before ``open``, so that no news is missed."""

    @property
    def path(self) -> str:
        """Its name in errors and logs."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, so that a failure to open is not reported."""
        ...

    async def begin(self) -> None:
        """Begin to watch for news."""
        ...

    async def next(self) -> News:
        """Wait for news; raise StopAsyncIteration if there will be none."""
        ...

    async def open(self) -> Opened:
        """Open the thing that it names now; raise FileNotFoundError if it names nothing."""
        ...

    def end(self) -> None:
        """Stop watching for news: ``next`` raises StopAsyncIteration."""
        ...


class Follower(Generic[Served, Value]):
    """Keeps the newest good generation of a source in service.

    Args:
        source: what to follow.
        trial: raises if a candidate is not good, and returns its value.
        failed: the listeners that get the error of a failed trial, or of a change in place.
        required: whether ``start`` raises if there is no good first generation.
    """

    def __init__(
        self,
        source: Source[Served],
        trial: Callable[[Served], Awaitable[Value]],
        failed: Listeners[Exception],
        *,
        required: bool = True,
    ) -> None:
        self._forks = Forks.count
        self._source = source
        self._try_out = trial
        self._failed = failed
        self._required = required
        #: The generation in service with its value; one tuple, so that one step replaces both.
        self._current: tuple[Served, Value] | None = None
        #: The resource of the generation that is in service, or was when following ended.
        self._serving: Resource | None = None
        self._candidate: Served | None = None
        #: Number of the generation in service, from 1; 0 before the first.
        self.number: int = 0
        #: Whether following has ended.
        self.over: bool = False
        #: The state that the last news brought.
        self._named: Any = None
        #: Whether bytes of the generation in service may have been overwritten.
        self._doubted: bool = False
        #: Whether a candidate is being opened.
        self._opening: bool = False
        #: Set when the source may name something that is neither in service nor on trial.
        self._wanted = anyio.Event()
        self._overtaken = 0
        self._trial = anyio.CancelScope()
        self._tasks = 0
        self._ended = anyio.Event()
        self._moved = anyio.Event()
        #: Generations that are not garbage yet, and resources that may still be open.
        self._alive: weakref.WeakSet[Served] = weakref.WeakSet()
        self._resources: set[Resource] = set()

    @property
    def path(self) -> str:
        """The name of what is followed."""
        return self._source.path

    @property
    def current(self) -> Served:
        """The generation in service (follower.1)."""
        return self._in_service()[0]

    @property
    def value(self) -> Value:
        """The value of the generation in service."""
        return self._in_service()[1]

    @property
    def ready(self) -> bool:
        """Whether a generation is in service."""
        return self._current is not None

    def _in_service(self) -> tuple[Served, Value]:
        if self.over:
            raise self._over()
        if self._current is None:
            raise anyio.WouldBlock(
                f"there is nothing good at {self.path} yet: await wait_ready(), or ask ready first"
            )
        return self._current

    def _over(self) -> anyio.ClosedResourceError:
        return anyio.ClosedResourceError(f"{self.path} is not followed any more: follow it again")

    async def start(self) -> None:
        """Put the first generation in service; if it is required, raise what is wrong with it."""
        try:
            await self._source.begin()
            if self._required:
                await self._try_first()
            else:
                await self._try()
        except BaseException:
            self._source.end()
            self._end()
            self._ended.set()
            raise
        for task in (self._listen, self._try_each):
            self._tasks += 1
            spawn_user_task(self._run, task)

    async def _try_first(self) -> None:
        first = await self._open()
        try:
            self._put_in_service(first, await self._try_out(first))
        except BaseException:
            first.retire()
            raise

    @property
    def held(self) -> bool:
        """Whether there is a hold on any generation."""
        return any(generation.is_held for generation in self._alive)

    async def moved(self) -> None:
        """Wait for the next generation, or for the end of following."""
        await self._moved.wait()

    async def wait_ready(self) -> None:
        """Wait for the first generation."""
        self.check_process()
        while not self.number and not self.over:
            await self.moved()
        if self.over:
            raise self._over()

    def check_process(self) -> None:
        """Raise in a forked child, where nothing listens to news (I10)."""
        if self._forks != Forks.count:
            raise ForkedError(self.path)

    async def aclose(self) -> None:
        """End following, and close each generation as soon as there is no hold on it."""
        if self._forks != Forks.count:
            for resource in self._resources:
                await resource.aclose()
            return
        self._source.end()
        self._end()
        for generation in [*self._alive]:
            generation.retire()
        await self._ended.wait()
        await self._wait_closed()

    async def _wait_closed(self) -> None:
        """Wait until everything is closed; raise only the failure of the generation in service."""
        closing = {resource: resource.aclose for resource in self._resources}
        closing |= {generation.resource: generation.ended for generation in self._alive}
        failure: Exception | None = None
        for resource, ended in closing.items():
            try:
                await ended()
            except Exception as error:
                if resource is self._serving:
                    failure = error
                else:
                    FOLLOWING.warning("%s: closing an old generation failed: %s", self.path, error)
        if failure is not None:
            raise failure

    # The background tasks. They are in no task group of anyio: if the loop is closed while a task
    # waits, anyio's record of the task keeps it, and all that it refers to, for good.

    async def _run(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except GeneratorExit:
            raise  # the loop is gone, and nobody waits for the end any more
        except Exception:
            FOLLOWING.exception("following %s met an error and has ended", self.path)
            self._end_task()
        except BaseException:
            self._end_task()
            raise
        else:
            self._end_task()

    def _end_task(self) -> None:
        """End the other task, too; wake ``aclose`` when both have ended."""
        self._source.end()
        self._end()
        self._tasks -= 1
        if not self._tasks:
            self._ended.set()

    async def _listen(self) -> None:
        while True:
            try:
                news = await self._source.next()
            except StopAsyncIteration:
                return
            self._named = news.state
            if self._opening or not self._has(news.state, strictly=news.doubtful):
                self._doubted = self._doubted or news.doubtful
                self._wanted.set()
                if self._candidate is not None and self._overtaken < MAX_OVERTAKEN:
                    self._trial.cancel()

    def _has(self, state: Any, *, strictly: bool) -> bool:
        """Tell whether the state is of the candidate or, without one, of the current generation."""
        if self._candidate is not None:
            return self._candidate.is_of(state, strictly=strictly)
        return self._current is not None and self._current[0].is_of(state, strictly=strictly)

    async def _try_each(self) -> None:
        while True:
            if not self.over:  # a trial may have replaced the event that ``_end`` sets
                await self._wanted.wait()
            if self.over:
                return
            self._wanted = anyio.Event()
            seen_through = self._overtaken >= MAX_OVERTAKEN
            with anyio.CancelScope() as self._trial:
                await self._try()
            # A trial that failed while the source changed counts as overtaken, too.
            again = self._wanted.is_set() and not seen_through
            self._overtaken = self._overtaken + 1 if again else 0

    async def _try(self) -> None:
        """Try the thing that the source names, and put it in service if it is good."""
        self._opening = True
        try:
            candidate = await self._open()
        except Exception as error:
            self._reject(error)
            return
        finally:
            self._opening = False
        self._candidate = candidate
        served = False
        try:
            if not self._is_news(candidate):
                return
            value = await self._try_out(candidate)
            if not self._is_overtaken():
                served = self._put_in_service(candidate, value)
        except Exception as error:
            self._reject(error)
        finally:
            self._candidate = None
            if not served:
                candidate.retire()

    def _is_news(self, candidate: Served) -> bool:
        """Tell whether a candidate needs a trial; report if the one in service was changed."""
        if candidate.is_of(self._named, strictly=True):
            self._wanted = anyio.Event()  # the news came while this candidate was being opened
        if self._current is None:
            return not self.over and not self._is_overtaken()
        current, _ = self._current
        same = current.is_same_as(candidate)
        if current.is_changed_in(candidate) or (same and self._doubted):
            self._failed.tell(StaleSnapshotError(self.path, current.size, candidate.size))
        return (self._doubted or not same) and not self._is_overtaken()

    def _is_overtaken(self) -> bool:
        return self._wanted.is_set() and self._overtaken < MAX_OVERTAKEN

    async def _open(self) -> Served:
        candidate = await self._source.open()
        self._alive.add(candidate)
        self._resources = {resource for resource in self._resources if not resource.is_closed}
        self._resources.add(candidate.resource)
        return candidate

    def _put_in_service(self, generation: Served, value: Value) -> bool:
        if self.over:
            return False
        self._current, self._serving = (generation, value), generation.resource
        self._doubted = self._doubted and self._wanted.is_set()
        self.number += 1
        FOLLOWING.info(
            "%s: generation %d is in service: %d bytes", self.path, self.number, generation.size
        )
        moved, self._moved = self._moved, anyio.Event()
        moved.set()
        return True

    def _reject(self, error: Exception) -> None:
        if self._source.is_closed or self._is_overtaken():
            return
        if self._current is None and isinstance(error, FileNotFoundError):
            FOLLOWING.info("%s: there is nothing yet", self.path)  # that is no failure (follower.5)
            return
        self._failed.tell(error)

    def _end(self) -> None:
        """End following: drop the generation in service, and wake all who wait."""
        self.over = True
        self._current = None
        self._moved.set()
        self._wanted.set()
        self._trial.cancel()
