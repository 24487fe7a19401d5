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

    # In annotations ``LiveSnapshot`` is one without ``load``, and ``Generations`` are of those.
    Value = typing_extensions.TypeVar("Value", covariant=True, default=None)
    Yielded = typing_extensions.TypeVar("Yielded", covariant=True, default=Snapshot)
else:
    Value = TypeVar("Value", covariant=True)
    Yielded = TypeVar("Yielded", covariant=True)
Served = TypeVar("Served", bound=Candidate)
Loaded = TypeVar("Loaded")


class Live(AsyncResource, Generic[Served, Value]):
    """What is followed: whether there is anything in service, and the end."""

    __slots__ = ("__weakref__", "_follower", "_hub")

    def __init__(self, follower: Follower[Served, Value], hub: Hub | None) -> None:
        self._follower = follower
        #: The hub, if it was made for this alone.
        self._hub = hub

    @property
    def ready(self) -> bool:
        """Whether something is in service: true from the first good generation to the end."""
        return self._follower.ready

    async def wait_ready(self) -> None:
        """Wait until something is in service; returns at once unless ``required=False``.

        Raises:
            anyio.ClosedResourceError: if following ends, or has ended.
        Cancellation: at any time.
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

        Iterations end. A trial under way is cancelled, and this waits for it. Views keep their
        pages. A second call waits like the first.

        Cancellation: ends the waits; the end of the last hold on a generation closes it anyway.
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
    """The newest good file of a path, as a snapshot; made by ``aiommap.follow``.

    Ask for ``current`` when a piece of work begins, and use that snapshot to its end: it is one
    file, and stays open, mapped and as it was for as long as you refer to it, or to a view of it,
    also when a newer one is in service. The next ``current`` is the newest one. So it is with
    ``value``; between the two there is no swap unless your code awaits something.

    Concurrency: for tasks of the event loop it was made in; any number of them.
    """

    __slots__ = ()

    @property
    def current(self) -> Snapshot:
        """The snapshot in service; the same object until the next one is.

        It is closed when nothing refers to it any more, and not before: its ``aclose`` does
        nothing, and ``async with live.current as s`` keeps it for the block. The end of following
        closes it as well, after the last ``hold`` on it.

        Raises:
            anyio.WouldBlock: with ``required=False``, while there was no good file yet.
            anyio.ClosedResourceError: if following has ended.
        """
        return self._follower.current

    @property
    def value(self) -> Value:
        """What ``load`` returned for the snapshot in service; None without ``load``.

        The same object until the next snapshot is in service, and then dropped.

        Raises:
            As ``current``.
        """
        return self._follower.value

    def __aiter__(self) -> Generations:
        """Iterate over generations: the current one, then each that follows it."""
        follower = self._follower
        return Generations(follower, lambda: follower.current)


class Generations(Generic[Yielded]):
    """What comes into service, one after the other: ``async for snapshot in live``.

    Of a live snapshot it yields snapshots, of a live folder values. What is in service when the
    iteration begins comes first, or else the first that there is. A slow iteration yields the
    newest and skips those before it; ``skipped`` says how many. The iteration ends with following.

    Attributes:
        skipped: how many generations came and went between the last two that were yielded.
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
    background, and only then becomes ``live.current``, and what ``load`` returned ``live.value``.
    If any of these fails, the failure is reported and the file before it stays in service with its
    value; it also stays when the path is removed. The next good file is put in service whatever
    came before it.

    If a file is replaced while it is being validated or loaded, its trial is abandoned and the
    newest file is tried instead. After three of those in a row one trial runs to its end, so that a
    path replaced faster than its files can be tried still moves on.

    A file that is written to in place is no replacement: readers of its snapshot see the new bytes,
    or a fault where bytes are cut off. That is reported as ``StaleSnapshotError``, and the file is
    then tried as if it were a new one, so that the newest state is in service at the end. A
    ``touch`` looks the same as writing. See docs/hot_swap.

    Args:
        path: a regular file, or a symbolic link to one; kept as an absolute path.
        load: an async function that takes the snapshot of each file, the first included, and
            returns what the program works with; it raises if it cannot. It is cancelled when the
            file is overtaken or following ends. What it returned is dropped, and not closed, when
            the next file is in service; a generation stays open for it only if it refers to the
            snapshot or a view of it, and its pages are kept only if it holds memory of them.
        required: whether there has to be a good file to begin with. With False a file may be
            missing or bad then: what is wrong with one that is there is reported, and until the
            first good one ``live.ready`` is False, ``live.current`` and ``live.value`` raise
            ``anyio.WouldBlock``, and ``await live.wait_ready()`` waits.
        prewarm: make each file resident before it is loaded and put in service.
        validate: an async function as ``load``, called before it, that raises, or returns False,
            if the file is not to be served.
        on_error: called in the background, sync or async, with the failure of a file that is not
            served; by default that is logged. A failure of the first file is raised if required.
        hub: watches and opens; its end ends following. By default there is one for this alone.
    Returns:
        An object to use with ``async with``, or to ``await`` for a LiveSnapshot to ``aclose``.
        Opening returns after the trial of the file that is there.
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
    hub_or_new(hub)  # refuses anything but a hub before it begins
    flag(prewarm, "prewarm")
    flag(required, "required")
    options = OpenOptions.check(absolute_path(path), "r")  # a descriptor leads nowhere else
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
    """Begin, or leave nothing open."""
    try:
        await follower.start()
    except BaseException:
        await live.aclose()
        raise


async def _try_out(
    validate: Validate | None, prewarm: bool, load: Load[Any] | None, candidate: Generation
) -> Any:
    """Raise unless a candidate is good, make it resident, and load it."""
    if validate is not None:
        await call_validate(validate, candidate)
    if prewarm:
        await candidate.prewarm()
    value = None if load is None else await call_load(load, candidate)
    await candidate.verify()
    return value


def _log_failure(path: str, error: Exception) -> None:
    FOLLOWING.error("following %s met what it cannot serve: %s", path, error, exc_info=error)
