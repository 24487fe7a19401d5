"""Following an object of a store that is overwritten, or a pointer to one.

``_snapshot/follower`` puts generations in service. This module gives it candidates: it polls the
store with a request that asks only for a state other than the last one. All who follow the same key
in a cache share these requests.

If a trial fails because of the store, the next poll tries the object again. If the object itself
was found bad, it is not tried again until the store has another one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio.abc import AsyncResource

from .._runtime.callbacks import Listeners, call_user
from .._runtime.workers import OnCancel, Workers
from .._snapshot.follower import Follower, News
from .._snapshot.live import Generations
from .counters import Counters
from .obstore import source_of_url
from .pointers import pointed_to
from .polls import Poll
from .remote_snapshot import Closer, RemoteSnapshot, SharedSnapshot
from .source import RemoteSource, RemoteState

T = TypeVar("T")
Use = Callable[[RemoteSnapshot], Awaitable[Any]]


class RemoteGeneration(SharedSnapshot):
    """A snapshot that is in service, or may come into service.

    Attributes:
        named: the state of the followed object when this was opened; with a pointer, the state of
            the pointer.
    """

    __slots__ = ("named",)

    named: RemoteState

    @property
    def resource(self) -> Closer:
        """What closes its files; it outlives the snapshot."""
        return self._closer

    @property
    def is_held(self) -> bool:
        """Whether there is a hold on it."""
        return self._holds.any

    def is_of(self, state: Any, *, strictly: bool = False) -> bool:
        """Tell whether the followed object was in this state when the snapshot was opened."""
        del strictly
        return bool(state == self.named)

    def is_same_as(self, other: RemoteGeneration) -> bool:
        """Tell whether another generation is of the same object in the same state."""
        return self._entry.identity.key == other._entry.identity.key

    def is_changed_in(self, other: RemoteGeneration) -> bool:
        """Return False: a store never changes an object in place."""
        del other
        return False

    def retire(self) -> None:
        """Close when there is no hold on it, even if something still refers to it."""
        if self._holds.refuse():
            self._closer.start()

    async def ended(self) -> None:
        """Wait until it is closed after ``retire``."""
        await RemoteSnapshot.aclose(self)


@dataclass(frozen=True, slots=True)
class Followed:
    """The arguments of ``RemoteCache.follow``, checked."""

    source: str | RemoteSource
    poll_interval: float
    pointer: bool
    prewarm: str
    validate: Use | None
    load: Use | None


class PolledSource:
    """Polls a store for the object that is followed; a source of ``_snapshot/follower``.

    Args:
        asked: what to follow, and how.
        workers: run the requests.
        opener: opens the object of a source as it is now.
        failed: the listeners that get the error of a poll that fails.
        counters: the counters of the cache.
        poll: what the store said last of the object; shared with others who follow it.
    """

    def __init__(
        self,
        asked: Followed,
        workers: Workers,
        opener: Callable[[RemoteSource], Awaitable[RemoteGeneration]],
        failed: Listeners[Exception],
        counters: Counters,
        poll: Poll,
    ) -> None:
        self._counters = counters
        self._poll = poll
        self._asked = asked
        self._workers = workers
        self._opener = opener
        self._failed = failed
        self._source: RemoteSource | None = None
        self._over = anyio.Event()
        #: The state that was tried last, unless its trial has to be repeated.
        self._settled: RemoteState | None = None
        self._failing = False

    @property
    def path(self) -> str:
        """The address that is followed."""
        return "" if self._source is None else self._source.url

    @property
    def is_closed(self) -> bool:
        """Whether following has ended."""
        return self._over.is_set()

    async def begin(self) -> None:
        """Make the source, if a URL is followed."""
        source = self._asked.source
        self._source = await self._ask(source_of_url, source) if isinstance(source, str) else source

    async def next(self) -> News:
        """Wait until the store has an object to try: another one, or one whose trial failed."""
        poll, interval = self._poll, self._asked.poll_interval
        while True:
            with anyio.move_on_after(poll.due_in(interval)):
                await self._over.wait()
            if self.is_closed:
                raise StopAsyncIteration
            await poll.refresh(self._stat, interval)
            if poll.failure is not None:
                if not self._failing and not self.is_closed:
                    self._failed.tell(poll.failure)
                self._failing = True
                continue
            self._failing = False
            # Compare with the state as it is now: a trial may have ended during the request.
            if poll.state is not None and poll.state != self._settled:
                return News(poll.state)

    async def _stat(self, known: RemoteState | None) -> RemoteState | None:
        source = self._source
        assert source is not None
        self._counters.add(heads=1)
        return await self._ask(source.stat, known)

    async def open(self) -> RemoteGeneration:
        """Open the object, or the object that the pointer names, as it is now."""
        source = self._source
        assert source is not None
        if not self._asked.pointer:
            generation = await self._opener(source)
            generation.named = generation.state
            return generation
        self._counters.add(heads=1, gets=1)
        named = await self._ask(source.stat, None)
        assert named is not None  # there was no condition
        generation = await self._opener(await self._ask(pointed_to, source, named))
        generation.named = named
        return generation

    async def examine(
        self, serving: Callable[[], RemoteSnapshot | None], candidate: RemoteGeneration
    ) -> Any:
        """Prewarm, validate and load a candidate; return its value, or raise if it is bad."""
        asked = self._asked
        try:
            before = serving()
            if asked.prewarm == "all":
                await candidate.prewarm()
            elif asked.prewarm == "hot" and before is not None:
                await candidate.prewarm_like(before)
            # Functions of the application run in tasks of their own. A stray cancellation in one
            # would otherwise end following, and not just the trial.
            if asked.validate is not None:
                answer = await call_user(_call_async, asked.validate, candidate)
                if answer is False:
                    raise ValueError(f"{self.path}: validate returned False, so it is not served")
            value = None
            if asked.load is not None:
                value = await call_user(_call_async, asked.load, candidate)
        except OSError:
            raise  # the next poll tries it again
        except Exception:
            self._settled = candidate.named
            raise
        self._settled = candidate.named
        return value

    def end(self) -> None:
        """End following: poll no more."""
        self._over.set()

    async def _ask(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that sends a request, in a worker of the cache (R10)."""
        workers = self._workers
        return await workers.run(
            workers.reads, partial(function, *args), on_cancel=OnCancel.ABANDON
        )


