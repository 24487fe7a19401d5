"""What to fetch, and when: requests, read-ahead, and how long to wait for others; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

#: How long we wait for a block that another owner fetches, before we fetch it ourselves.
HEDGE_SECONDS = 2.0
#: We wait at least as long as this many requests took lately.
HEDGE_REQUESTS = 4
#: For how long we do not wait for an owner that was too slow with one block.
SLOW_OWNER_SECONDS = 10.0
#: How often we check, while waiting for a block, that its owner is alive.
LOOK_SECONDS = 0.1
#: How many requests we fetch ahead of sequential reads; and at most this part of the cache, because
#: the cache would otherwise give up what was not read yet.
AHEAD_REQUESTS = 4
AHEAD_SHARE = 4
#: A cache with room for fewer requests may give up what was fetched ahead before it is read.
TIGHT_REQUESTS = 16

Run = tuple[int, int]


def runs_of(blocks: Iterable[int]) -> list[Run]:
    """Join block numbers, which ascend, into runs [first, end)."""
    found = list(blocks)
    if found and found[-1] - found[0] == len(found) - 1:  # one run: the usual case
        return [(found[0], found[-1] + 1)]
    runs = []
    for _, group in groupby(enumerate(found), lambda pair: pair[1] - pair[0]):
        members = [block for _, block in group]
        runs.append((members[0], members[-1] + 1))
    return runs


def requests_of(runs: Iterable[Run], most: int) -> Iterator[Run]:
    """Cut runs of blocks into requests of at most ``most`` blocks."""
    for first, end in runs:
        for start in range(first, end, most):
            yield start, min(end, start + most)


def without(run: Run, taken: Iterable[int]) -> list[Run]:
    """Return the runs that are left of a run without some blocks."""
    gone = set(taken)
    return runs_of(block for block in range(*run) if block not in gone)


def overlap(run: Run, other: Run) -> Run | None:
    """Return the range that two ranges share; None if they share nothing."""
    low, high = max(run[0], other[0]), min(run[1], other[1])
    return (low, high) if low < high else None


def requests_ahead(most_bytes: int, request: int) -> int:
    """Return how many requests to fetch ahead into a cache that has room for ``most_bytes``."""
    return min(AHEAD_REQUESTS, most_bytes // AHEAD_SHARE // request)


class ReadAhead:
    """Decides which range to fetch ahead, from the reads that callers report to it.

    Each read that begins where the last one ended doubles the window, from one request up to
    ``most`` requests. Any other read closes the window. The range grows by whole
    requests, and no byte is asked for twice.
    """

    __slots__ = ("_ahead", "_most", "_next", "_request", "_size", "_window")

    def __init__(self, size: int, request: int, most: int = AHEAD_REQUESTS) -> None:
        self._size = size
        self._request = request
        self._most = most * request
        self._next = -1
        self._ahead = 0
        self._window = 0

    def read(self, offset: int, length: int) -> Run | None:
        """Note a read; return the range of bytes to fetch ahead now, or None."""
        if not length:
            return None
        follows = offset == self._next
        self._next = offset + length
        if not follows:
            self._window, self._ahead = 0, self._next
            return None
        self._window = min(max(2 * self._window, self._request), self._most)
        self._ahead = max(self._ahead, self._next)
        goal = min(self._next + self._window, self._size)
        if goal - self._ahead < self._request and goal < self._size:
            return None
        if goal <= self._ahead:
            return None
        start, self._ahead = self._ahead, goal
        return start, goal
