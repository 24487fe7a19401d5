"""Which pages are in memory: prewarm, residency, advice, pinning, read-ahead."""
