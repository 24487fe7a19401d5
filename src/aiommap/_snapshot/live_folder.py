"""Live folders: values loaded from the files of a folder, always from one state of the folder.

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
    """The values loaded from the files of a folder; ``aiommap.follow_folder`` makes it.

    Ask for ``value`` when a piece of work begins, and use that mapping until the work ends. The
    mapping never changes, even when a newer one is in service.

    Concurrency: for any number of tasks of the event loop in which it was made.
    """

    __slots__ = ()

    @property
    def value(self) -> Mapping[str, Value]:
        """The result of ``load`` for each file, by name; the same object until the next generation.

        All files were in the folder at one moment. A file that could not be loaded has its last
        good value; it is missing if it never had one.

        Raises:
            anyio.WouldBlock: with ``required=False``, while there has been no folder.
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

    ``live.value`` has the result of ``load`` for each file. When files are added, removed, replaced
    or written to, the new and changed ones are loaded in the background. Then one step puts a new
    mapping in service. All files of a mapping were in the folder together at one moment. If
    Kubernetes mounts the folder for a ConfigMap or a Secret, a mapping never mixes two versions of
    it; nor does it if the folder is reached by a symbolic link that is changed to another folder.

    The failure of a file that cannot be opened or loaded goes to ``on_error``; the file keeps its
    last good value, and is tried again when it changes. If the folder is removed, that goes to
    ``on_error``, too, and the last mapping stays.

    Args:
        folder: a folder, or a symbolic link to one; kept as an absolute path. Its files and its
            links to files count; files in folders below it do not.
        pattern: the names that count, as in a shell: "*.json". Names that begin with a dot count
            only if the pattern begins with a dot.
        load: an async function that gets the snapshot of a file, and returns the value that the
            program works with; see ``follow``. It is called for new and changed files only, and
            for up to 16 of them at a time.
        required: whether opening raises if the folder is missing. With False, ``live.ready`` is
            False until there is a folder, and ``live.value`` raises ``anyio.WouldBlock``.
        prewarm: whether to make each file resident before it is loaded.
        on_error: a sync or async function that is called on the event loop with the path and the
            failure of each file that is not served, or of the folder; by default failures are
            logged.
        hub: the hub that watches and opens the files; following ends with it. None makes one.
    Returns:
        An object to use with ``async with``, or to ``await`` for a LiveFolder to ``aclose``.
        Opening returns when all files in the folder were tried; none of them has to be good.
    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: if a folder is required and there is
            none.
        ValueError, TypeError: if an argument makes no sense.
    Cancellation: nothing is left open.
    Concurrency: all new and changed files are open at the same time, so the process needs
        descriptors for them.
    Source: inotify(7), stat(2). Polls of the folder find new names, within the poll interval of
        ``Hub.watch``; events find other changes.
    """
    for function in (load, *([] if on_error is None else [on_error])):
        if not callable(function):
            raise TypeError(f"asked to call {function!r}: pass a function")
    hub_or_new(hub)  # raises now if it is not a hub
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