async def _call_async(function: Use, given: RemoteSnapshot) -> Any:
    answer = function(given)
    if not isinstance(answer, Awaitable):
        raise TypeError(f"{function!r} returned {answer!r}: it has to be async")
    return await answer


class LiveRemoteSnapshot(AsyncResource):
    """The newest good object of a key, as a snapshot; ``RemoteCache.follow`` makes it.

    Ask for ``current`` when a piece of work begins, and use that snapshot until the work ends. The
    snapshot is one version of the object. It stays open for as long as you refer to it or to a view
    of it, even when a newer one is in service.

    Concurrency: for any number of tasks of the event loop in which it was made.
    """

    __slots__ = ("__weakref__", "_follower")

    def __init__(self, follower: Follower[RemoteGeneration, Any]) -> None:
        self._follower = follower

    @property
    def current(self) -> RemoteSnapshot:
        """The snapshot in service; the same object until the next one is in service.

        It is closed when nothing refers to it: its ``aclose`` does nothing.

        Raises:
            anyio.ClosedResourceError: if following has ended.
        """
        return self._follower.current

    @property
    def value(self) -> Any:
        """What ``load`` returned for the snapshot in service; None without ``load``.

        Raises:
            As ``current``.
        """
        return self._follower.value

    @property
    def generation(self) -> int:
        """How many objects have been in service so far; 1 for the first."""
        return self._follower.number

    @property
    def url(self) -> str:
        """The address that is followed, without user, password and query."""
        return self._follower.path

    @property
    def closed(self) -> bool:
        """Whether following has ended, by ``aclose`` or with the cache."""
        return self._follower.over

    def __aiter__(self) -> Generations[RemoteSnapshot]:
        """Iterate over generations: the current one, then each that follows it.

        A slow iteration skips generations, and yields the newest. The iteration ends when following
        ends.
        """
        follower = self._follower
        return Generations(follower, lambda: follower.current)

    async def aclose(self) -> None:
        """End following and close all generations, each after the last hold on it.

        Iterations end. A trial under way is cancelled. A second call waits like the first.

        Cancellation: ends the wait; each generation is closed all the same when its last hold ends.
        """
        await self._follower.aclose()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"generation {self.generation}"
        return f"<LiveRemoteSnapshot {self.url} {state}>"
