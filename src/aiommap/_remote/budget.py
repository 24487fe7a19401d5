"""How many bytes the cache may take, counted by all processes together. For worker threads.

Invariants.
  1  Bytes are reserved before they are written, and nobody reserves beyond ``max_bytes`` (R7).
     What is reserved and not used is given back by whoever reserved it.
  2  The folder's lock is held for every change, and its state is written in one step. A process
     that dies leaves the count too high, never too low: what it had reserved. A recount finds it.
  3  Nobody waits for long for a process that stands still while it has the lock: what needs it then
     fails, and is a miss. A reservation that could not be ended is ended with the next one.
  4  A recount adds what the files take, what their lists of extents may yet grow by, and what
     living owners have reserved; those may have written some of it already, which then counts twice
     until the next one.
  5  A process keeps some bytes reserved ahead, so that most blocks take no lock: each system call
     of a fetch is a moment in which another thread takes the GIL. It uses them before it says that
     there is no room, and gives them back when it ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .._errors import name_file
from .._runtime.threads import Mutex
from .layout import (
    STATE_BYTES,
    FolderState,
    own_offset,
    pack_own,
    round_down,
    round_up,
    unpack_owns,
)
from .leases import Leases, LockFile

#: How long one waits for the lock, which others have for microseconds; and how long one does not
#: wait again after that was in vain.
PATIENCE_SECONDS = 0.5
DISTRUST_SECONDS = 5.0
#: What is reserved ahead: bytes, and at most one part in so many of all.
AHEAD_BYTES = 4 << 20
AHEAD_SHARE = 256


class Budget:
    """The state file: its lock is the folder's.

    Args:
        path: of the state file.
        leases: says who lives.
        count: counts what the files of the folder take; called with the lock.
        max_bytes, min_free: what this process allows itself.
    """

    __slots__ = (
        "_ahead",
        "_count",
        "_file",
        "_folder",
        "_leases",
        "_min_free",
        "_mutex",
        "_own",
        "_spare",
        "_spare_mutex",
        "_stuck_until",
        "_used",
        "max_bytes",
        "path",
        "seen",
    )

    def __init__(
        self,
        path: str,
        leases: Leases,
        count: Callable[[], int],
        max_bytes: int,
        min_free: float,
    ) -> None:
        self._folder = os.path.dirname(path)
        self._leases = leases
        self._count = count
        self.path: str = path
        self.max_bytes: int = max_bytes
        self._min_free = min_free
        self._mutex = Mutex()
        #: What the file says that we have reserved; changed with the lock.
        self._own = 0
        self._ahead = round_down(min(AHEAD_BYTES, max_bytes // AHEAD_SHARE))
        self._spare_mutex = Mutex()
        #: What is reserved and nobody's; and what was used, and is reserved according to the file.
        self._spare = self._used = 0
        self._stuck_until = 0.0
        #: What was reserved when this process looked last; any thread may read it.
        self.seen: int = 0
        self._file = LockFile(path)
        with self.locked() as state:
            leases.take(state.next_owner)
            state.note_owner(leases.owner)
            self._write_own()

    @property
    def detached(self) -> bool:
        """Whether the state file was deleted: the folder is another one now, or gone."""
        return not os.fstat(self._file.fd).st_nlink

    @contextmanager
    def locked(self) -> Iterator[FolderState]:
        """Hold the folder's lock for a block; what the block makes of the state is kept."""
        with self._mutex:
            self._take_lock()
            try:
                state = FolderState.unpack(os.pread(self._file.fd, STATE_BYTES, 0))
                if state is None:  # new, or damaged
                    os.ftruncate(self._file.fd, STATE_BYTES)
                    state = FolderState(reserved=self._count())
                yield state
                self.seen = state.reserved
                os.pwrite(self._file.fd, state.pack(), 0)
            finally:
                self._file.unlock(0)

    def _take_lock(self) -> None:
        patience = 0.0 if time.monotonic() < self._stuck_until else PATIENCE_SECONDS
        try:
            self._file.lock(0, patience)
        except TimeoutError as error:
            self._stuck_until = time.monotonic() + DISTRUST_SECONDS
            name_file(error, self.path)
            raise

    @property
    def used_bytes(self) -> int:
        """What all have reserved or stored, but for what we have only ahead; in any thread."""
        return max(0, self.seen - self._spare)

    def take(self, length: int) -> bool:
        """Reserve bytes out of what is reserved ahead; False if that is too little."""
        length = round_up(length)
        with self._spare_mutex:
            if self._spare < length:
                return False
            self._spare -= length
            return True

    def reserve(self, length: int) -> bool:
        """Reserve bytes, and some ahead; False if there is no room for them (budget.1)."""
        with self.locked() as state:
            return self.reserve_with(state, length)

    def reserve_with(self, state: FolderState, length: int) -> bool:
        """Reserve bytes with the lock, as ``reserve`` does; none in a folder that is gone."""
        if self.detached:
            return False
        length = round_up(length)
        self._note_used()
        return any(self._extend(state, length, ahead) for ahead in (self._ahead, 0))

    def _extend(self, state: FolderState, length: int, ahead: int) -> bool:
        """Reserve what is missing of so much and so much ahead; with the lock."""
        if not self._is_free(length + ahead):
            return False
        with self._spare_mutex:
            more = max(0, length + ahead - self._spare)
            if state.reserved + more > self.max_bytes:
                return False
            self._spare += more - length
        state.reserve(more)
        self._own += more
        self._write_own()
        return True

    def settle(self, length: int, used: int) -> None:
        """End a reservation of which so much was used."""
        used = round_up(used)
        with self._spare_mutex:
            self._spare += round_up(length) - used
            self._used += used
            if self._used <= self._ahead and self._spare <= 2 * self._ahead:
                return
        with self.locked() as state:
            self._note_used()
            self._give_back_spare(state, self._ahead)

    def _note_used(self) -> None:
        """Have the file say of what was used that it is not only reserved; with the lock."""
        with self._spare_mutex:
            used, self._used = self._used, 0
        if used:
            self._own -= used
            self._write_own()

    def _give_back_spare(self, state: FolderState, kept: int) -> None:
        """Give back what is reserved ahead, but for so much; with the lock."""
        with self._spare_mutex:
            back = max(0, self._spare - kept)
            self._spare -= back
        if back:
            state.give_back(back)
            self._own -= back
            self._write_own()

    def give_back(self, length: int) -> None:
        """Count bytes no longer that were taken off the disk."""
        with self.locked() as state:
            state.give_back(length)

    def excess(self, wanted: int) -> int:
        """Say how many bytes have to go so that so many can be reserved."""
        with self.locked() as state:
            over = state.reserved - self._spare + round_up(wanted) - self.max_bytes
        found = os.statvfs(self._folder)
        short = self._min_free * found.f_blocks + wanted / found.f_frsize - found.f_bavail
        return max(0, over, int(short * found.f_frsize))

    def recount(self) -> None:
        """Count anew what there is (budget.4)."""
        with self.locked() as state:
            self._note_used()
            block = os.pread(self._file.fd, STATE_BYTES, 0)
            under_way = 0
            for owner, reserved in enumerate(unpack_owns(block)):
                if reserved and owner != self._leases.owner and not self._leases.is_alive(owner):
                    os.pwrite(self._file.fd, pack_own(0), own_offset(owner))
                elif reserved:
                    under_way += reserved
            state.recount(self._count() + under_way)

    def close(self) -> None:
        """Give back what is reserved ahead, and the lock file up; before the leases."""
        if self._file.fd >= 0:
            with suppress(OSError), self.locked() as state:  # else the next recount finds it
                self._note_used()
                self._give_back_spare(state, 0)
        self._file.close()

    def _write_own(self) -> None:
        os.pwrite(self._file.fd, pack_own(self._own), own_offset(self._leases.owner))

    def _is_free(self, length: int) -> bool:
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize - length >= (
            self._min_free * found.f_blocks * found.f_frsize
        )
