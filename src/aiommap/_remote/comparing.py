"""Comparing the blocks of an object with their checksums in several threads. For worker threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

from .._runtime.threads import Mutex, run_in_thread
from .cache_folder import Files

#: How many blocks are compared in one call; and how many if all of them are in memory: each call
#: maps the file, and to end a mapping interrupts the other threads.
BLOCKS_A_CALL = 16
MAX_BLOCKS_A_CALL = 128
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


class _Share:
    """Hands out the blocks of an object, in order, to threads that compare them.

    Args:
        files: the object.
        threads: how many threads share it; no piece is so long that one thread ends much later.
    """

    def __init__(self, files: Files, threads: int) -> None:
        self._files = files
        self._threads = threads
        self._mutex = Mutex()
        self._next = 0

    def draw(self) -> tuple[int, int, bool]:
        """Draw blocks [start, end), none at the end; tell whether they are in memory."""
        with self._mutex:
            start, count = self._next, self._files.blocks.count
            most = min(MAX_BLOCKS_A_CALL, (count - start) // (2 * self._threads))
            end = min(count, start + BLOCKS_A_CALL)
            warm = _is_in_memory(self._files, end)
            while warm and end < start + most:
                further = min(count, end + BLOCKS_A_CALL)
                if not _is_in_memory(self._files, further):
                    break
                end = further
            self._next = end
            return start, end, warm


def compare(files: Files) -> Found:
    """Compare all blocks of an object; every thread has ended its share when this returns."""
    count = files.blocks.count
    ends: SimpleQueue[Found | BaseException] = SimpleQueue()
    wanted = min(MAX_THREADS, os.cpu_count() or 1, -(-count // BLOCKS_A_CALL))
    work = partial(_compare_some, files, _Share(files, wanted or 1), Mutex(), ends)
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
    files: Files, share: _Share, turn: Mutex, ends: SimpleQueue[Found | BaseException]
) -> None:
    """Compare blocks until none are left, and put the result.

    The threads take turns at blocks that are not in memory.
    """
    good = bad = length = 0
    try:
        while True:
            with in_turn(turn):
                start, end, warm = share.draw()
                if start == end:
                    break
                found = None if warm else files.blocks.verify(start, end)
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
