"""One object that is open: who fetches which of its blocks. For worker threads.

Terms. A *claim* is a block that an owner made BUSY. A *body* is what one response brought.

Theory of operation. A fetch of a range claims the blocks in it that are EMPTY, asks for each run of
them in as few requests as possible, stores each response and publishes its blocks. Only then does
it wait for blocks that others have claimed, so no two fetches ever wait for each other. It takes
over the blocks of an owner that died. After ``HEDGE_SECONDS`` or longer it also takes over those of
an owner that is too slow: two writers of one block write the same bytes, because both responses
had the same identity.

Invariants.
  1  A fetch returns when each of its blocks is PRESENT, or its bytes are in a body that it returns.
  2  It ends every claim that it made, also when it fails (R11).
  3  ``_active`` has the claims of this process. If a word has our number but its block is not in
     ``_active``, a process that had the number before us left it.
  4  A failure of the cache is reported, and the body is handed out all the same (R8).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress

import anyio

from .._native import Blocks
from .._runtime.threads import Mutex
from .body import Body
from .cache_folder import Files
from .comparing import in_turn
from .counters import Counters
from .eviction import lock_range
from .fetching import (
    HEDGE_REQUESTS,
    HEDGE_SECONDS,
    LOOK_SECONDS,
    SLOW_OWNER_SECONDS,
    overlap,
    requests_of,
    runs_of,
    without,
)
from .layout import BUSY, EMPTY, SUSPECT, owner_of, state_of
from .requests import Requests
from .room import Room
from .source import ObjectIdentity, RemoteSource

#: What a write to a disk fails with if that has no room.
_FULL = (errno.ENOSPC, errno.EDQUOT)

Claim = tuple[int, int]


class Entry:
    """An object that is open in this process, for any number of snapshots.

    Args:
        files: its files, which the entry closes.
        room: gives blocks room on the disk; the entry releases it. None if nothing is to be stored.
        counters: the counters of the cache.
        request_size: bytes that one request may ask for.
        report: called with each failure of the cache.
        closed: called when the files were closed.
        why_no_room: why there is no room, in words, if ``room`` is None.
    """

    __slots__ = (
        "__weakref__",
        "_active",
        "_closed",
        "_counters",
        "_files",
        "_lost",
        "_mutex",
        "_owner",
        "_report",
        "_request_blocks",
        "_requests",
        "_room",
        "_short",
        "_slow_owners",
        "_users",
        "_verifying",
        "_why_no_room",
        "block_size",
        "blocks",
        "device",
        "identity",
        "path",
        "size",
    )

    def __init__(
        self,
        files: Files,
        room: Room | None,
        counters: Counters,
        request_size: int,
        report: Callable[[Exception], object],
        closed: Callable[[Entry], object],
        why_no_room: str = "",
    ) -> None:
        self._files = files
        self.identity: ObjectIdentity = files.header.identity
        self.blocks: Blocks = files.blocks
        self.block_size: int = files.header.block_size
        self.size: int = self.identity.state.size
        self.path: str = files.path
        self._room = room
        self._why_no_room = why_no_room
        self._owner = 0 if room is None else room.owner
        self._counters = counters
        self._requests = Requests(self.identity, counters)
        self._request_blocks = max(1, request_size // self.block_size)
        self._report = report
        self._closed = closed
        #: Device of the data file; 0 if it is in memory.
        self.device: int = files.header.device
        self._mutex = Mutex()
        self._verifying = Mutex()
        self._active: set[int] = set()
        self._users = 1
        self._lost = False
        #: Whether the last response was not stored as a whole.
        self._short = room is None
        #: Owners that were too slow, and until when we do not wait for them.
        self._slow_owners: dict[int, float] = {}

    # Life: the last user closes the files, and that may be a fetch (R11).

    def use(self) -> None:
        """Keep the files open until the matching ``release``."""
        with self._mutex:
            if not self._users:
                raise anyio.ClosedResourceError(f"{self.identity.url} is closed: open it again")
            self._users += 1

    def release(self) -> None:
        """End a use; the last one closes the files."""
        with self._mutex:
            self._users -= 1
            last = not self._users
        if last:
            self._files.close()
            if self._room is not None:
                self._room.release()
            self._counters.add(hits=self.blocks.hits)
            self._closed(self)

    @property
    def data_fd(self) -> int:
        """Descriptor of the data file."""
        return self._files.data

    @property
    def lost(self) -> bool:
        """Whether the files were damaged while in use, so that no block is believed."""
        return self._lost or self.blocks.damaged

    @property
    def keeps(self) -> bool:
        """Whether the next response is likely to be stored as a whole; in any thread."""
        return not (self._short or self.lost)

    @property
    def most_bytes(self) -> int:
        """How many bytes the cache has room for, of this and all other objects; in any thread."""
        return 0 if self._room is None else self._room.most_bytes

    def why_not_kept(self, length: int) -> str:
        """Tell why there is no room for bytes of this object, and what to do."""
        if self.lost:
            return "its files were damaged: clear() the cache, and open the object again"
        if self._room is None:
            return self._why_no_room
        return self._room.why_none(length)

    def range_of(self, offset: int, length: int) -> tuple[int, int]:
        """Return the blocks [first, end) that a range of bytes touches."""
        end = -(-(offset + length) // self.block_size) if length else offset // self.block_size
        return offset // self.block_size, end

    def bytes_of(self, first: int, end: int) -> tuple[int, int]:
        """Return the bytes [start, end) of blocks."""
        return first * self.block_size, min(self.size, end * self.block_size)

    def length_of(self, run: tuple[int, int], offset: int, length: int) -> int:
        """Return how many bytes of a range lie in a run of blocks."""
        shared = overlap(self.bytes_of(*run), (offset, offset + length))
        return 0 if shared is None else shared[1] - shared[0]

    @property
    def request_bytes(self) -> int:
        """How many bytes one request asks for at most; a multiple of the block size."""
        return self._request_blocks * self.block_size

    def requests(self, runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Cut runs of blocks into the runs that one request may ask for."""
        return list(requests_of(runs, self._request_blocks))

    def fetch(self, source: RemoteSource, first: int, end: int) -> list[Body]:
        """Fetch what is missing of blocks [first, end), and return the bodies that came (entry.1).

        Raises:
            StaleSnapshotError, RemoteError, PermissionError, UnsupportedError: as
            ``RemoteSnapshot.read_exact``.
        """
        bodies: list[Body] = []
        waits: dict[Claim, float] = {}
        taken: set[int] = set()
        runs = [(first, end)]
        while True:
            busy: list[Claim] = []
            for low, high in runs:
                claims, others = self._claim(low, high)
                taken.update([block for block, _ in claims])
                bodies += self._fetch_claims(source, claims)
                busy += others
            if not busy:
                return bodies
            self._begin_waits(busy, waits)
            block, word = busy[0]
            if self._is_slow(busy[0], waits):
                taken.add(block)
                bodies += self._hedge(source, block, word)
            elif not self._lives(block, owner_of(word)) and (
                claims := self._take_over(block, word)
            ):
                taken.add(block)
                bodies += self._fetch_claims(source, claims)
            else:
                self.blocks.wait(block, word, LOOK_SECONDS)
            runs = without((first, end), taken)

    def _claim(self, first: int, end: int) -> tuple[list[Claim], list[Claim]]:
        """Claim the blocks that are EMPTY; return the claims, and those of others.

        Blocks that are SUSPECT are verified first: bad ones become EMPTY, and are claimed, too.
        """
        if self.lost:
            return [(block, 0) for block in range(first, end)], []
        while True:
            with self._mutex:
                claims, others = self.blocks.claim(first, end)
                self._active.update([block for block, _ in claims])
            if not others:
                return claims, others
            suspects = [block for block, word in others if state_of(word) == SUSPECT]
            busy = [claim for claim in others if state_of(claim[1]) == BUSY]
            if not suspects:
                return claims, busy
            try:
                for low, high in runs_of(suspects):
                    good, bad, _ = self._verify(low, high)
                    self._counters.add(verified_blocks=good, bad_blocks=bad)
            finally:
                self._end(claims)  # the next turn claims them again, with the bad ones between them

    def _verify(self, low: int, high: int) -> tuple[int, int, int]:
        """Compare blocks with their sums; ranges as long as a request take turns at the disk."""
        long = high - low >= self._request_blocks
        with in_turn(self._verifying) if long else nullcontext():
            return self.blocks.verify(low, high)

    def _end(self, claims: list[Claim]) -> None:
        """End the claims that are still ours: a block that was published is not (entry.2)."""
        if not claims:
            return
        with self._mutex:
            for block, word in claims:
                self._active.discard(block)
                if word:
                    self.blocks.exchange(block, word, EMPTY)

    def _begin_waits(self, busy: list[Claim], waits: dict[Claim, float]) -> None:
        """Note for each block that another owner fetches when we began to wait for it."""
        now = time.monotonic()
        for claim in busy:
            if claim not in waits:
                waits[claim] = now
                self._counters.add(coalesced=1)

    def _is_slow(self, claim: Claim, waits: dict[Claim, float]) -> bool:
        """Tell whether we have waited too long for a block of another owner.

        If so, we do not wait for that owner's other blocks, either, for ``SLOW_OWNER_SECONDS``.
        """
        now, owner = time.monotonic(), owner_of(claim[1])
        if now < self._slow_owners.get(owner, 0.0):
            return True
        patience = max(HEDGE_SECONDS, HEDGE_REQUESTS * self._requests.recent_seconds)
        slow = now - waits[claim] >= patience
        if slow and owner != self._owner:
            self._slow_owners[owner] = now + SLOW_OWNER_SECONDS
        return slow

    def _take_over(self, block: int, word: int) -> list[Claim]:
        """Take over a block, if its word is still the one that we saw, and no hole is being made.

        The evictor, which may be of this process, compares the word under a lock, and keeps that
        until the bytes are gone (eviction.1). While it has the lock we take nothing over; if we had
        it first, the evictor finds another word.
        """
        start, end = self.bytes_of(block, block + 1)
        try:
            with lock_range(self.data_fd, start, end - start, shared=True) as locked, self._mutex:
                ours = self.blocks.exchange(block, word, BUSY) if locked else None
                if ours is None:
                    return []
                self._active.add(block)
        except OSError:  # no descriptor is left: a hedge fetches the block without storing it
            return []
        self._counters.add(takeovers=1)
        return [(block, ours)]

    def _hedge(self, source: RemoteSource, block: int, word: int) -> list[Body]:
        """Fetch a block whose owner is alive but too slow; store it if we can take it over."""
        self._counters.add(hedges=1)
        return self._fetch_claims(source, self._take_over(block, word) or [(block, 0)])

    def _lives(self, block: int, owner: int) -> bool:
        if owner == self._owner:
            return block in self._active  # entry.3
        return self._room is not None and self._room.is_alive(owner)

    def _fetch_claims(self, source: RemoteSource, claims: list[Claim]) -> list[Body]:
        """Fetch the claimed blocks, in their order, and end the claims."""
        bodies = []
        try:
            if len(claims) == 1:  # as nearly always
                return [self._fetch_run(source, claims)]
            blocks = [block for block, _ in claims]
            for first, end in requests_of(runs_of(blocks), self._request_blocks):
                run, claims = claims[: end - first], claims[end - first :]
                try:
                    bodies.append(self._fetch_run(source, run))
                finally:
                    self._end(run)
        finally:
            self._end(claims)
        return bodies

    def _fetch_run(self, source: RemoteSource, claims: list[Claim]) -> Body:
        """Fetch adjacent blocks in one request, and store those that there is room for."""
        start, end = self.bytes_of(claims[0][0], claims[-1][0] + 1)
        length, stored = end - start, 0
        room = None if self.lost or not claims[0][1] else self._room  # word 0: not claimed
        if room is None:
            data = self._requests.fetch(source, start, end)
        else:
            data, stored = self._fetch_into(room, source, claims, (start, end))
            self._short = stored < len(claims)
            if not self._short:
                room.note_stored(length)
        if stored:
            self._counters.add_to("stored_blocks", stored)
        if stored < len(claims):
            self._counters.add_to("unstored_blocks", len(claims) - stored)
        return Body(start, data, stored == len(claims))

    def _fetch_into(
        self, room: Room, source: RemoteSource, claims: list[Claim], run: tuple[int, int]
    ) -> tuple[memoryview, int]:
        """Fetch bytes, and store blocks; return the bytes, and how many blocks were stored."""
        start, end = run
        reserved, stored, used = self._make_room(room, end - start), 0, 0
        try:
            data = self._requests.fetch(source, start, end)
            fitting = claims
            if reserved < end - start:
                fitting = claims[: reserved // self.block_size]
            if fitting:
                stored, taking = self._store(room, fitting, data, start)
                used = min(reserved, taking * self.block_size)
        finally:
            if reserved:
                self._settle(room, reserved, used)
        return data, stored

    def _make_room(self, room: Room, length: int) -> int:
        """Reserve room for blocks; return for how many bytes: for all, or for the first blocks."""
        try:
            return room.make(length, self.block_size)
        except OSError as error:
            self._failed(error)
            return 0

    def _settle(self, room: Room, length: int, used: int) -> None:
        try:
            room.settle(length, used)
        except OSError as error:
            self._failed(error)

    def _store(
        self, room: Room, claims: list[Claim], data: memoryview, start: int
    ) -> tuple[int, int]:
        """Write blocks of a response, and publish them, in one native call.

        Returns:
            How many blocks were published, and how many may take room now: those published, and one
            whose store failed halfway.
        """
        try:
            stored, number = self.blocks.store(claims, data, start)
        except OSError as error:
            stored, number = 0, error.errno or errno.EIO
        if number == errno.ESTALE:
            self._lost = True
            reason = "the data file was cut off while it was in use: clear() the cache"
            self._failed(OSError(number, reason, self.path))
        elif number == errno.ENOENT:  # the folder was deleted or cleared: nobody would find them
            number = 0
        elif number in _FULL:
            reason = f"there was no room to store {len(data)} bytes: make room on the disk"
            room.tell_full(len(data), OSError(number, reason, self.path))
        elif number:
            self._failed(OSError(number, os.strerror(number), self.path))
        return stored, stored + bool(number)

    def _failed(self, error: Exception) -> None:
        self._counters.add(errors=1)
        self._report(error)

    def drop(self) -> None:
        """Stop believing the files: a read found that they lost bytes."""
        if not self.lost:
            self._lost = True
            reason = "the cache lost bytes that it had: clear() the cache"
            self._failed(OSError(errno.EIO, reason, self.path))

    def verify(self, source: RemoteSource) -> None:
        """Raise unless the store still has the object in the state of the identity."""
        self._requests.verify(source)

    # Reading from the cache.

    def read(self, offset: int, length: int) -> bytes | None:
        """Read a range from the cache; None if some of it is not PRESENT."""
        if self.lost:
            return None
        data = self.blocks.read(offset, length)
        if data is None and not self.blocks.missing(*self.range_of(offset, length)):
            with suppress(OSError):
                if os.fstat(self.data_fd).st_size != self.size:
                    self.drop()
        return data

    def collect(self, offset: int, length: int, bodies: list[Body]) -> bytes | None:
        """Put a range together from bodies and from blocks; None if some of it is in neither."""
        if not bodies or not self.lost:
            data = self.read(offset, length)
            if data is not None:
                return data
        parts: list[bytes | memoryview] = []
        at, stop = offset, offset + length
        while at < stop:
            body = next((body for body in bodies if body.start <= at < body.end), None)
            if body is not None:
                end = min(stop, body.end)
                parts.append(body.part(at, end))
            else:
                end = min([stop, *(body.start for body in bodies if body.start > at)])
                part = self.read(at, end - at)
                if part is None:
                    return None
                parts.append(part)
            at = end
        return b"".join(parts)

    def uncovered(self, offset: int, length: int, bodies: list[Body]) -> list[tuple[int, int]]:
        """List the runs of blocks of a range that are neither PRESENT nor in a body."""
        first, end = self.range_of(offset, length)
        runs = [(first, end)] if self.lost else self.blocks.missing(first, end)
        for body in bodies:
            low, high = body.start // self.block_size, -(-body.end // self.block_size)
            runs = [
                part
                for run in runs
                for part in ((run[0], min(run[1], low)), (max(run[0], high), run[1]))
                if part[0] < part[1]
            ]
        return runs
