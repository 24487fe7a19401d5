"""The objects of a store that were requested lately: open, and opened again after ``max_age``.

Theory of operation. Nobody watches objects. An object that was opened within ``max_age`` seconds is
served without a check. The first request after that opens it again. That sends one request to the
store, and finds the cached blocks if the object is the same. A response refers to its snapshot, so
it sends an old one to the end, and a snapshot is closed when nothing refers to it.

Invariants.
  1  An object is served in a state that the store had at most ``max_age`` seconds before the
     request, unless the store cannot be reached.
  2  However many requests wait for an object, only one of them asks the store.
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

#: How many descriptors an open object takes: for its data, for its map, and for the mapping.
DESCRIPTORS_EACH = 3


@runtime_checkable
class ObjectFolder(Protocol):
    """The part of a ``RemoteFolder`` that is used here, so that this need not import it."""

    @property
    def max_age(self) -> float: ...
    def share(self, name: str, hub: Hub | None = None) -> Awaitable[StoreObject]: ...


class ObjectCache:
    """The objects that were requested lately; ``MappedFiles`` uses it like a ``FileCache``.

    Args:
        folder: opens the objects.
        hub: maps the objects; None leaves that to the folder's cache.
        limit: how many objects are kept.
    """

    def __init__(self, folder: ObjectFolder, hub: Hub | None, limit: int) -> None:
        self._folder = folder
        self._hub = hub
        self._limit = limit
        #: The object to serve at each URL path, and when it was opened.
        self._kept: OrderedDict[str, tuple[Representation, float]] = OrderedDict()
        self._openings = Openings()

    @property
    def is_here(self) -> bool:
        """True: the folder's cache checks the loop itself, and raises."""
        return True

    async def check(self) -> None:
        """Do nothing: the store is not asked before the first request."""

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
            UnsupportedError: if the store sends no validator.
        """
        return await self._openings.open(route, self.get, self._open)

    def drop(self, route: str, version: Representation) -> None:
        """Stop serving an object that turned out to be overwritten."""
        kept = self._kept.get(route)
        if kept is not None and kept[0] is version:
            del self._kept[route]

    def close(self) -> None:
        """Drop all objects."""
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
        """Serve the old object while the store cannot be reached; ask again after ``max_age``."""
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
