"""How much bandwidth does a warm 1 MiB read have, beside a bare slice?"""

from __future__ import annotations

import mmap

import aiommap

from ._harness import MIB, Report, compare, scratch_file


async def run(report: Report, *, smoke: bool) -> None:
    """Compare with a bare slice."""
    pieces, count = (4, 50) if smoke else (64, 2000)
    with scratch_file(pieces * MIB) as path, open(path, "rb") as file:
        bare = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        for at in range(0, pieces * MIB, 4096):
            bare[at]

        async def slice_(i: int) -> bytes:
            return bare[i % pieces * MIB : (i % pieces + 1) * MIB]

        async with aiommap.open(path, prewarm=True) as mapped:
            found = await compare(
                {
                    "bare": (slice_, count),
                    "aiommap": (lambda i: mapped.read(i % pieces * MIB, MIB), count),
                },
                1,
                1 if smoke else 5,
            )
        bare.close()
    for name, value in found.items():
        report.row(name, value, "MiB/s")
    report.row("aiommap / bare slice", found["aiommap"] / found["bare"], "x", 0.8)
