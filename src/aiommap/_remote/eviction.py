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
  3  Bytes are given back after they are gone from the disk, never before.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

from .._native import punch_hole
from .._runtime.threads import Mutex
from .cache_folder import Files, Folder
from .counters import Counters
from .layout import EMPTY, SUSPECT, round_up
from .leases import LockFile

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
#: Two rounds of the clock, and a third that evicts every block that no view covers.
ROUNDS = 3

Claim = tuple[int, int]


class FolderRoom:
    """The room of a folder: reserves bytes, and evicts blocks if there are not enough."""

    __slots__ = ("_counters", "_evictor", "_folder", "_mutex", "_users", "_users_mutex")

    def __init__(self, folder: Folder, counters: Counters) -> None:
        self._folder = folder
        self._counters = counters
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

    def make(self, length: int) -> bool:
        """Reserve bytes, after evicting blocks if needed; False if there is no room."""
        budget = self._folder.budget
        if budget.take(length):
            return True
        if budget.detached or length > budget.max_bytes:
            return False
        if budget.reserve(length):
            return True
        with self._mutex:
            if budget.reserve(length):
                return True
            if not self._become_evictor():
                return budget.reserve(length)
            try:
                if not budget.reserve(length):
                    self._evict(length)
                return budget.reserve(length)
            finally:
                self._evictor.unlock(EVICTOR_BYTE)

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

    def _evict(self, wanted: int) -> None:
        """Evict blocks until ``wanted`` bytes can be reserved, and some more."""
        budget = self._folder.budget
        budget.recount()
        if budget.excess(wanted):
            budget.give_back(self._folder.remove_earlier())
        if not budget.excess(wanted):
            return
        spare = min(budget.max_bytes // SPARE_SHARE, SPARE_BYTES)
        goal = budget.excess(wanted + spare)
        names = self._from_hand(self._folder.names())
        for turn in range(ROUNDS):
            for name in names:
                goal -= self._sweep(name, goal, force=turn == ROUNDS - 1)
                if goal <= 0:
                    return

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
        freed, block, count = 0, begin, files.blocks.count
        block_size = files.header.block_size
        while block < count and freed < goal:
            most = max(1, min(HOLE_BYTES, goal - freed) // block_size)
            claims, block = files.blocks.sweep(block, count, most, force)
            for run in _adjacent(claims, most):
                freed += self._punch(files, run)
        return freed, block if block < count else 0

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
