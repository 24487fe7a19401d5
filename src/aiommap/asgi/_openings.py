"""Opening what is asked for: however many ask for a path, one of them opens it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ._folder import Refusal
from ._representation import Representation

Kept = TypeVar("Kept", bound=Representation)


class Openings:
    """The paths that are being opened; whoever else asks for one meanwhile waits for that.

    It refers to nothing that opens them, or neither would be garbage before a collection.
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
        """Open what is at a canonical URL path, unless ``get`` has it after a wait for others.

        Raises what ``open_path`` does.
        """
        opening = self._under_way.get(route)
        if opening is not None:
            await opening.wait()
            # What failed for the first may not for this one, and each is to see its own error.
            return get(route) or await open_path(route)
        opening = self._under_way[route] = anyio.Event()
        try:
            return await open_path(route)
        finally:
            del self._under_way[route]
            opening.set()
