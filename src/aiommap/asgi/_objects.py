"""The objects of a store that were asked for lately: open, and opened again when they are old.

Theory of operation. No watcher tells of objects. One that was opened within ``max_age`` seconds is
served without a look. The first request after that opens it again, which is one question to the
store, and finds what is cached of it if it is the same. Who is being sent an old one has it to its
end, as a response refers to it. A snapshot is closed when nothing refers to it any more.

Invariants.
  1  What is served was the store's object at most ``max_age`` seconds before the request, unless
     the store cannot be asked.
  2  However many requests wait for an object, one of them asks the store.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable
from typing import Protocol, runtime_checkable

from .._errors import RemoteError
from .._hub.hub import Hub
from .._logs import REMOTE
from ._folder import INDEX, Refusal
from ._openings import Openings
from ._representation import Representation, StoreObject, media_type_of, validators_of_object

#: Descriptors of an open object: of its data, of its map, and of the mapping.
DESCRIPTORS_EACH = 3


@runtime_checkable
class ObjectFolder(Protocol):
    """What is asked of a ``RemoteFolder``; not everybody is to import that for it."""

    @property
    def max_age(self) -> float: ...
    def share(self, name: str, hub: Hub | None = None) -> Awaitable[StoreObject]: ...


class ObjectCache:
    """The objects that were asked for lately; to ``MappedFiles`` what ``FileCache`` is.

    Args:
        folder: opens them.
        hub: maps them; None leaves that to the folder's cache.
        limit: how many are kept.
    """

    def __init__(self, folder: ObjectFolder, hub: Hub | None, limit: int) -> None:
        self._folder = folder
        self._hub = hub
        self._limit = limit
        #: What is served, and when it was opened.
        self._kept: OrderedDict[str, tuple[Representation, float]] = OrderedDict()
        self._openings = Openings()

    @property
    def is_here(self) -> bool:
        """Whether this belongs to the loop that asks: the folder's cache knows, and raises."""
        return True

    async def check(self) -> None:
        """Ask the store nothing before something is asked for."""

    def get(self, route: str) -> Representation | None:
        """Return the object to serve at a canonical URL path, unless it is old."""
        kept = self._kept.get(route)
        if kept is None or time.monotonic() - kept[1] >= self._folder.max_age:
            return None
        self._kept.move_to_end(route)
        return kept[0]

    async def open(self, route: str) -> Representation | Refusal:
        """Open the object at a canonical URL path.

        Raises:
            UnsupportedError: if the store sends nothing to tell one object from another.
        """
        return await self._openings.open(route, self.get, self._open)

    def drop(self, route: str, version: Representation) -> None:
        """Serve an object no more that turned out to be overwritten."""
        kept = self._kept.get(route)
        if kept is not None and kept[0] is version:
            del self._kept[route]

    def close(self) -> None:
        """Give up all objects."""
        self._kept.clear()

    async def _open(self, route: str) -> Representation | Refusal:
        name = route[1:] + (INDEX if route.endswith("/") else "")
        began = time.monotonic()
        try:
            snapshot = await self._folder.share(name, self._hub)
        except FileNotFoundError:
            return self._refuse(route, 404)
        except PermissionError:
            return self._refuse(route, 403)
        except RemoteError as error:
            return self._serve_old(route, error)
        version = Representation(
            snapshot, media_type_of(f"/{name}"), validators_of_object(snapshot)
        )
        self._keep(route, version, began)
        return version

    def _refuse(self, route: str, status: int) -> Refusal:
        self._kept.pop(route, None)
        return Refusal(status)

    def _serve_old(self, route: str, error: RemoteError) -> Representation | Refusal:
        """Go on with what there is while the store cannot be asked, and ask again later."""
        REMOTE.warning("the store cannot be asked for what is served: %s", error)
        kept = self._kept.get(route)
        if kept is None:
            return Refusal(502)
        self._keep(route, kept[0], time.monotonic())
        return kept[0]

    def _keep(self, route: str, version: Representation, opened: float) -> None:
        self._kept[route] = version, opened
        self._kept.move_to_end(route)
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
