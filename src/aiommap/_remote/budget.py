"""How many bytes the cache may take, counted by all processes together. For worker threads.

Invariants.
  1  Bytes are reserved before they are written, and nobody reserves beyond ``max_bytes`` (R7).
     Whoever reserves bytes and does not use them gives them back.
  2  Every change holds the folder's lock and writes the folder's state in one step. A process that
     dies leaves the count too high by what it had reserved, and never too low. A recount corrects
     that.
  3  Nobody waits long for a process that stands still with the lock. Whoever needs the lock fails
     instead, and that is a miss. A reservation that could not be ended is ended with the next one.
  4  A recount adds up what the files take, what their lists of extents may still grow by, and what
     live owners have reserved. An owner may have written some of its reservation already; those
     bytes count twice until the next recount.
  5  A process keeps some bytes reserved ahead, so that most blocks need no lock: in each system
     call of a fetch another thread may take the GIL. The process uses these bytes before it says
     that there is no room, and gives them back when it ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .._errors import name_file
from .._runtime.threads import Mutex
from . import addresses
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

#: How long we wait for the lock, which others hold for microseconds; and for how long we do not
#: wait at all after a wait that failed.
PATIENCE_SECONDS = 0.5
DISTRUST_SECONDS = 5.0
#: How much is reserved ahead: so many bytes, but at most this part of ``max_bytes``.
AHEAD_BYTES = 16 << 20
AHEAD_SHARE = 256


class Budget:
    """The state file of a folder, and its lock, which is the folder's lock.

    Args:
        path: path of the state file.
        leases: says which owners are alive.
        count: counts what the files of the folder take on the disk; called with the lock held.
        max_bytes, min_free: the limits of this process, as for ``RemoteCache``.
    """

    __slots__ = (
        "_ahead",
        "_count",
        "_file",
        "_folder",
        "_free",
        "_leases",
        "_min_free",
        "_mutex",
        "_own",
        "_reserving",
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
        #: Held by the thread that reserves; others wait for what it reserves ahead.
        self._reserving = Mutex()
        #: What this process has reserved, according to the file; changed with the lock held.
        self._own = 0
        self._ahead = round_down(min(AHEAD_BYTES, max_bytes // AHEAD_SHARE))
        self._spare_mutex = Mutex()
        #: Bytes reserved ahead; and bytes that were used, but are still reserved in the file.
        self._spare = self._used = 0
        self._stuck_until = 0.0
        #: What all had reserved when this process last read the file; any thread may read it.
        self.seen: int = 0
        #: What the disk had free, less ``min_free``, when we last asked; any thread may read it.
        self._free = 0
        self._free_bytes()
        self._file = LockFile(path)
        with self.locked() as state:
            leases.take(state.next_owner)
            state.note_owner(leases.owner)
            self._write_own()

    @property
    def detached(self) -> bool:
        """Whether the state file was deleted, so that the folder is gone or is another one."""
        return not os.fstat(self._file.fd).st_nlink

    @contextmanager
    def locked(self) -> Iterator[FolderState]:
        """Hold the folder's lock for a block, and write back the state that the block changed."""
        with self._mutex:
            self._take_lock()
            try:
                block = os.pread(self._file.fd, STATE_BYTES, 0)
                state = FolderState.unpack(block)
                if state is None:  # new, or damaged
                    if block:
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

    def note_address(self, url: str) -> bool:
        """Note an address, without the lock; tell whether it was there already."""
        return addresses.note(self._file.fd, url)

    def forget_address(self, url: str) -> None:
        """Note that nothing of an address is there any more, without the lock."""
        addresses.forget(self._file.fd, url)

    @property
    def used_bytes(self) -> int:
        """What all have reserved or stored, less what we have reserved ahead; in any thread."""
        return max(0, self.seen - self._spare)

    @property
    def most_bytes(self) -> int:
        """What the cache may hold, by ``max_bytes`` and by the room on the disk; in any thread."""
        return max(0, min(self.max_bytes, self.seen + self._free))

    def take(self, length: int) -> bool:
        """Reserve bytes from those reserved ahead; False if these are too few."""
        length = round_up(length)
        with self._spare_mutex:
            if self._spare < length:
                return False
            self._spare -= length
            return True

    def reserve(self, length: int) -> bool:
        """Reserve bytes, and some ahead; False if there is no room for them (budget.1)."""
        with self._reserving:
            if self.take(length):  # another thread has reserved ahead meanwhile
                return True
            with self.locked() as state:
                return not self.detached and self._reserve_with(state, length)

    def take_or_reserve(self, state: FolderState, length: int) -> bool:
        """Reserve bytes, with the lock held; False if there is no room for them."""
        return self.take(length) or self._reserve_with(state, length)

    def _reserve_with(self, state: FolderState, length: int) -> bool:
        """Reserve bytes as ``reserve`` does, with the lock held."""
        length = round_up(length)
        self._note_used()
        return any(self._extend(state, length, ahead) for ahead in (self._ahead, 0))

    def reserve_some(self, length: int, unit: int) -> int:
        """Reserve bytes, or as many whole units as there is room for; return how many bytes."""
        if self.reserve(length):
            return length
        with self.locked() as state:
            with self._spare_mutex:
                room = self.max_bytes - state.reserved + self._spare
            room = min(length, room, self._free_bytes())
        some = room // unit * unit if unit else 0
        return some if some > 0 and self.reserve(some) else 0

    def _extend(self, state: FolderState, length: int, ahead: int) -> bool:
        """Reserve ``length`` bytes and have ``ahead`` bytes spare; with the lock held."""
        if self._free_bytes() < length + ahead:
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
        """End a reservation of ``length`` bytes, of which ``used`` were used."""
        used = round_up(used)
        with self._spare_mutex:
            self._spare += round_up(length) - used
            self._used += used
            if self._used <= 2 * self._ahead and self._spare <= 2 * self._ahead:
                return
        with self.locked() as state:
            self._note_used()
            self._give_back_spare(state, self._ahead)

    def _note_used(self) -> None:
        """Take what was used out of our reservation in the file; with the lock held."""
        with self._spare_mutex:
            used, self._used = self._used, 0
        if used:
            self._own -= used
            self._write_own()

    def _give_back_spare(self, state: FolderState, kept: int) -> None:
        """Give back what is reserved ahead beyond ``kept`` bytes; with the lock held."""
        with self._spare_mutex:
            back = max(0, self._spare - kept)
            self._spare -= back
        if back:
            state.give_back(back)
            self._own -= back
            self._write_own()

    def give_back(self, length: int) -> None:
        """Give back bytes that are gone from the disk."""
        with self.locked() as state:
            state.give_back(length)

    def excess(self, wanted: int) -> int:
        """Return how many bytes have to be evicted before ``wanted`` can be reserved."""
        with self.locked() as state:
            over = state.reserved - self._spare + round_up(wanted) - self.max_bytes
        found = os.statvfs(self._folder)
        short = self._min_free * found.f_blocks + wanted / found.f_frsize - found.f_bavail
        return max(0, over, int(short * found.f_frsize))

    def over(self) -> int:
        """Return how many bytes there are beyond ``max_bytes``."""
        with self.locked() as state:
            return max(0, state.reserved - self._spare - self.max_bytes)

    def recount(self) -> None:
        """Count again what all files and live owners take (budget.4)."""
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
        """Give back what is reserved ahead, and close the file; call it before ``Leases.close``."""
        if self._file.fd >= 0:
            with suppress(OSError), self.locked() as state:  # else the next recount finds it
                self._note_used()
                self._give_back_spare(state, 0)
        self._file.close()

    def _write_own(self) -> None:
        os.pwrite(self._file.fd, pack_own(self._own), own_offset(self._leases.owner))

    def _free_bytes(self) -> int:
        """How many bytes of the disk may be taken before ``min_free`` forbids it."""
        found = os.statvfs(self._folder)
        self._free = int((found.f_bavail - self._min_free * found.f_blocks) * found.f_frsize)
        return self._free

    def disk_shortage(self, length: int) -> str | None:
        """Tell, in words, that the disk has no room for so many bytes; None if it has."""
        if self._free_bytes() >= length:
            return None
        found = os.statvfs(self._folder)
        free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        kept = f", of which min_free={self._min_free:g} keeps {int(self._min_free * size)} free"
        return (
            f"there is no room to store {length} bytes: the disk has {free} of {size} bytes free"
            f"{kept if self._min_free else ''}. Make room on the disk"
            f"{', or give the cache a smaller min_free' if self._min_free else ''}"
        )
