"""Comparing the blocks of an object with their checksums in several threads. For worker threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue

from .._native import Blocks
from .._runtime.threads import run_in_thread

#: How many blocks are compared in one call.
BLOCKS_A_CALL = 64
#: A thread that copies and sums reads at half the rate of one that only reads. More threads than
#: this only wait for memory.
MAX_THREADS = 4

#: Number of good blocks, number of bad blocks (which are EMPTY then), and bytes of both.
Found = tuple[int, int, int]


def compare(blocks: Blocks) -> Found:
    """Compare all blocks of an object; every thread has ended its share when this returns."""
    # The threads share this iterator: a step of it is one call in C, so no two get the same start.
    starts = iter(range(0, blocks.count, BLOCKS_A_CALL))
    ends: SimpleQueue[Found | BaseException] = SimpleQueue()
    wanted = min(MAX_THREADS, os.cpu_count() or 1, -(-blocks.count // BLOCKS_A_CALL))
    started = 1
    for _ in range(1, wanted):
        try:
            run_in_thread(partial(_compare_some, blocks, starts, ends))
        except RuntimeError:  # no thread can be started
            break
        started += 1
    _compare_some(blocks, starts, ends)
    good = bad = length = 0
    failed: BaseException | None = None
    for end in [ends.get() for _ in range(started)]:
        if isinstance(end, BaseException):
            failed = end
        else:
            good, bad, length = good + end[0], bad + end[1], length + end[2]
    if failed is not None:
        raise failed
    return good, bad, length


def _compare_some(
    blocks: Blocks, starts: Iterator[int], ends: SimpleQueue[Found | BaseException]
) -> None:
    """Compare blocks from the shared iterator until it ends, and put the result."""
    good = bad = length = 0
    try:
        for start in starts:
            found = blocks.verify(start, min(blocks.count, start + BLOCKS_A_CALL))
            good, bad, length = good + found[0], bad + found[1], length + found[2]
    except BaseException as error:
        ends.put(error)
    else:
        ends.put((good, bad, length))
