"""``python -m benchmarks soak [--minutes N] [--seed N] [--actor NAME ...]``."""

from __future__ import annotations

import argparse
import random
import tempfile

from .cast import CAST
from .spoiling import SABOTAGE
from .supervisor import LOOPS, Soak


def main(arguments: list[str]) -> int:
    """Run the soak; return the exit status: 0 if no oracle failed and nothing leaked, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; 10 by default")
    parser.add_argument("--seed", type=int, help="what the actors draw from; by default any")
    parser.add_argument("--loop", choices=LOOPS, help="only this event loop, not all in turn")
    parser.add_argument("--folder", help="where to make files, say on another file system")
    named = {actor.__name__: actor for actor in CAST}
    parser.add_argument(
        "--actor", action="append", choices=named, help="only this one; may be repeated"
    )
    parser.add_argument(
        "--sabotage",
        action="append",
        choices=SABOTAGE,
        default=[],
        help="break this on purpose, and so fail; may be repeated",
    )
    options = parser.parse_args(arguments)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    loops = (options.loop,) if options.loop else LOOPS
    cast = tuple(named[name] for name in options.actor or named)
    broken = frozenset(options.sabotage)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=options.folder) as folder:
        return Soak(options.minutes * 60, seed, folder, broken, loops, cast).run()
