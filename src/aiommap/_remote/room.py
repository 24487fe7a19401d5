"""``Room``: what an open object needs from the folder in which its blocks are kept."""

from __future__ import annotations

from typing import Protocol


class Room(Protocol):
    """Gives blocks room on the disk: the folder, as an entry sees it."""

    def make(self, length: int) -> bool:
        """Reserve bytes, after evicting blocks if needed; False if there is no room."""
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
