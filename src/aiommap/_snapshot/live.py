"""Live snapshots: always the newest good file of a path, swapped while readers go on.

``follow`` and what it returns; ``_snapshot/follower`` says how it works.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Self

import anyio.lowlevel
from anyio.abc import AsyncResource

from .._arguments import flag
from .._core.options import OpenOptions
from .._hub.hub import Hub, hub_or_new
from .._hub.opening import Opening
from .._logs import FOLLOWING
from .._runtime.callbacks import Listeners
from .follower import Follower
from .snapshot import Snapshot


class LiveSnapshot(AsyncResource):
    """The newest good file of a path, as a snapshot; made by ``aiommap.follow``.

    Ask for ``current`` when a piece of work begins, and use that snapshot to its end: it is one
    file, and stays open, mapped and as it was for as long as you refer to it, or to a view of it,
    also when a newer one is in service. The next ``current`` is the newest one.

    Concurrency: for tasks of the event loop it was made in; any number of them.
    """

    __slots__ = ("__weakref__", "_follower", "_hub")

    def __init__(self, follower: Follower, hub: Hub | None) -> None:
        self._follower = follower
        #: The hub, if it was made for this alone.
        self._hub = hub

    @property
    def current(self) -> Snapshot:
        """The snapshot in service; the same object until the next one is.

        It is closed when nothing refers to it any more, and not before: its ``aclose`` does
        nothing, and ``async with live.current as s`` keeps it for the block. The end of following
        closes it as well, after the last ``hold`` on it.

        Raises:
            anyio.ClosedResourceError: if following has ended.
        """
        return self._follower.current

    @property
    def generation(self) -> int:
        """How many files have been in service so far; 1 for the first."""
        return self._follower.number

    @property
    def path(self) -> str:
        """The absolute path that is followed."""
        return self._follower.path

    @property
    def closed(self) -> bool:
        """Whether following has ended, by ``aclose`` or with the hub."""
        return self._follower.over

    def __aiter__(self) -> Generations:
        """Iterate over generations: the current one, then each that follows it."""
        return Generations(self._follower)

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
        return f"<LiveSnapshot {self.path} {state}>"


class Generations:
    """The generations of a live snapshot: ``async for snapshot in live``.

    The generation that is current when the iteration begins comes first. A slow iteration yields
    the newest and skips those before it; ``skipped`` says how many. The iteration ends with
    following.

    Attributes:
        skipped: how many generations came and went between the last two that were yielded.
    """

    __slots__ = ("_follower", "_seen", "skipped")

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._seen: int | None = None
        self.skipped: int = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Snapshot:
        follower = self._follower
        follower.check_process()
        await anyio.lowlevel.checkpoint()
        while not follower.over and follower.number == self._seen:
            await follower.moved()
        if follower.over:
            raise StopAsyncIteration
        self.skipped = 0 if self._seen is None else follower.number - self._seen - 1
        self._seen = follower.number
        return follower.current


def follow(
    path: str | os.PathLike[str],
    *,
    prewarm: bool = True,
    validate: Callable[[Snapshot], Awaitable[object]] | None = None,
    on_error: Callable[[Exception], object] | None = None,
    hub: Hub | None = None,
) -> Opening[LiveSnapshot]:
    """Follow a path through its replacements: ``async with aiommap.follow(path) as live``.

    A file that appears at the path is opened, validated and made resident in the background, and
    only then becomes ``live.current``. If any of these fails, the failure is reported and the file
    before it stays in service; it also stays when the path is removed. The next good file is put in
    service whatever came before it.

    If a file is replaced while it is being validated, its trial is abandoned and the newest file is
    tried instead. After three of those in a row one trial runs to its end, so that a path replaced
    faster than its files can be validated still moves on.

    A file that is written to in place is no replacement: readers of its snapshot see the new bytes,
    or a fault where bytes are cut off. That is reported as ``StaleSnapshotError``, and the file is
    then tried as if it were a new one, so that the newest state is in service at the end. A
    ``touch`` looks the same as writing. See docs/hot_swap.

    Args:
        path: a regular file, or a symbolic link to one; kept as an absolute path. It has to exist.
        prewarm: make each file resident before it is put in service.
        validate: an async function that takes the snapshot of each file, the first included, and
            raises, or returns False, if the file is not to be served. It is cancelled when the file
            is overtaken or following ends.
        on_error: called in the background, sync or async, with the failure of a file that is not
            served; by default that is logged. A failure of the first file is raised.
        hub: watches and opens; its end ends following. By default there is one for this alone.
    Returns:
        An object to use with ``async with``, or to ``await`` for a LiveSnapshot to ``aclose``.
    Raises:
        FileNotFoundError: if there is no file to begin with; ``Hub.watch`` tells when one comes.
        PermissionError, UnsupportedError: as ``Snapshot.open``.
        Whatever ``validate`` raises for the first file; ValueError if it returns False, TypeError
        if it is not async.
    Cancellation: nothing is left open.
    Source: inotify(7), stat(2).
    """
    for function in (validate, on_error):
        if function is not None and not callable(function):
            raise TypeError(f"asked to call {function!r}: pass a function of one argument")
    hub_or_new(hub)  # refuses anything but a hub before it begins
    flag(prewarm, "prewarm")
    options = OpenOptions.check(path, "r")
    failed: Listeners[Exception] = Listeners()
    failed.add(on_error or partial(_log_failure, options.path))

    async def begin() -> LiveSnapshot:
        chosen = Hub() if hub is None else hub
        follower = Follower(chosen, options, prewarm=prewarm, validate=validate, failed=failed)
        live = LiveSnapshot(follower, chosen if hub is None else None)
        try:
            await follower.start()
        except BaseException:
            await live.aclose()
            raise
        return live

    return Opening(begin)


def _log_failure(path: str, error: Exception) -> None:
    FOLLOWING.error("following %s met what it cannot serve: %s", path, error, exc_info=error)
