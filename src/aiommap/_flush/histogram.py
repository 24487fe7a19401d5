"""A histogram of positive numbers in buckets of equal ratio: small, and exact to five per cent.

Pure. Only buckets with values take memory, so the histogram of a file that never flushes has none.
"""

from __future__ import annotations

import math

#: The ratio of the bounds of a bucket: its middle is within 5 % of every value in it.
RATIO = 1.1
_LOG_RATIO = math.log(RATIO)


class Histogram:
    """Counts values, and answers how large they were."""

    __slots__ = ("_buckets", "count", "maximum", "total")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count: int = 0
        self.total: float = 0.0
        self.maximum: float = 0.0

    def record(self, value: float) -> None:
        """Count a value above 0."""
        bucket = math.floor(math.log(value) / _LOG_RATIO)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += value
        self.maximum = max(self.maximum, value)

    def quantile(self, share: float) -> float:
        """Return a value that this share of all counted ones do not exceed; 0 if there is none."""
        wanted = share * self.count
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                middle = math.exp((bucket + 0.5) * _LOG_RATIO)
                return min(middle, self.maximum)
        return 0.0
