"""Holds: what keeps a snapshot open after it was asked to close. For the loop thread."""

from __future__ import annotations

import anyio


class Holds:
    """The holds on one snapshot, which closes it after the last of them.

    It does not know the snapshot, or neither would be garbage before a collection.
    """

    __slots__ = ("_closing", "_count", "_ended")

    def __init__(self) -> None:
        self._count = 0
        self._closing = False
        self._ended: anyio.Event | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self._count > 0

    def take(self, name: str) -> None:
        """Hold the snapshot of that name once more."""
        if self._closing:
            raise anyio.ClosedResourceError(f"{name} is closed: open it again to use it")
        self._count += 1

    def release(self) -> bool:
        """End a hold; true if nothing is in the way of closing any more."""
        self._count -= 1
        if not self._closing or self._count:
            return False
        if self._ended is not None:
            self._ended.set()
        return True

    def refuse(self) -> bool:
        """Let nobody take one any more; true if nothing is in the way of closing."""
        self._closing = True
        return not self._count

    async def wait_ended(self) -> None:
        """Wait until the last one has ended, after ``refuse``."""
        if self._count:
            self._ended = self._ended or anyio.Event()
            await self._ended.wait()
