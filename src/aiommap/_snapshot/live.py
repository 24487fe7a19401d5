"""Live snapshots: always the newest good file of a path, swapped while readers go on.

``follow`` and what it returns; ``_snapshot/follower`` says how it works.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

import anyio.lowlevel
from anyio.abc import AsyncResource

from .._arguments import flag
from .._core.options import OpenOptions
from .._core.paths import absolute_path
from .._hub.hub import Hub, hub_or_new
from .._hub.opening import Opening
from .._logs import FOLLOWING
from .._runtime.callbacks import Listeners
from .file_source import FileSource
from .follower import Candidate, Follower
from .generation import Generation
from .snapshot import Snapshot
from .trial import Load, Validate, call_load, call_validate

if TYPE_CHECKING:
    import typing_extensions

    # In annotations, plain ``LiveSnapshot`` has no value, plain ``Generations`` yields snapshots.
    Value = typing_extensions.TypeVar("Value", covariant=True, default=None)
    Yielded = typing_extensions.TypeVar("Yielded", covariant=True, default=Snapshot)
else:
    Value = TypeVar("Value", covariant=True)
    Yielded = TypeVar("Yielded", covariant=True)
Served = TypeVar("Served", bound=Candidate)
Loaded = TypeVar("Loaded")


class Live(AsyncResource, Generic[Served, Value]):
    """The base of live snapshots and live folders: whether they are ready, and how they end."""

    __slots__ = ("__weakref__", "_follower", "_hub")

    def __init__(self, follower: Follower[Served, Value], hub: Hub | None) -> None:
        self._follower = follower
        #: The hub, if it was made for this object alone; else None.
        self._hub = hub

    @property
    def ready(self) -> bool:
        """Whether a generation is in service: true from the first good one to the end."""
        return self._follower.ready

    async def wait_ready(self) -> None:
        """Wait until a generation is in service; with ``required=True`` there is one already.

        Raises:
            anyio.ClosedResourceError: if following ends, or has ended.
        Cancellation: delivered at once.
        """
        await anyio.lowlevel.checkpoint()
        await self._follower.wait_ready()

    @property
    def generation(self) -> int:
        """How many generations have been in service so far; 1 for the first."""
        return self._follower.number

    @property
    def path(self) -> str:
        """The absolute path that is followed."""
        return self._follower.path

    @property
    def closed(self) -> bool:
        """Whether following has ended, by ``aclose`` or with the hub."""
        return self._follower.over

    async def aclose(self) -> None:
        """End following and close all generations, each after the last hold on it.

        Iterations end. A trial under way is cancelled, and this call waits for it. Views keep their
        pages. A second call waits like the first.

        Cancellation: ends the wait; each generation is closed all the same when its last hold ends.
        """
        try:
            await self._follower.aclose()
        finally:
            if self._hub is not None and not self._follower.held:
                await self._hub.aclose()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"generation {self.generation}"
        return f"<{type(self).__name__} {self.path} {state}>"


class LiveSnapshot(Live[Generation, Value], Generic[Value]):
    """The newest good file of a path, as a snapshot; ``aiommap.follow`` makes it.

    Ask for ``current`` when a piece of work begins, and use that snapshot until the work ends. The
    snapshot is one file. It stays open and mapped for as long as you refer to it or to a view of
    it, even when a newer one is in service. Use ``value`` in the same way. If your code awaits
    nothing between ``current`` and ``value``, both are of one generation.

    Concurrency: for any number of tasks of the event loop in which it was made.
    """

    __slots__ = ()

    @property
    def current(self) -> Snapshot:
        """The snapshot in service; the same object until the next one is in service.

        It is closed when nothing refers to it, and not before: its ``aclose`` does nothing, and
        ``async with live.current as s`` keeps it for the block. The end of following also closes
        it, after the last ``hold`` on it.

        Raises:
            anyio.WouldBlock: with ``required=False``, while there has been no good file.
            anyio.ClosedResourceError: if following has ended.
        """
        return self._follower.current

    @property
    def value(self) -> Value:
        """What ``load`` returned for the snapshot in service; None without ``load``.

        It is the same object until the next snapshot is in service, and is then dropped.

        Raises:
            As ``current``.
        """
        return self._follower.value

    def __aiter__(self) -> Generations:
        """Iterate over generations: the current one, then each that follows it."""
        follower = self._follower
        return Generations(follower, lambda: follower.current)


class Generations(Generic[Yielded]):
    """Iterates over generations as they come into service: ``async for snapshot in live``.

    It yields the snapshots of a live snapshot, or the values of a live folder. It begins with the
    generation in service, or waits for the first one. A slow iteration skips generations, and
    yields the newest; ``skipped`` says how many it has skipped. The iteration ends when following
    ends.

    Attributes:
        skipped: how many generations were skipped between the last two that it yielded.
    """

    __slots__ = ("_follower", "_seen", "_take", "skipped")

    def __init__(self, follower: Follower[Any, Any], take: Callable[[], Yielded]) -> None:
        self._follower = follower
        self._take = take
        #: Number of the last one that was yielded.
        self._seen = 0
        self.skipped: int = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Yielded:
        follower = self._follower
        follower.check_process()
        await anyio.lowlevel.checkpoint()
        while not follower.over and follower.number == self._seen:
            await follower.moved()
        if follower.over:
            raise StopAsyncIteration
        self.skipped = follower.number - self._seen - 1 if self._seen else 0
        self._seen = follower.number
        return self._take()


@overload
def follow(
    path: str | os.PathLike[str],
    *,
    load: None = None,
    required: bool = True,
    prewarm: bool = True,
    validate: Validate | None = None,
    on_error: Callable[[Exception], object] | None = None,
    hub: Hub | None = None,
) -> Opening[LiveSnapshot[None]]: ...
@overload
def follow(
    path: str | os.PathLike[str],
    *,
    load: Load[Loaded],
    required: bool = True,
    prewarm: bool = True,
    validate: Validate | None = None,
    on_error: Callable[[Exception], object] | None = None,
    hub: Hub | None = None,
) -> Opening[LiveSnapshot[Loaded]]: ...
def follow(
    path: str | os.PathLike[str],
    *,
    load: Load[Any] | None = None,
    required: bool = True,
    prewarm: bool = True,
    validate: Validate | None = None,
    on_error: Callable[[Exception], object] | None = None,
    hub: Hub | None = None,
) -> Opening[LiveSnapshot[Any]]:
    """Follow a path through its replacements: ``async with aiommap.follow(path) as live``.

    A file that appears at the path is opened, validated, made resident and loaded in the
    background. Only then does it become ``live.current``, and the result of ``load`` becomes
    ``live.value``. If one of these steps fails, the failure goes to ``on_error``, and the file in
    service stays in service with its value. It also stays when the path is removed. Any later good
    file replaces it.

    If a file is replaced while it is being validated or loaded, its trial is abandoned, and the
    newest file is tried instead. After three abandoned trials in a row the next one runs to its
    end. So new files come into service even if the path is replaced faster than files can be tried.

    Writing to a file in place does not replace it: readers of its snapshot see the new bytes, or
    get a ``MappingFaultError`` where bytes were cut off. ``on_error`` gets a
    ``StaleSnapshotError``, and the file is tried again like a new one, so that the newest state is
    in service in the end. A ``touch`` looks the same as a write. See docs/hot_swap.

    Args:
        path: a regular file, or a symbolic link to one; kept as an absolute path.
        load: an async function that gets the snapshot of each file, the first included, and returns
            the value that the program works with. It raises if it cannot make one. It is cancelled
            when the file is overtaken or following ends. The value is dropped, and not closed, when
            the next file is in service. It keeps the snapshot open only if it refers to the
            snapshot or to a view of it, and keeps pages mapped only if it holds memory of them.
        required: whether opening raises if there is no good file. With False the file may be
            missing or bad at first; the failure of a bad one goes to ``on_error``. Until the first
            good file, ``live.ready`` is False, ``live.current`` and ``live.value`` raise
            ``anyio.WouldBlock``, and ``await live.wait_ready()`` waits.
        prewarm: whether to make each file resident before it is loaded and put in service.
        validate: an async function that gets each snapshot before ``load`` does. It raises or
            returns False if the file must not be served.
        on_error: a sync or async function that is called on the event loop with the failure of each
            file that is not served; by default failures are logged. If a first file is required,
            its failure is raised instead.
        hub: the hub that watches and opens the file; following ends with it. None makes one.
    Returns:
        An object to use with ``async with``, or to ``await`` for a LiveSnapshot to ``aclose``.
        Opening returns after the trial of the file at the path.
    Raises:
        FileNotFoundError: if a file is required and there is none.
        PermissionError, UnsupportedError: as ``Snapshot.open``.
        Whatever ``validate`` or ``load`` raises for the first file; ValueError if ``validate``
            returns False, TypeError if either is not async.
    Cancellation: nothing is left open.
    Source: inotify(7), stat(2).
    """
    for function in (load, validate, on_error):
        if function is not None and not callable(function):
            raise TypeError(f"asked to call {function!r}: pass a function of one argument")
    hub_or_new(hub)  # raises now if it is not a hub
    flag(prewarm, "prewarm")
    flag(required, "required")
    options = OpenOptions.check(absolute_path(path), "r")  # no descriptor: it has no replacements
    failed: Listeners[Exception] = Listeners()
    failed.add(on_error or partial(_log_failure, options.path))
    trial = partial(_try_out, validate, prewarm, load)

    async def begin() -> LiveSnapshot[Any]:
        chosen = Hub() if hub is None else hub
        source = FileSource(chosen, options)
        follower = Follower(source, trial, failed, required=required)
        live = LiveSnapshot(follower, chosen if hub is None else None)
        await start_following(live, follower)
        return live

    return Opening(begin)


async def start_following(live: Live[Any, Any], follower: Follower[Any, Any]) -> None:
    """Start a follower; if that fails, close all that it opened."""
    try:
        await follower.start()
    except BaseException:
        await live.aclose()
        raise


async def _try_out(
    validate: Validate | None, prewarm: bool, load: Load[Any] | None, candidate: Generation
) -> Any:
    """Validate, prewarm, load and verify a candidate; return its value, or raise."""
    if validate is not None:
        await call_validate(validate, candidate)
    if prewarm:
        await candidate.prewarm()
    value = None if load is None else await call_load(load, candidate)
    await candidate.verify()
    return value


def _log_failure(path: str, error: Exception) -> None:
    FOLLOWING.error("following %s met what it cannot serve: %s", path, error, exc_info=error)
