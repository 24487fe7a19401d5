"""The counters of a cache, for any thread; pure but for a mutex."""

from __future__ import annotations

from dataclasses import fields

from .._runtime.threads import Mutex
from .statistics import CacheStatistics

_NAMES = tuple(field.name for field in fields(CacheStatistics))


class Counters:
    """Numbers that only grow, under the names that ``CacheStatistics`` has for them."""

    __slots__ = ("_counts", "_mutex")

    def __init__(self) -> None:
        self._mutex = Mutex()
        self._counts = dict.fromkeys(_NAMES, 0)

    def add(self, **counts: int) -> None:
        """Add to counters, by their names."""
        with self._mutex:
            for name, count in counts.items():
                self._counts[name] += count

    def add_to(self, name: str, count: int = 1) -> None:
        """Add to one counter: half the time of ``add``, for what each fetch counts."""
        with self._mutex:
            self._counts[name] += count

    def snapshot(self, **others: int) -> CacheStatistics:
        """Return all counters, plus numbers that are counted elsewhere."""
        with self._mutex:
            counts = dict(self._counts)
        for name, count in others.items():
            counts[name] += count
        return CacheStatistics(**counts)
