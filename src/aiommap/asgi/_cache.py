"""The files of a folder that were requested lately: open, watched, and served without a check.

Theory of operation. After a request for a path, the path is watched, and its *version*, the file in
one state, answers all requests until the watcher reports a change. The next request opens the path
again. A response refers to its version, so it sends an old one to the end, and a version is closed
when nothing refers to it. If there are too many paths, the one that was not requested for longest
is dropped.

Invariants.
  1  ``version`` of a path is never older than the last change that the watcher reported, nor than
     a version that was served before. Watching begins with the state in which the version was
     opened, so no change in between is missed (I11).
  2  A version whose bytes may have been overwritten is spoiled: no more of it is sent.
  3  If the file is in the cache and its bytes are in memory, a request makes no system call here,
     and no hop.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict

from .._core.file_state import FileState
from .._hub.hub import Hub
from .._logs import WATCHING
from .._runtime.event_loop import Event
from .._runtime.loops import spawn_user_task
from .._watch.changes import Change, ChangeKind
from .._watch.subscriptions import Changes
from ._folder import Folder, Refusal
from ._openings import Openings
from ._representation import Representation, Version

#: After one of these, bytes of the file may have changed. ``GROWN`` is left out: a file that grows
#: is a log, as a rule, and its old bytes stay.
_OVERWRITTEN = frozenset({ChangeKind.MODIFIED, ChangeKind.CHANGED, ChangeKind.TRUNCATED})


class _WatchedPath:
    """One path of the cache."""

    __slots__ = ("_told", "_turn", "_version", "_versions", "changes")

    def __init__(self) -> None:
        #: The version to serve; None until the path is opened again.
        self._version: Version | None = None
        #: All versions that are open, because old ones may still be sent.
        self._versions: weakref.WeakSet[Version] = weakref.WeakSet()
        #: How many changes the watcher has reported.
        self._told = 0
        #: Number of the opening that made the version; openings are numbered as they begin.
        self._turn = 0
        self.changes: Changes | None = None

    @property
    def version(self) -> Version | None:
        return self._version

    @property
    def told(self) -> int:
        return self._told

    def put(self, version: Version, told: int, turn: int) -> None:
        """Serve a version, unless it may be outdated (cache.1).

        It may be if a change was reported since ``told`` was read, or if the opening of the version
        in service began later.
        """
        self._versions.add(version)
        if turn > self._turn:
            self._turn = turn
            self._version = version if told == self._told else None

    def since(self, found: FileState | None) -> FileState | None:
        """Return the state with which the watcher has to compare the first one that it finds."""
        return found if self._version is None else self._version.state

    def change(self, change: Change) -> None:
        """Note a change; the watcher calls this on the loop."""
        self._told += 1
        if change.kind in _OVERWRITTEN and change.old is not None and change.new is not None:
            for version in self._versions:
                if version.state != change.new and version.state.is_same_file(change.old):
                    version.spoil(change.new)
        if self._version is not None and self._version.state != change.new:
            self._version = None

    def drop(self) -> None:
        """Stop serving the version."""
        self._version = None

    def end(self) -> None:
        """Stop serving and watching the path."""
        self._version = None
        if self.changes is not None:
            self.changes.close()


class FileCache:
    """The files that were requested lately.

    Args:
        folder: opens the files.
        hub: watches the files.
        limit: how many paths are kept.
    """

    def __init__(self, folder: Folder, hub: Hub, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._watcher = hub._watcher  # noqa: SLF001  one more of its users
        self._workers = hub._running_workers()  # noqa: SLF001
        self._paths: OrderedDict[str, _WatchedPath] = OrderedDict()
        self._openings = Openings()
        #: Number of the opening that began last.
        self._turn = 0
        #: Versions that are open.
        self._open_versions: weakref.WeakSet[Version] = weakref.WeakSet()
        self._closed = self._workers.event()
        spawn_user_task(_abandon_with_loop, self._open_versions, self._closed)

    @property
    def is_here(self) -> bool:
        """Whether this belongs to the running loop and to this process."""
        return self._workers.on_loop() and not self._workers.forked

    async def check(self) -> None:
        """Raise unless the folder exists."""
        await self._folder.check()

    def get(self, route: str) -> Version | None:
        """Return the version to serve at a URL path, if there is one."""
        watched = self._paths.get(route)
        if watched is None:
            return None
        self._paths.move_to_end(route)
        return watched.version

    async def open(self, route: str) -> Version | Refusal:
        """Open the file at a canonical URL path; raise as ``Folder.open``."""
        return await self._openings.open(route, self.get, self._open)

    def drop(self, route: str, version: Representation) -> None:
        """Stop serving a version that turned out to have lost bytes."""
        watched = self._paths.get(route)
        if watched is not None and watched.version is version:
            watched.drop()

    def close(self) -> None:
        """Drop all paths."""
        self._closed.set()
        while self._paths:
            self._paths.popitem()[1].end()

    async def _open(self, route: str) -> Version | Refusal:
        watched = self._paths.get(route)
        told = 0 if watched is None else watched.told
        self._turn = turn = self._turn + 1
        found = await self._folder.open(route)
        if isinstance(found, Refusal):
            self._forget(route)
        else:
            self._keep(route, found, told, turn)
        return found

    def _keep(self, route: str, version: Version, told: int, turn: int) -> None:
        self._open_versions.add(version)
        watched = self._paths.get(route)
        if watched is not None:
            watched.put(version, told, turn)
            return
        watched = self._paths[route] = _WatchedPath()
        watched.put(version, 0, turn)
        if len(self._paths) > self._limit:
            self._paths.popitem(last=False)[1].end()
        spawn_user_task(self._watch, route, watched)

    async def _watch(self, route: str, watched: _WatchedPath) -> None:
        """Begin to watch a path; if that fails, drop it, so that each request opens it."""
        if self._paths.get(route) is not watched:
            return
        path = self._folder.path_of(route)
        watched.changes = self._watcher.subscribe(
            path, since=watched.since, on_change=watched.change
        )
        try:
            await watched.changes.__aenter__()
        except Exception as error:
            WATCHING.warning("%s is opened for each request: %s", path, error)
            if self._paths.get(route) is watched:
                self._forget(route)

    def _forget(self, route: str) -> None:
        watched = self._paths.pop(route, None)
        if watched is not None:
            watched.end()


async def _abandon_with_loop(versions: weakref.WeakSet[Version], closed: Event) -> None:
    """At the end of the loop, mark open versions as abandoned: nobody forgot to close them."""
    try:
        await closed.wait()
    except BaseException:
        for version in versions:
            version.abandon()
        raise
