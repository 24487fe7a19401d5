"""What a round must not leave behind.

The loop has ended when this is asked, so all of it is to be gone: threads, descriptors, mappings,
objects of the library. What the interpreter caches is known only from the first round of the same
loop, and blocks of memory are compared with that.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass

#: trio keeps a thread that has nothing to do for ten seconds.
THREADS_SECONDS = 15.0
#: What caches of the interpreter and of libraries may take from round to round.
SPARE_BLOCKS = 20_000


@dataclass(frozen=True)
class Footprint:
    """What the process holds at one moment."""

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
        """Say it in a line."""
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
        # A worker is a thread, and counted as such; its time to end has not come yet.
        if str(kind.__module__).partition(".")[0] == "aiommap" and kind.__name__ != "_Worker":
            found[kind.__qualname__] += 1
    return found


def wait_for_threads(most: int) -> None:
    """Give idle threads the time to end that they take; one that garbage keeps is idle after it."""
    gc.collect()
    deadline = time.monotonic() + THREADS_SECONDS
    while len(os.listdir("/proc/self/task")) > most and time.monotonic() < deadline:
        time.sleep(0.05)


def leaks(before: Footprint, first: Footprint, after: Footprint, *, threads: bool) -> list[str]:
    """Say what is there that was not, before any round or after the first one of the same loop."""
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
