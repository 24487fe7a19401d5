"""Which pages are in memory: prewarm, residency, advice, locking, read-ahead."""
