"""What do OpenTelemetry spans cost an operation that leaves the loop thread?"""

from __future__ import annotations

import os
import tempfile

from opentelemetry.sdk.trace import TracerProvider

import aiommap
from aiommap import FlushPolicy
from aiommap.opentelemetry import instrument, uninstrument

from ._harness import Report, rate

RECORD = bytes(128)


async def run(report: Report, *, smoke: bool) -> None:
    """Compare durable writes, and flushes with nothing to do, with spans off and on."""
    count, rounds = (50, 1) if smoke else (2000, 7)
    provider = TracerProvider()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "data")
        async with aiommap.open(path, "w+", size=1 << 20, flush=FlushPolicy.always()) as f:
            actions = {
                "clean flush": lambda _: f.flush(),
                "durable write": lambda i: f.write(i * len(RECORD), RECORD),
            }
            for name, action in actions.items():
                seconds: dict[str, list[float]] = {"off": [], "below": [], "each": []}
                for _ in range(rounds):
                    for spans, found in seconds.items():
                        uninstrument()
                        if spans != "off":
                            instrument(provider, threshold=3600 if spans == "below" else 0)
                        found.append(1 / await rate(action, count, 1))
                uninstrument()
                for spans, label in (
                    ("off", "off"),
                    ("below", "below threshold"),
                    ("each", "a span each"),
                ):
                    report.row(f"{name}: {label}", min(seconds[spans]) * 1e6, "us")
