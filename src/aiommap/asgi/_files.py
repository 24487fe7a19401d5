"""The application that serves a folder."""

from __future__ import annotations

import os
import re
import resource
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from .._arguments import at_least
from .._core.paths import absolute_path
from .._errors import MappingFaultError, RemoteError, StaleSnapshotError
from .._hub.hub import Hub, hub_or_new
from .._logs import REMOTE
from ._cache import FileCache
from ._folder import Folder, Refusal
from ._objects import DESCRIPTORS_EACH, ObjectCache, ObjectFolder
from ._requests import canonical
from ._sending import Answer, Receive, Scope, Send, redirect, refuse

if TYPE_CHECKING:
    from .._remote.remote_folder import RemoteFolder

_NOT_IN_URL = re.compile(rb"[^\x21-\x7e]")

#: How the slash at the end of a raw path may be written.
_SLASHES = (b"/", b"%2f")

#: How often a file is tried that has lost bytes before the first one was sent.
MAX_TRIES = 3


class MappedFiles:
    """An ASGI application that serves the files of a folder, from memory if they are there.

    It also serves the objects of a store:
    ``MappedFiles(aiommap.remote.RemoteFolder(cache, address))``.

    Mount it in Starlette, FastAPI or Litestar, or run it alone. It answers GET and HEAD, with byte
    ranges and conditions as in RFC 9110. For a folder it sends the ``index.html`` in it. A file has
    a strong entity tag, and each answer is of one version of the file. If the file is replaced
    meanwhile, the old version is sent to its end. If it is truncated or overwritten in place, the
    answer is broken off, and never padded. A request a few milliseconds after the change gets the
    new version.

    It never sends a file that is outside the folder when it is opened, whatever the path or a link
    says; links that stay inside are followed. For pipes, sockets and devices the answer is 404.

    The loop thread sends bytes that are in memory, without a hop or a system call; workers of the
    hub read all others. Files that were requested lately stay open.

    An object has the entity tag of its store. It is sent in a state that the store had at most
    ``max_age`` seconds before, as the ``RemoteFolder`` says. Its name in the store is the path
    below the mount. While the store cannot be reached, objects that are open and cached are still
    served; for others the answer is 502.

    Run alone, it opens and closes with the server. Under a mount, close it with your application:
    use ``async with MappedFiles(...)`` in the lifespan. Otherwise its files are released when the
    loop ends.

    Args:
        directory: the folder; links in its path may be changed while it is served. With a
            ``RemoteFolder`` it serves objects; close the cache of that folder after this.
        hub: the hub that opens and watches the files; serving ends with it. None makes one when it
            is first needed. Objects are by default mapped by the hub of their cache.
        cache: how many files stay open. A file takes one descriptor and an object takes three; at
            most half of the descriptors of the process are used.
    Raises:
        ValueError, TypeError: if an argument makes no sense; whether the folder exists is checked
            when serving begins.
    Concurrency: for one event loop after another. With a hub, or with a ``RemoteFolder``, only for
        the loop of that hub or cache.
    """

    __slots__ = ("_cache", "_hub", "_limit", "_own_hub", "_served")

    def __init__(
        self,
        directory: str | os.PathLike[str] | RemoteFolder,
        *,
        hub: Hub | None = None,
        cache: int = 1024,
    ) -> None:
        #: The path of the folder, or the ``RemoteFolder``.
        self._served: str | ObjectFolder
        each = 1
        if isinstance(directory, ObjectFolder):
            self._served, each = directory, DESCRIPTORS_EACH
        else:
            self._served = absolute_path(directory)
        wanted = at_least(1, cache, "cache", "it has to hold at least 1 file")
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = max(min(wanted, descriptors // 2 // each), 1)
        if hub is not None:
            hub_or_new(hub)  # raises if it is not a hub
        self._hub = hub
        #: The hub that this object made, in the loop of the last request.
        self._own_hub: Hub | None = None
        self._cache: FileCache | ObjectCache | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection of an ASGI server."""
        kind = scope["type"]
        if kind == "http":
            await self._answer(scope, receive, send)
        elif kind == "lifespan":
            await self._live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def aclose(self) -> None:
        """Close the files, and the hub unless it was given; a later request opens them again.

        Cancellation: as ``Hub.aclose``.
        """
        cache, self._cache = self._cache, None
        if cache is not None and cache.is_here:
            cache.close()
        hub, self._own_hub = self._own_hub, None
        if hub is not None:
            await hub.aclose()

    async def __aenter__(self) -> Self:
        try:
            await self._files().check()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<MappedFiles {self._served}>"

    def _files(self) -> FileCache | ObjectCache:
        """Return the cache of the running loop; a test client may run a loop for each request."""
        cache = self._cache
        if cache is None or not cache.is_here:
            cache = self._cache = self._make_cache()
        return cache

    def _make_cache(self) -> FileCache | ObjectCache:
        served, hub = self._served, self._hub
        if not isinstance(served, str):
            return ObjectCache(served, hub, self._limit)
        if hub is None:
            hub = self._own_hub = Hub()
        return FileCache(Folder(served, hub), hub, self._limit)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await refuse(405, scope, send, (b"allow", b"GET, HEAD"))
            return
        files, route = self._files(), _below_mount(scope)
        tries = 0
        while True:
            version = files.get(route)
            if version is None:
                name = canonical(route)
                if name is None:
                    await refuse(400, scope, send)
                    return
                route = name
                found = files.get(route) or await files.open(route)
                if isinstance(found, Refusal):
                    await self._refuse(found.status, scope, send)
                    return
                version = found
            answer = Answer(scope, version)
            try:
                await answer.begin()
            except (MappingFaultError, StaleSnapshotError):
                tries += 1
                if tries == MAX_TRIES:
                    raise
                files.drop(route, version)
            except RemoteError as error:
                REMOTE.warning("the store has no bytes for an answer: %s", error)
                await refuse(502, scope, send)
                return
            else:
                break
        await answer.send(scope, receive, send)

    async def _refuse(self, status: int, scope: Scope, send: Send) -> None:
        if status == 301:
            await redirect(_with_slash(scope), send)
        else:
            await refuse(status, scope, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Open and close with the server, if this is the whole application (lifespan)."""
        await receive()
        try:
            await self.__aenter__()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})


def _below_mount(scope: Scope) -> str:
    """Return the URL path below the place where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        path = path[len(root) :]
    # Litestar's mounts put a slash at the end of every path.
    if path.endswith("/") and not (scope.get("raw_path") or b"/").lower().endswith(_SLASHES):
        path = path[:-1]
    return path


def _with_slash(scope: Scope) -> bytes:
    """Return the location of a folder that was requested without a slash at the end.

    It is relative to the requested URL: a proxy may have changed the path before it came to us.
    """
    asked: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    name = asked.partition(b"?")[0].rpartition(b"/")[2]
    query: bytes = scope.get("query_string", b"")
    place = b"./%b/?%b" % (name, query) if query else b"./%b/" % name
    # A server should not let other characters pass, and a header field must not have them.
    return _NOT_IN_URL.sub(b"", place)
