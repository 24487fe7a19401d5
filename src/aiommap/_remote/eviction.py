"""Room for new blocks: the clock that gives up old ones. For worker threads.

Theory of operation. One evictor works at a time, in whichever process needs room. It goes over the
objects in the order of their names, from where the last one stopped, and over their blocks. A block
that was read since it came by keeps its place, and has to be read again before the next round;
others go. Nobody knows when a block was read, and no reader pays for it but once a round.

Invariants.
  1  A block is claimed before its bytes go, and a reader that was copying finds that its word
     changed. A block that a view covers has a shared lock, which refuses ours: it stays (R5). So
     does one that somebody took over from an evictor who was slow, and is filling anew: its word is
     looked at again under the lock.
  2  An object that nobody has open and nobody read goes as a whole, by its name: that costs less
     than holes.
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

#: One hole at most: the disk may take 10 ms for it.
HOLE_BYTES = 16 << 20
#: How much room is made beyond what is needed, as a share of all and at most in bytes.
SPARE_SHARE = 32
SPARE_BYTES = 64 << 20
#: The byte of the state file that an evictor locks.
EVICTOR_BYTE = 8
#: How long one waits for somebody else's eviction, and how often one looks.
PATIENCE_SECONDS = 0.2
LOOK_SECONDS = 0.005
#: Two rounds of the clock, and a third that spares nothing but views.
ROUNDS = 3

Claim = tuple[int, int]


class FolderRoom:
    """The room of a folder: reserves, and evicts where there is not enough."""

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
        """Our number, by which claims are made."""
        return self._folder.leases.owner

    def use(self) -> FolderRoom:
        """Keep the folder's locks for one more user, who ends that by ``release``."""
        with self._users_mutex:
            self._users += 1
        return self

    def release(self) -> None:
        """End a use; the last one gives up the folder's locks (R11)."""
        with self._users_mutex:
            self._users -= 1
            last = not self._users
        if last:
            self._evictor.close()
            self._folder.close()

    def is_alive(self, owner: int) -> bool:
        """Tell whether an owner of claims lives."""
        return self._folder.leases.is_alive(owner)

    def make(self, length: int) -> bool:
        """Reserve bytes, and evict for them if need be; False if there is no room."""
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
        """End a reservation of which so much was used."""
        self._folder.budget.settle(length, used)

    def _become_evictor(self) -> bool:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not self._evictor.try_lock(EVICTOR_BYTE):
            if time.monotonic() > give_up:
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def _evict(self, wanted: int) -> None:
        """Give up blocks until so much can be reserved, and some more."""
        budget = self._folder.budget
        budget.recount()
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
        """Order objects so that the one at which the clock stands comes first."""
        with self._folder.budget.locked() as state:
            hand = state.hand.hex()
        return [name for name in names if name >= hand] + [name for name in names if name < hand]

    def _sweep(self, name: str, goal: int, *, force: bool) -> int:
        """Let the clock go over one object; returns how many bytes that gave back."""
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
        """Tell whether an object goes by its name: unused, not read lately, and no more than asked.

        If so, it is locked.
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
        """Give up blocks that are claimed and follow one another; returns their bytes.

        Where a view covers some of them, the others go.
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
        """Make a hole; returns its bytes, 0 if that cannot be, and None if some block is locked."""
        size, block_size = files.header.identity.state.size, files.header.block_size
        start = claims[0][0] * block_size
        length = round_up(min(size, (claims[-1][0] + 1) * block_size) - start)
        try:
            with lock_range(files.data, start, length) as locked:
                # Looked at again: whoever waited too long for us took them over (eviction.1).
                if not locked or any(files.blocks.word(block) != word for block, word in claims):
                    return None
                punch_hole(files.data, start, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._counters.add(errors=1)
            return 0
        return length

    def clear(self, name: str) -> int:
        """Give up an object; of one that is in use, all blocks that no view covers."""
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
            return self._sweep_blocks(files, 0, 1 << 62, force=True)[0]
        finally:
            files.close()


def disk_bytes(files: Files) -> int:
    """Say what an object takes of the disk."""
    return sum(os.fstat(fd).st_blocks for fd in (files.data, files.map.fd)) * 512


def remove_whole(folder: Folder, name: str, files: Files) -> int:
    """Take an object off the disk that is locked, as nobody has it open; with the folder's lock."""
    freed = disk_bytes(files)
    folder.remove(name)
    files.close()
    return freed


@contextmanager
def lock_range(fd: int, start: int, length: int, *, shared: bool = False) -> Iterator[bool]:
    """Lock a range of a data file for a block, by a descriptor of its own; says whether it is."""
    file = LockFile(f"/proc/self/fd/{fd}")
    try:
        yield file.try_lock(start, length, shared=shared)
    finally:
        file.close()


def _adjacent(claims: list[Claim], most: int) -> Iterator[list[Claim]]:
    """Group claims into runs of blocks that follow one another."""
    for _, group in groupby(enumerate(claims), lambda pair: pair[1][0] - pair[0]):
        run = [claim for _, claim in group]
        for at in range(0, len(run), most):
            yield run[at : at + most]
