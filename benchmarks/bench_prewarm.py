"""Does prewarm keep up with cat, and are the pages then really there?"""

from __future__ import annotations

import statistics
import subprocess
import time

import aiommap

from ._harness import MIB, Report, make_cold, scratch_file


async def run(report: Report, *, smoke: bool) -> None:
    """Alternate prewarm and ``cat FILE >/dev/null`` over a cold file."""
    size, rounds = (8 * MIB, 1) if smoke else (512 * MIB, 7)
    ours, cat, resident = [], [], 0.0
    with scratch_file(size) as path:
        for _ in range(rounds):
            make_cold(path)
            async with aiommap.open(path) as f:
                start = time.perf_counter()
                await f.prewarm()
                ours.append(size / MIB / (time.perf_counter() - start))
                cached = f._mapping.cachestat(0, size)[0]
                resident = cached * aiommap.PAGE_SIZE / size
            make_cold(path)
            start = time.perf_counter()
            with open("/dev/null", "wb") as sink:
                subprocess.run(["cat", path], stdout=sink, check=True)
            cat.append(size / MIB / (time.perf_counter() - start))
    report.row("prewarm", statistics.median(ours), "MiB/s")
    report.row("cat", statistics.median(cat), "MiB/s")
    report.row("prewarm / cat", statistics.median(ours) / statistics.median(cat), "x", 0.9)
    report.row("resident afterwards (cachestat)", resident, "of 1", 0.99)
