"""Room for new blocks: the clock algorithm evicts old ones. For worker threads.

Theory of operation. One evictor works at a time, in a process that needs room. Its hand moves over
the objects in the order of their names, from where the last evictor stopped, and over the blocks of
each. A block that was read since the hand last passed it stays, and its mark is cleared: it has to
be read again before the next round. The other blocks are evicted. The clock records no times, and
a reader marks a block at most once a round.

Invariants.
  1  The evictor claims a block before its bytes go, so a reader that was copying it finds that its
     word changed. A view keeps a shared lock on its blocks, which refuses the evictor's: they stay
     (R5). A block also stays if somebody took it over from the evictor and is filling it again: the
     evictor compares its word once more under the lock, and while it has the lock nobody takes the
     block over.
  2  An object that nobody has open, and that was not read in this round, is deleted as a whole:
     that costs less than holes.
     It looks for locks first, because a claim makes a block unreadable for a moment, and the block
     has to be verified afterwards.
  3  Bytes are given back after they are gone from the disk, never before.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby

from .._native import punch_hole
from .._runtime.threads import Mutex
from .cache_folder import Files, Folder
from .counters import Counters
from .layout import EMPTY, SUSPECT, round_up
from .leases import LockFile, lock_in

#: The largest hole that is punched at once; the disk may take 10 ms for it.
HOLE_BYTES = 16 << 20
#: How much more room than needed is made: this part of ``max_bytes``, but at most so many bytes.
SPARE_SHARE = 32
SPARE_BYTES = 64 << 20
#: The byte of the state file that an evictor locks.
EVICTOR_BYTE = 8
#: How long we wait for another evictor to end, and how often we try.
PATIENCE_SECONDS = 0.2
LOOK_SECONDS = 0.005
#: How often ``trim`` waits for another evictor to end.
TRIM_ATTEMPTS = 50
#: How often room is made again that others took, who had reserved when it was there.
EVICT_ATTEMPTS = 8
#: Two rounds of the clock, and a third that evicts every block that no view covers.
ROUNDS = 3

Claim = tuple[int, int]


class FolderRoom:
    """The room of a folder: reserves bytes, and evicts blocks if there are not enough."""

    __slots__ = (
        "_counters",
        "_evictor",
        "_folder",
        "_mutex",
        "_report",
        "_told",
        "_told_mutex",
        "_trimming",
        "_users",
        "_users_mutex",
    )

    def __init__(
        self, folder: Folder, counters: Counters, report: Callable[[Exception], object]
    ) -> None:
        self._folder = folder
        self._counters = counters
        self._report = report
        #: For how many bytes the disk had no room, if we told that; else 0.
        self._told = 0
        self._told_mutex = Mutex()
        #: Whether ``trim`` is at work, or about to be: nobody waits for it.
        self._trimming = folder.budget.seen > folder.budget.max_bytes
        self._mutex = Mutex()
        self._evictor = LockFile(folder.budget.path)
        self._users_mutex = Mutex()
        self._users = 1

    @property
    def owner(self) -> int:
        """The number of our lease, which our claims carry."""
        return self._folder.leases.owner

    def use(self) -> FolderRoom:
        """Keep the folder open until the matching ``release``."""
        with self._users_mutex:
            self._users += 1
        return self

    def release(self) -> None:
        """End a use; the last one closes the folder and its locks (R11)."""
        with self._users_mutex:
            self._users -= 1
            last = not self._users
        if last:
            self._evictor.close()
            self._folder.close()

    def is_alive(self, owner: int) -> bool:
        """Tell whether an owner of claims is alive."""
        return self._folder.leases.is_alive(owner)

    @property
    def most_bytes(self) -> int:
        """How many bytes there is room for in all; in any thread."""
        return self._folder.budget.most_bytes

    def make(self, length: int, unit: int = 0) -> int:
        """Reserve bytes, after evicting blocks if needed; return how many.

        If there is no room for all, these are as many whole units as there is room for; without a
        unit there are none.
        """
        budget = self._folder.budget
        if budget.take(length):
            return length
        wanted = length
        if wanted > budget.max_bytes:
            wanted = budget.max_bytes // unit * unit if unit else 0
        if not wanted:
            return 0
        if budget.reserve(wanted):
            return wanted
        if self._trimming or budget.detached:
            return 0
        made = self._make(wanted, unit)
        if made < wanted and (shortage := budget.disk_shortage(wanted)) is not None:
            self.tell_full(wanted, OSError(errno.ENOSPC, shortage, self._folder.path))
        return made

    def _make(self, length: int, unit: int) -> int:
        budget = self._folder.budget
        with self._mutex:
            if budget.reserve(length):
                return length
            if not self._become_evictor():
                return budget.reserve_some(length, unit)
            try:
                # Others reserve meanwhile, and may take the room that was made.
                for _ in range(EVICT_ATTEMPTS):
                    if budget.reserve(length):
                        return length
                    if not self._evict(length):
                        break
                return budget.reserve_some(length, unit)
            finally:
                self._evictor.unlock(EVICTOR_BYTE)

    @property
    def is_too_full(self) -> bool:
        """Whether the folder held more than ``max_bytes`` when it was opened: call ``trim``."""
        return self._trimming

    def trim(self) -> None:
        """Evict what is beyond ``max_bytes``: the limit was larger, or another process's is.

        What the disk has free does not count here: a cache that is only read keeps its blocks.
        """
        try:
            for _ in range(TRIM_ATTEMPTS):
                if self._become_evictor():
                    try:
                        self._evict(0)
                        return self._folder.budget.recount()  # lists of extents went, too
                    finally:
                        self._evictor.unlock(EVICTOR_BYTE)
        finally:
            self._trimming = False

    def note_stored(self, length: int) -> None:
        """Note that so many bytes were stored."""
        if self._told and length >= self._told:
            with self._told_mutex:
                self._told = 0

    def tell_full(self, length: int, error: OSError) -> None:
        """Report that the disk had no room for bytes: once, until as many were stored."""
        with self._told_mutex:
            told, self._told = self._told, self._told or length
        if not told:
            self._counters.add(errors=1)
            self._report(error)

    def why_none(self, length: int) -> str:
        """Tell why there is no room for bytes, and what to do."""
        budget = self._folder.budget
        shortage = budget.disk_shortage(length)
        if shortage is not None:
            return shortage
        return (
            f"it holds {budget.used_bytes} of max_bytes={budget.max_bytes}, and what views pin "
            "stays: release views, or give the cache a larger max_bytes"
        )

    def settle(self, length: int, used: int) -> None:
        """End a reservation of ``length`` bytes, of which ``used`` were used."""
        self._folder.budget.settle(length, used)

    def _become_evictor(self) -> bool:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not self._evictor.try_lock(EVICTOR_BYTE):
            if time.monotonic() > give_up:
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def _evict(self, wanted: int) -> bool:
        """Evict blocks until ``wanted`` bytes, and some more, can be reserved; tell if they can.

        If ``wanted`` is 0: until ``max_bytes`` are left.
        """
        budget = self._folder.budget
        spare = min(budget.max_bytes // SPARE_SHARE, SPARE_BYTES)

        def excess(more: int = 0) -> int:
            return budget.excess(wanted + more) if wanted else budget.over()

        budget.recount()
        if excess():
            budget.give_back(self._folder.remove_earlier())
        if not excess():
            return True
        goal = excess(spare)
        names = self._from_hand(self._folder.names())
        for turn in range(ROUNDS):
            for name in names:
                goal -= self._sweep(name, goal, force=turn == ROUNDS - 1)
                if goal <= 0:
                    return True
        return not excess()

    def _from_hand(self, names: list[str]) -> list[str]:
        """Order the objects so that the one at the hand of the clock comes first."""
        with self._folder.budget.locked() as state:
            hand = state.hand.hex()
        return [name for name in names if name >= hand] + [name for name in names if name < hand]

    def _sweep(self, name: str, goal: int, *, force: bool) -> int:
        """Move the hand over one object, and evict; return how many bytes were given back."""
        with self._folder.budget.locked() as state:
            files = self._folder.look(name)
            if files is None:
                self._folder.remove(name)
                return 0
            same = state.hand.hex() == name
            begin = state.hand_block if same and state.hand_block < files.blocks.count else 0
            state.move_hand(bytes.fromhex(name), 0)
            if self._goes_whole(files, goal):
                freed = remove_whole(self._folder, name, files)
                state.give_back(freed)
                return freed
        try:
            freed, block = self._sweep_blocks(files, begin, goal, force=force)
        finally:
            files.close()
        with self._folder.budget.locked() as state:
            state.move_hand(state.hand, block)
        return freed

    def _goes_whole(self, files: Files, goal: int) -> bool:
        """Tell whether to delete a whole object; if so, it is locked.

        It has to be in nobody's use, unread in this round, and not much larger than the goal.
        """
        whole = disk_bytes(files)
        if files.blocks.referenced() or (whole > 2 * goal and files.blocks.any_present()):
            return False
        return files.map.try_lock(0)

    def _sweep_blocks(self, files: Files, begin: int, goal: int, *, force: bool) -> tuple[int, int]:
        freed, count = 0, files.blocks.count
        block_size = files.header.block_size
        for low, end in _unpinned(files, begin):
            block = low
            while block < end and freed < goal:
                most = max(1, min(HOLE_BYTES, goal - freed) // block_size)
                claims, block = files.blocks.sweep(block, end, most, force)
                for run in _adjacent(claims, most):
                    freed += self._punch(files, run)
            if freed >= goal:
                return freed, block if block < count else 0
        return freed, 0

    def _punch(self, files: Files, claims: list[Claim]) -> int:
        """Evict a run of claimed blocks; return the bytes that were given back.

        If a view covers some of them, only the others are evicted.
        """
        freed = self._punch_all(files, claims)
        if freed is None and len(claims) > 1:
            half = len(claims) // 2
            return self._punch(files, claims[:half]) + self._punch(files, claims[half:])
        for block, word in claims:
            files.blocks.exchange(block, word, EMPTY if freed else SUSPECT)
        if freed:
            self._folder.budget.give_back(freed)
            self._counters.add(evicted_blocks=len(claims), evicted_bytes=freed)
        return freed or 0

    def _punch_all(self, files: Files, claims: list[Claim]) -> int | None:
        """Punch a hole; return its bytes, 0 if that fails, None if a block is locked or changed."""
        size, block_size = files.header.identity.state.size, files.header.block_size
        start = claims[0][0] * block_size
        length = round_up(min(size, (claims[-1][0] + 1) * block_size) - start)
        try:
            with lock_range(files.data, start, length) as locked:
                # A fetch that waited too long for us may have taken a block over (eviction.1).
                if not locked or any(files.blocks.word(block) != word for block, word in claims):
                    return None
                punch_hole(files.data, start, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._counters.add(errors=1)
            return 0
        return length

    def clear(self, name: str) -> int:
        """Delete an object; if it is in use, evict all of its blocks that no view covers."""
        with self._folder.budget.locked() as state:
            files = self._folder.look(name)
            if files is None:
                self._folder.remove(name)
                return 0
            if files.map.try_lock(0):
                freed = remove_whole(self._folder, name, files)
                state.give_back(freed)
                return freed
        try:
            self._folder.budget.forget_address(files.header.identity.url)
            return self._sweep_blocks(files, 0, 1 << 62, force=True)[0]
        finally:
            files.close()


def disk_bytes(files: Files) -> int:
    """Return how many bytes of the disk the files of an object take."""
    return sum(os.fstat(fd).st_blocks for fd in (files.data, files.map.fd)) * 512


def remove_whole(folder: Folder, name: str, files: Files) -> int:
    """Delete an object that is locked and that nobody has open; with the folder's lock held."""
    freed = disk_bytes(files)
    folder.remove(name)
    folder.budget.forget_address(files.header.identity.url)
    files.close()
    return freed


