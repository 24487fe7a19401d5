"""Comparing the blocks of an object with their checksums in several threads. For worker threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

from .._runtime.threads import Mutex, run_in_thread
from .cache_folder import Files

#: How many blocks are compared in one call.
BLOCKS_A_CALL = 16
#: A thread that copies and sums reads at half the rate of one that only reads. More threads than
#: this only wait for memory.
MAX_THREADS = 4
#: How long a thread waits for its turn to read an object from the disk. From a fast disk one thread
#: reads faster than several, because the kernel reads ahead better for it; from a disk that answers
#: late, several read faster.
TURN_SECONDS = 0.05

#: Number of good blocks, number of bad blocks (which are EMPTY then), and bytes of both.
Found = tuple[int, int, int]


@contextmanager
def in_turn(turn: Mutex) -> Iterator[None]:
    """Run the block alone, or beside other threads if the turn takes too long to come."""
    alone = turn.acquire(timeout=TURN_SECONDS)
    try:
        yield
    finally:
        if alone:
            turn.release()


def compare(files: Files) -> Found:
    """Compare all blocks of an object; every thread has ended its share when this returns."""
    count = files.blocks.count
    # The threads share this iterator: a step of it is one call in C, so no two get the same start.
    starts = iter(range(0, count, BLOCKS_A_CALL))
    ends: SimpleQueue[Found | BaseException] = SimpleQueue()
    work = partial(_compare_some, files, starts, Mutex(), ends)
    wanted = min(MAX_THREADS, os.cpu_count() or 1, -(-count // BLOCKS_A_CALL))
    started = 1
    for _ in range(1, wanted):
        try:
            run_in_thread(work)
        except RuntimeError:  # no thread can be started
            break
        started += 1
    work()
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
    files: Files, starts: Iterator[int], turn: Mutex, ends: SimpleQueue[Found | BaseException]
) -> None:
    """Compare blocks from the shared iterator until it ends, and put the result.

    The threads take turns at blocks that are not in memory.
    """
    good = bad = length = 0
    try:
        while True:
            with in_turn(turn):
                start = next(starts, None)
                if start is None:
                    break
                end = min(files.blocks.count, start + BLOCKS_A_CALL)
                found = None if _is_in_memory(files, end) else files.blocks.verify(start, end)
            found = found or files.blocks.verify(start, end)
            good, bad, length = good + found[0], bad + found[1], length + found[2]
    except BaseException as error:
        ends.put(error)
    else:
        ends.put((good, bad, length))


def _is_in_memory(files: Files, end: int) -> bool:
    """Tell whether the byte before a block is in memory; True also if nothing tells that."""
    last = min(files.header.identity.state.size, end * files.header.block_size) - 1
    try:
        os.preadv(files.data, [bytearray(1)], last, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
