"""Opening a path once for all requests that wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ._folder import Refusal
from ._representation import Representation

Kept = TypeVar("Kept", bound=Representation)


class Openings:
    """The paths that are being opened; another request for such a path waits.

    It does not refer to the cache that opens them: with a cycle, neither would be freed before a
    collection.
    """

    __slots__ = ("_under_way",)

    def __init__(self) -> None:
        self._under_way: dict[str, anyio.Event] = {}

    async def open(
        self,
        route: str,
        get: Callable[[str], Kept | None],
        open_path: Callable[[str], Awaitable[Kept | Refusal]],
    ) -> Kept | Refusal:
        """Open the file at a canonical URL path, or wait for another request that is opening it.

        Raises as ``open_path``.
        """
        opening = self._under_way.get(route)
        if opening is not None:
            await opening.wait()
            # If the first opening failed, this one may succeed; if not, it raises its own error.
            return get(route) or await open_path(route)
        opening = self._under_way[route] = anyio.Event()
        try:
            return await open_path(route)
        finally:
            del self._under_way[route]
            opening.set()
