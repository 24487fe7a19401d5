"""``python -m benchmarks [QUESTION ...] [--smoke] [--json FILE]``, or ``... soak``."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys

from ._harness import Report
from ._machine import describe, in_words
from .soak.command import main as soak

QUESTIONS = (
    "warm_read",
    "large_read",
    "cold",
    "write",
    "stall",
    "fairness",
    "prewarm",
    "open_close",
    "durable",
    "scattered",
    "device_bytes",
    "write_stall",
    "many_files",
    "latency",
    "spans",
    "watch",
    "atomics",
    "wake",
    "growth",
    "log",
    "asgi",
    "remote",
)


def main() -> None:
    """Run the questions that were named, or all of them; or run the soak instead."""
    if sys.argv[1:2] == ["soak"]:
        sys.exit(soak(sys.argv[2:]))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog="Not one of them: soak, which has a --help of its own."
    )
    parser.add_argument("question", nargs="*", help="one of: " + ", ".join(QUESTIONS))
    parser.add_argument("--smoke", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args()
    unknown = [name for name in options.question if name not in QUESTIONS]
    if unknown:
        parser.error(f"no question {unknown[0]!r}: choose from " + ", ".join(QUESTIONS))
    machine = describe()
    print(in_words(machine))
    rows, curves = [], []
    for name in options.question or QUESTIONS:
        report = Report(name)
        module = importlib.import_module(f".bench_{name}", __package__)
        asyncio.run(module.run(report, smoke=options.smoke))
        rows += [{"question": name, **row} for row in report.rows]
        curves += [{"question": name, **curve} for curve in report.curves]
    if options.json:
        with open(options.json, "w") as file:
            run = {"machine": machine, "smoke": options.smoke, "figures": rows, "series": curves}
            json.dump(run, file)


if __name__ == "__main__":
    main()
