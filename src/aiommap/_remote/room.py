"""What an open object asks of the folder that its blocks are kept in."""

from __future__ import annotations

from typing import Protocol


class Room(Protocol):
    """Where blocks find room: the folder, as an entry knows it."""

    def make(self, length: int) -> bool:
        """Reserve bytes, and evict for them if need be; False if there is no room."""
        ...

    def settle(self, length: int, used: int) -> None:
        """End a reservation of which so much was used."""
        ...

    def is_alive(self, owner: int) -> bool:
        """Tell whether an owner of claims lives."""
        ...

    @property
    def owner(self) -> int:
        """Our number, by which claims are made."""
        ...

    def release(self) -> None:
        """End the use of it."""
        ...
