"""Find what a round left behind.

The loop of the round has ended, so everything must be gone: threads, descriptors, mappings, objects
of the library. The interpreter also caches some memory, so blocks of memory are compared with those
after the first round of the same loop.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass

#: trio keeps an idle thread for ten seconds.
THREADS_SECONDS = 15.0
#: By how many blocks caches of the interpreter and of libraries may grow from round to round.
SPARE_BLOCKS = 20_000


@dataclass(frozen=True)
class Footprint:
    """The resources that the process holds at one moment."""

    threads: int
    descriptors: Counter[str]
    #: Lines of the list of mappings that name a file of the soak, or one that is gone.
    mappings: list[str]
    #: Live objects of the library, by class.
    objects: Counter[str]
    #: Blocks of memory the interpreter has handed out.
    blocks: int
    resident_kib: int

    def line(self) -> str:
        """Write it in one line."""
        return (
            f"{self.threads} threads, {self.descriptors.total()} descriptors, "
            f"{len(self.mappings)} mappings, {self.objects.total()} objects, "
            f"{self.blocks} blocks, {self.resident_kib >> 10} MiB"
        )


def footprint(folder: str) -> Footprint:
    """Take the footprint of this process; no event loop runs."""
    for _ in range(3):
        gc.collect()
    with open("/proc/self/maps") as lines:
        mappings = [line.strip() for line in lines if folder in line]
    with open("/proc/self/status") as lines:
        status = dict(line.split(":", 1) for line in lines)
    return Footprint(
        threads=len(os.listdir("/proc/self/task")),
        descriptors=_descriptors(),
        mappings=mappings,
        objects=_objects(),
        blocks=sys.getallocatedblocks(),
        resident_kib=int(status["VmRSS"].split()[0]),
    )


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue  # the descriptor of this very listing
        found[target.partition(":[")[0]] += 1  # pipe:[4711] and socket:[4711] are like any other
    return found


def _objects() -> Counter[str]:
    found: Counter[str] = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        # A worker is counted as a thread; it has not been idle for long enough to end.
        if str(kind.__module__).partition(".")[0] == "aiommap" and kind.__name__ != "_Worker":
            found[kind.__qualname__] += 1
    return found


def wait_for_threads(most: int) -> None:
    """Give idle threads the time to end; collect garbage first, as it may keep threads."""
    gc.collect()
    deadline = time.monotonic() + THREADS_SECONDS
    while len(os.listdir("/proc/self/task")) > most and time.monotonic() < deadline:
        time.sleep(0.05)


def leaks(before: Footprint, first: Footprint, after: Footprint, *, threads: bool) -> list[str]:
    """Name what is there now and was not before any round, or after the loop's first round."""
    found = []
    if threads and after.threads > before.threads:
        found.append(f"leaked {after.threads - before.threads} threads")
    more = after.descriptors - before.descriptors
    found += [f"leaked {count} descriptors: {name}" for name, count in sorted(more.items())]
    found += [f"leaked the mapping {line}" for line in after.mappings]
    more = after.objects - before.objects
    found += [f"leaked {count} objects: {name}" for name, count in sorted(more.items())]
    if after.blocks > first.blocks + SPARE_BLOCKS:
        found.append(f"leaked {after.blocks - first.blocks} blocks of memory")
    return found
