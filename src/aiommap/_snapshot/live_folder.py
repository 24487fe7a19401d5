"""Live folders: what was loaded from the files of a folder, always from one state of it.

``follow_folder`` and what it returns; ``_snapshot/folder_source`` says how it works.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Generic, TypeVar

from .._arguments import flag
from .._core.paths import absolute_path
from .._hub.hub import Hub, hub_or_new
from .._hub.opening import Opening
from .._logs import FOLLOWING
from .._runtime.callbacks import Listeners
from .folder_files import Failed, LoadedFiles, load_files
from .folder_generation import FolderGeneration
from .folder_listing import matcher
from .folder_source import FolderSource
from .follower import Follower
from .live import Generations, Live, start_following
from .trial import Load

Value = TypeVar("Value", covariant=True)
Loaded = TypeVar("Loaded")


class LiveFolder(Live[FolderGeneration, LoadedFiles[Value]], Generic[Value]):
    """What was loaded from the files of a folder; made by ``aiommap.follow_folder``.

    Ask for ``value`` when a piece of work begins, and use that mapping to its end: it never
    changes, also when a newer one is in service.

    Concurrency: for tasks of the event loop it was made in; any number of them.
    """

    __slots__ = ()

    @property
    def value(self) -> Mapping[str, Value]:
        """What ``load`` returned for each file, by its name; the same object until the next one.

        All files are of one moment. A file that ``load`` could not load has the last value that it
        could, and is missing if there is none.

        Raises:
            anyio.WouldBlock: with ``required=False``, while there was no folder yet.
            anyio.ClosedResourceError: if following has ended.
        """
        return self._follower.value.by_name

    def __aiter__(self) -> Generations[Mapping[str, Value]]:
        """Iterate over generations: the current ``value``, then each that follows it."""
        follower = self._follower
        return Generations(follower, lambda: follower.value.by_name)


def follow_folder(
    folder: str | os.PathLike[str],
    pattern: str = "*",
    *,
    load: Load[Loaded],
    required: bool = True,
    prewarm: bool = True,
    on_error: Callable[[str, Exception], object] | None = None,
    hub: Hub | None = None,
) -> Opening[LiveFolder[Loaded]]:
    """Follow the files of a folder: ``async with aiommap.follow_folder(...) as live``.

    ``live.value`` has what ``load`` returned for each file. When files are added, removed, replaced
    or written to, those that are news are loaded in the background, and then a new mapping is put
    in service, in one step. It is of one moment: all the files of it were in the folder together. A
    folder that Kubernetes mounts for a ConfigMap or a Secret is seen in one version at a time, and
    so is a folder that is reached by a symbolic link that is turned.

    A file that cannot be opened or loaded is reported, and keeps its last good value; it is tried
    again when it changes. If the folder is removed, that is reported, and the last mapping stays.

    Args:
        folder: a folder, or a symbolic link to one; kept as an absolute path. Only its own files
            count, and links to files, and not those of folders in it.
        pattern: which names count, as in a shell: "*.json". Names that begin with a dot only do if
            the pattern does.
        load: an async function that takes the snapshot of a file, and returns what the program
            works with; see ``follow``. Up to 16 are called at a time. It is called for the files
            that are news only.
        required: whether the folder has to be there to begin with. With False ``live.ready`` is
            False until there is one, and ``live.value`` raises ``anyio.WouldBlock``.
        prewarm: make each file resident before it is loaded.
        on_error: called in the background, sync or async, with the path and the failure of a file
            that is not served, or of the folder; by default that is logged.
        hub: watches and opens; its end ends following. By default there is one for this alone.
    Returns:
        An object to use with ``async with``, or to ``await`` for a LiveFolder to ``aclose``.
        Opening returns when the files that are there were tried; none of them has to be good.
    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: if a folder is required and there is
            none.
        ValueError, TypeError: for arguments that cannot be meant.
    Cancellation: nothing is left open.
    Concurrency: all files that are news are open at a time, so there have to be descriptors for
        them.
    Source: inotify(7), stat(2). A name that comes is found by polling the folder, within
        ``poll_interval`` of ``Hub.watch``; the rest by events.
    """
    for function in (load, *([] if on_error is None else [on_error])):
        if not callable(function):
            raise TypeError(f"asked to call {function!r}: pass a function")
    hub_or_new(hub)  # refuses anything but a hub before it begins
    flag(prewarm, "prewarm")
    flag(required, "required")
    path, matches = absolute_path(folder).rstrip("/") or "/", matcher(pattern)
    report = on_error or _log_failure
    failed: Failed = Listeners()
    failed.add(lambda told: report(*told))
    whole: Listeners[Exception] = Listeners()
    whole.add(lambda error: failed.tell((path, error)))

    async def begin() -> LiveFolder[Loaded]:
        chosen = Hub() if hub is None else hub

        def in_service() -> LoadedFiles[Loaded] | None:
            return follower.value if follower.ready else None

        source: FolderSource[Loaded] = FolderSource(chosen, path, matches, in_service)
        trial = partial(load_files, load, prewarm, failed, in_service)
        follower: Follower[FolderGeneration, LoadedFiles[Loaded]] = Follower(
            source, trial, whole, required=required
        )
        live = LiveFolder(follower, chosen if hub is None else None)
        await start_following(live, follower)
        return live

    return Opening(begin)


def _log_failure(path: str, error: Exception) -> None:
    FOLLOWING.error("following met what it cannot serve: %s: %s", path, error, exc_info=error)
