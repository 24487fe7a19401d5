"""What to fetch, and when: requests, read-ahead, and how long to wait for others; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

#: How long a block may be somebody else's before it is fetched by whoever waits for it.
HEDGE_SECONDS = 2.0
#: And for no less than so many requests take.
HEDGE_REQUESTS = 4
#: How long somebody who was too slow with one block is not waited for.
SLOW_OWNER_SECONDS = 10.0
#: How long one wait for it takes at most, after which it is asked whether its owner lives.
LOOK_SECONDS = 0.1
#: So many requests are fetched ahead of reads that follow one another.
AHEAD_REQUESTS = 4

Run = tuple[int, int]


def runs_of(blocks: Iterable[int]) -> list[Run]:
    """Join blocks, in order and each once, into runs [first, end)."""
    found = list(blocks)
    if found and found[-1] - found[0] == len(found) - 1:  # as usual
        return [(found[0], found[-1] + 1)]
    runs = []
    for _, group in groupby(enumerate(found), lambda pair: pair[1] - pair[0]):
        members = [block for _, block in group]
        runs.append((members[0], members[-1] + 1))
    return runs


def requests_of(runs: Iterable[Run], most: int) -> Iterator[Run]:
    """Cut runs of blocks into requests of at most so many blocks."""
    for first, end in runs:
        for start in range(first, end, most):
            yield start, min(end, start + most)


def without(run: Run, taken: Iterable[int]) -> list[Run]:
    """Return what is left of a run without some blocks."""
    gone = set(taken)
    return runs_of(block for block in range(*run) if block not in gone)


def overlap(run: Run, other: Run) -> Run | None:
    """Return what two ranges share; None if nothing."""
    low, high = max(run[0], other[0]), min(run[1], other[1])
    return (low, high) if low < high else None


class ReadAhead:
    """Which range to fetch ahead of a reader, who says where it reads.

    Reads that follow one another double the window, from one request on to ``AHEAD_REQUESTS``. A
    read from elsewhere ends it. The range is asked for in whole requests, and each byte once.
    """

    __slots__ = ("_ahead", "_next", "_request", "_size", "_window")

    def __init__(self, size: int, request: int) -> None:
        self._size = size
        self._request = request
        self._next = -1
        self._ahead = 0
        self._window = 0

    def read(self, offset: int, length: int) -> Run | None:
        """Take note of a read; return the range of bytes to fetch ahead of the next one."""
        if not length:
            return None
        follows = offset == self._next
        self._next = offset + length
        if not follows:
            self._window, self._ahead = 0, self._next
            return None
        most = AHEAD_REQUESTS * self._request
        self._window = min(max(2 * self._window, self._request), most)
        self._ahead = max(self._ahead, self._next)
        goal = min(self._next + self._window, self._size)
        if goal - self._ahead < self._request and goal < self._size:
            return None
        if goal <= self._ahead:
            return None
        start, self._ahead = self._ahead, goal
        return start, goal
