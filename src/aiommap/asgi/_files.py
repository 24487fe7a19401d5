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

#: How a slash at the end of a path may be spelt.
_SLASHES = (b"/", b"%2f")

#: How often a file is opened again that has lost its bytes before the first was sent.
MAX_TRIES = 3


class MappedFiles:
    """An ASGI application that serves the files of a folder, from memory where they are there.

    Or the objects of a store: ``MappedFiles(aiommap.remote.RemoteFolder(cache, address))``.

    Mount it in Starlette, FastAPI or Litestar, or run it alone. GET and HEAD; byte ranges and
    conditions as RFC 9110 has them; a folder is answered with its ``index.html``. A file has a
    strong entity tag, and each answer is of one version of it: a file that is replaced meanwhile is
    sent to its end, and one that is truncated or overwritten in place is broken off, not padded.
    The next request, a few milliseconds after the change, gets the new version.

    No file is sent that is outside of the folder when it is opened, whatever the path or a link
    says; links that stay inside are followed. Pipes, sockets and devices are not there (404).

    Bytes in memory are sent by the loop thread without a hop or a look at the disk; the hub's
    workers read all others. Files that were asked for lately stay open.

    An object has the entity tag of its store, and is sent as it was at most ``max_age`` seconds
    before: the ``RemoteFolder`` says so. It is asked for in the store under the path below the
    mount. While the store cannot be asked, what is open and cached goes on being sent; else the
    answer is 502.

    Run alone, it opens and closes with the server. Under a mount, close it with the application:
    ``async with MappedFiles(...)`` in its lifespan; what it holds goes with the loop otherwise.

    Args:
        directory: the folder; links in its path may be turned while it is served. A
            ``RemoteFolder`` serves objects; close its cache after this.
        hub: opens and watches the files; leaving it ends serving. By default there is one for this
            alone, made when it is first needed. Objects are by default mapped by their cache's.
        cache: how many files stay open; each takes a descriptor, an object three, so it is at most
            half of those that the process may have.
    Raises:
        ValueError, TypeError: for arguments that cannot be meant; the folder is looked at when
            serving begins.
    Concurrency: one event loop after the other; a hub, or the cache of a ``RemoteFolder``, keeps it
        to its own.
    """

    __slots__ = ("_cache", "_hub", "_limit", "_own_hub", "_served")

    def __init__(
        self,
        directory: str | os.PathLike[str] | RemoteFolder,
        *,
        hub: Hub | None = None,
        cache: int = 1024,
    ) -> None:
        #: The path of the folder, or what opens objects.
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
            hub_or_new(hub)  # refuses anything but a hub
        self._hub = hub
        #: The hub that was made for this alone, in the loop that asked last.
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
        """Close the files, and the hub unless it was passed; a request opens them again.

        Cancellation: waited out, as for ``Hub.aclose``.
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
        """Return the files of the loop that runs here; a test client runs one for each request."""
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
        """Open with the server, and close with it, where this is the whole application."""
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
    """Return where a folder is that was asked for without the slash at its end.

    Relative to what was asked for, as only that is the same for the client whatever stands between.
    """
    asked: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    name = asked.partition(b"?")[0].rpartition(b"/")[2]
    query: bytes = scope.get("query_string", b"")
    place = b"./%b/?%b" % (name, query) if query else b"./%b/" % name
    # A server should let nothing else pass, and a header field must not have it.
    return _NOT_IN_URL.sub(b"", place)