def _unpinned(files: Files, first: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of blocks from ``first`` on of which no view keeps any (eviction.1)."""
    block_size, count = files.header.block_size, files.blocks.count
    at = first
    while at < count:
        end = after = count
        # The kernel returns any of the locks in a range, not the first.
        while end > at:
            lock = lock_in(files.data, at * block_size, (end - at) * block_size)
            if lock is None:
                break
            end = max(at, lock[0] // block_size)
            after = count if lock[1] is None else min(count, -(-lock[1] // block_size))
        if at < end:
            yield at, end
        at = max(after, at + 1)


@contextmanager
def lock_range(fd: int, start: int, length: int, *, shared: bool = False) -> Iterator[bool]:
    """Lock a range of a data file for a block, by a new descriptor; yields whether it succeeded."""
    file = LockFile(f"/proc/self/fd/{fd}")
    try:
        yield file.try_lock(start, length, shared=shared)
    finally:
        file.close()


def _adjacent(claims: list[Claim], most: int) -> Iterator[list[Claim]]:
    """Group claims into runs of adjacent blocks, of at most ``most`` blocks each."""
    for _, group in groupby(enumerate(claims), lambda pair: pair[1][0] - pair[0]):
        run = [claim for _, claim in group]
        for at in range(0, len(run), most):
            yield run[at : at + most]
