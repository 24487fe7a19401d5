"""The source of a follower that follows a folder: all its files, as they were at one moment.

Theory of operation. To open a folder, we list it, open the files that need a trial, and list it
again. If every name still names the same file, all files were in the folder together at a moment in
between. An open file keeps its inode number, so a name that has that number before and after has
named the file all the time. Otherwise we begin again. So a candidate is never a mix of two versions
of a folder that is replaced as a whole, and of any other folder it is the content at one moment.

We watch the folder and each of its files, and list the folder again after any change. Events tell
of changes of files and of a link ``..data``. Polls of the folder's time of modification tell of new
names.

Invariants.
  1  A file is watched before it is listed and opened, so no later change is missed (I11).
  2  Only the files that need a trial are open, and those to which values refer.
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
        hub: opens and watches the files.
        folder: the absolute path of the folder.
        matches: tells whether a name matches.
        in_service: returns the files in service; None if there are none yet.
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
        """Whether following or the hub has ended."""
        return self._over or self._hub._closed  # noqa: SLF001  a kind of its files

    async def begin(self) -> None:
        """Watch the folder (folder_source.1)."""
        await self._watch_all(self._always)

    async def next(self) -> News:
        """Wait for a change of the folder or of a file in it, and list the folder."""
        await self._news.wait()
        if not self.is_closed:
            self._news = anyio.Event()
            try:
                return News(await self._list())
            except OSError:
                return News(None)
        raise StopAsyncIteration

    async def open(self) -> FolderGeneration:
        """Open the files that need a trial, as they are together at one moment."""
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
            failures.clear()  # an error refers to frames, and these refer to the dict
            for name, state in states.items():
                if name not in after.files or not state.is_same_file(after.files[name]):
                    opened.pop(name).retire()
            before = after

    async def _open_all(
        self, listing: FolderListing, opened: dict[str, Generation]
    ) -> dict[str, Exception]:
        """Open the files that need a trial and are not open yet; return the failures."""
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
        """Stop watching."""
        self._over = True
        self._in_service = lambda: None  # the given function refers, by the follower, to this
        self._news.set()
        for path in [*self._changes]:
            self._changes.pop(path).close()

    async def _list(self) -> FolderListing:
        workers = self._hub._running_workers()  # noqa: SLF001  as for opening
        return await workers.run(workers.control, list_folder, self.path, self._matches)

    async def _list_watched(self) -> FolderListing:
        """List the folder; before that, watch all of its files, and no others."""
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
        """Note each change of a path as news; if the hub stops watching, end following."""
        try:
            async for _ in changes:
                self._news.set()
        except Exception:
            FOLLOWING.exception("following %s cannot watch %s any more", self.path, path)
        if self._changes.get(path) is changes:
            self._over = True
            self._news.set()
