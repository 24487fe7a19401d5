"""``Sequence``: the responses that a sequential reader still needs. For the loop thread.

A cache without room cannot hand the rest of a response to the next read. So a reader that goes on
where it ended keeps that rest here, together with what was fetched ahead of it. A body that the
cache has stored is dropped: only what would otherwise be fetched again stays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .body import Body
from .fetches import Fetch
from .fetching import Run


class Sequence:
    """The bodies that lie before one reader; a jump to another place forgets them.

    Args:
        bytes_of: returns the bytes [start, end) of a run of blocks.
    """

    __slots__ = ("_bodies", "_bytes_of", "_end", "_fetches")

    def __init__(self, bytes_of: Callable[[int, int], Run]) -> None:
        self._bytes_of = bytes_of
        self._bodies: list[Body] = []
        self._fetches: list[Fetch] = []
        #: Where the last read ended.
        self._end = 0

    def advance(self, start: int, end: int) -> None:
        """Note that the reader comes to the bytes [start, end), and forget what lies behind it."""
        last, self._end = self._end, end
        if not (self._bodies or self._fetches):
            return
        self._take_ended()
        ranges = [(last, last), *((body.start, body.end) for body in self._bodies)]
        ranges += [self._bytes_of(*fetch.run) for fetch in self._fetches]
        if not min(ranges)[0] <= start <= max(high for _, high in ranges):
            self._bodies, self._fetches = [], []
        self._bodies = [body for body in self._bodies if body.end > start]

    def bodies(self, start: int, end: int) -> list[Body]:
        """Return the bodies that have some of the bytes [start, end)."""
        if not (self._bodies or self._fetches):
            return []
        self._take_ended()
        return [body for body in self._bodies if body.start < end and body.end > start]

    def _take_ended(self) -> None:
        """Take over the bodies of fetches that have ended."""
        for fetch in [fetch for fetch in self._fetches if fetch.ended]:
            self._fetches.remove(fetch)
            self._bodies += fetch.bodies

    def keep(self, bodies: Iterable[Body], *, stored: bool) -> None:
        """Keep bodies that reach farther than the last read; with ``stored`` also cached ones."""
        known = set(map(id, self._bodies))
        self._bodies += [
            body
            for body in bodies
            if (stored or not body.kept) and body.end > self._end and id(body) not in known
        ]

    def expect(self, fetches: Iterable[Fetch]) -> None:
        """Keep the bodies that fetches will bring."""
        self._fetches += [fetch for fetch in fetches if fetch not in self._fetches]
