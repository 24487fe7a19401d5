"""``Room``: what an open object needs from the folder in which its blocks are kept."""

from __future__ import annotations

from typing import Protocol


class Room(Protocol):
    """Gives blocks room on the disk: the folder, as an entry sees it."""

    @property
    def most_bytes(self) -> int:
        """How many bytes there is room for in all; in any thread."""
        ...

    def make(self, length: int, unit: int = 0) -> int:
        """Reserve bytes, after evicting blocks if needed; return how many.

        If there is no room for all, these are as many whole units as there is room for; without a
        unit there are none.
        """
        ...

    def note_stored(self, length: int) -> None:
        """Note that so many bytes were stored."""
        ...

    def tell_full(self, length: int, error: OSError) -> None:
        """Report that the disk had no room for bytes: once, until as many were stored."""
        ...

    def why_none(self, length: int) -> str:
        """Tell why there is no room for bytes, and what to do."""
        ...

    def settle(self, length: int, used: int) -> None:
        """End a reservation of ``length`` bytes, of which ``used`` were used."""
        ...

    def is_alive(self, owner: int) -> bool:
        """Tell whether an owner of claims is alive."""
        ...

    @property
    def owner(self) -> int:
        """The number of our lease, which our claims carry."""
        ...

    def release(self) -> None:
        """End one use of the folder."""
        ...
