"""Polls: one request for all who follow the same key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from weakref import WeakValueDictionary

import anyio

from .source import RemoteState

Ask = Callable[[RemoteState | None], Awaitable[RemoteState | None]]


class Poll:
    """What the store said last of one key.

    Attributes:
        state: the last state that it told; None before the first.
        failure: why the last request failed; None if it did not.
    """

    __slots__ = ("__weakref__", "_asked_at", "_source", "_turn", "failure", "state")

    def __init__(self, source: object) -> None:
        self._source = source  # so that no other object gets its id
        self._turn = anyio.Lock()
        self._asked_at = float("-inf")
        self.state: RemoteState | None = None
        self.failure: Exception | None = None

    def due_in(self, interval: float) -> float:
        """Return how many seconds a follower waits for its next turn to ask.

        Followers of equal intervals come to have their turns together. Who tried an object for
        longer than the interval waits for a whole one.
        """
        left = self._asked_at + interval - anyio.current_time()
        return left if left > 0 else interval

    async def refresh(self, ask: Ask, interval: float) -> None:
        """Ask the store, unless somebody did so less than ``interval`` seconds ago.

        Cancellation: nothing was asked; the next follower does so.
        """
        async with self._turn:
            now = anyio.current_time()
            if now - self._asked_at < interval:
                return
            try:
                self.state = await ask(self.state) or self.state
                self.failure = None
            except Exception as error:
                self.failure = error
            self._asked_at = now


class Polls:
    """The polls of a cache, by what is followed: the text of a URL, or a source."""

    __slots__ = ("_polls",)

    def __init__(self) -> None:
        self._polls: WeakValueDictionary[Hashable, Poll] = WeakValueDictionary()

    def of(self, source: object) -> Poll:
        """Return the poll that all who follow this share; it lives while one of them does."""
        try:
            hash(source)
        except TypeError:
            return self._polls.setdefault(id(source), Poll(source))
        return self._polls.setdefault(source, Poll(source))
