"""The files of a folder as one thing to follow: all of them as they were at one moment.

Theory of operation. To open a folder, list it, open the files that are news, and list it again. If
every name still means the file that it meant, all of them were there together at the moment in
between: a file that is open keeps its number, so a name that means it before and after has meant it
all the time. Otherwise begin again. So a candidate is never a mix of two versions of a folder that
is replaced as a whole; of any other folder it is what it held at one moment.

The folder and each of its files are watched, and any change of any of them is a reason to list it
again. An event tells of changes of files and of a link ``..data``; polling the folder's time of
modification tells of names that come.

Invariants.
  1  What is opened was listed after watching it had begun, so no later change is missed (I11).
  2  Only files that are news are open, and those that values refer to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

import anyio

from .._core.options import OpenOptions
from .._hub.hub import Hub
from .._logs import FOLLOWING
from .._runtime.loops import spawn_user_task
from .._watch.subscriptions import Changes
from .folder_files import LoadedFiles
from .folder_generation import FolderGeneration
from .folder_listing import DATA_LINK, FolderListing, list_folder
from .follower import News
from .generation import Generation

Loaded = TypeVar("Loaded")


class FolderSource(Generic[Loaded]):
    """The files of a folder whose names match, watched and opened in a hub.

    Args:
        hub: opens and watches.
        folder: absolute path.
        matches: tells whether a name does.
        in_service: returns what is in service, if anything is.
    """

    def __init__(
        self,
        hub: Hub,
        folder: str,
        matches: Callable[[str], object],
        in_service: Callable[[], LoadedFiles[Loaded] | None],
    ) -> None:
        self.path: str = folder
        self._hub = hub
        self._matches = matches
        self._in_service = in_service
        #: The subscriptions by path; a task listens to each.
        self._changes: dict[str, Changes] = {}
        self._always = (folder, f"{folder}/{DATA_LINK}")
        self._news = anyio.Event()
        self._over = False

    @property
    def is_closed(self) -> bool:
        """Whether following ends, or the hub does."""
        return self._over or self._hub._closed  # noqa: SLF001  a kind of its files

    async def begin(self) -> None:
        """Watch the folder (folder_source.1)."""
        await self._watch_all(self._always)

    async def next(self) -> News:
        """Wait for a change of anything, and list the folder."""
        await self._news.wait()
        if not self.is_closed:
            self._news = anyio.Event()
            try:
                return News(await self._list())
            except OSError:
                return News(None)
        raise StopAsyncIteration

    async def open(self) -> FolderGeneration:
        """Open the files that are news, all of one moment."""
        opened: dict[str, Generation] = {}
        try:
            return await self._open_together(opened)
        except BaseException:
            for generation in opened.values():
                generation.retire()
            raise

    async def _open_together(self, opened: dict[str, Generation]) -> FolderGeneration:
        before = await self._list_watched()
        while True:
            failures = await self._open_all(before, opened)
            after = await self._list_watched()
            states = {name: generation.state for name, generation in opened.items()}
            if before.held_until(after, states):
                listing = FolderListing(before.root, {**before.files, **states})
                return FolderGeneration(listing, opened, failures)
            failures.clear()  # an error refers to frames that refer to this
            for name, state in states.items():
                if name not in after.files or not state.is_same_file(after.files[name]):
                    opened.pop(name).retire()
            before = after

    async def _open_all(
        self, listing: FolderListing, opened: dict[str, Generation]
    ) -> dict[str, Exception]:
        """Open what is news and not open yet; return the failures."""
        failures: dict[str, Exception] = {}

        async def open_one(name: str) -> None:
            options = OpenOptions.check(listing.path_of(name), "r")
            try:
                opened[name] = await Generation.of(self._hub, options)
            except Exception as error:
                failures[name] = error

        served = self._in_service()
        entries = {} if served is None else served.entries
        async with anyio.create_task_group() as group:
            for name, state in listing.files.items():
                entry = entries.get(name)
                if name not in opened and (entry is None or entry.needs_trial(state)):
                    group.start_soon(open_one, name)
        return failures

    def end(self) -> None:
        """Watch no longer."""
        self._over = True
        self._in_service = lambda: None  # what did answer refers to this
        self._news.set()
        for path in [*self._changes]:
            self._changes.pop(path).close()

    async def _list(self) -> FolderListing:
        workers = self._hub._running_workers()  # noqa: SLF001  as for opening
        return await workers.run(workers.control, list_folder, self.path, self._matches)

    async def _list_watched(self) -> FolderListing:
        """List the folder once all of its files are watched, and nothing else is."""
        while True:
            listing = await self._list()
            # Files of a version are never written to.
            files = () if listing.is_version else map(listing.path_of, listing.files)
            wanted = {*self._always, *files}
            for path in self._changes.keys() - wanted:
                self._changes.pop(path).close()
            added = wanted - self._changes.keys()
            if not added:
                return listing
            await self._watch_all(added)

    async def _watch_all(self, paths: Collection[str]) -> None:
        failures: list[Exception] = []

        async def watch(path: str) -> None:
            changes = self._hub.watch(path, buffer=1)
            try:
                await changes.__aenter__()
            except Exception as error:
                failures.append(error)
                return
            if self._over:
                changes.close()
                return
            self._changes[path] = changes
            spawn_user_task(self._listen, path, changes)

        async with anyio.create_task_group() as group:
            for path in paths:
                group.start_soon(watch, path)
        if failures:
            raise failures[0]
        if self._over:
            raise anyio.ClosedResourceError(f"{self.path} is not followed any more")

    async def _listen(self, path: str, changes: Changes) -> None:
        """Pass on that something changed; the end of the hub's watching ends this, too."""
        try:
            async for _ in changes:
                self._news.set()
        except Exception:
            FOLLOWING.exception("following %s cannot watch %s any more", self.path, path)
        if self._changes.get(path) is changes:
            self._over = True
            self._news.set()
