"""Holds, which keep a snapshot open after ``aclose`` was called. For the loop thread."""

from __future__ import annotations

import anyio


class Holds:
    """Counts the holds on one snapshot, which is closed after the last of them.

    It does not refer to the snapshot: with a cycle, neither would be freed before a collection.
    """

    __slots__ = ("_closing", "_count", "_ended")

    def __init__(self) -> None:
        self._count = 0
        self._closing = False
        self._ended: anyio.Event | None = None

    @property
    def any(self) -> bool:
        """Whether there is a hold."""
        return self._count > 0

    def take(self, name: str) -> None:
        """Take a hold; ``name`` names the snapshot in an error."""
        if self._closing:
            raise anyio.ClosedResourceError(f"{name} is closed: open it again to use it")
        self._count += 1

    def release(self) -> bool:
        """End a hold; true if it was the last one and the snapshot is to be closed now."""
        self._count -= 1
        if not self._closing or self._count:
            return False
        if self._ended is not None:
            self._ended.set()
        return True

    def refuse(self) -> bool:
        """Refuse new holds; true if there is none, so that the snapshot can be closed now."""
        self._closing = True
        return not self._count

    async def wait_ended(self) -> None:
        """Wait until the last hold has ended, after ``refuse``."""
        if self._count:
            self._ended = self._ended or anyio.Event()
            await self._ended.wait()
