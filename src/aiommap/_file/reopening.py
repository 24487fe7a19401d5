"""Moving a mapped file to whatever its path names by now, and letting go of what it had.

The mapped file gets a new core with everything that belongs to it, in one step on the loop. The
old core is *retired*: verbs that had begun finish on it, then its mapping is given up; memory of
views made before keeps its pages (I7).

Invariants.
  1  What was written and is not known to be durable is never left behind unless that was asked
      for: an orphan that is dirty stays (I4), and so do private stores.
  2  Between the last look for such writes and the step to the new core, no other task runs.
  3  A task inside of a lock of a retired core stays inside, until it leaves. Nobody waits for one
      (lifecycle.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import anyio.lowlevel

from .._core.file_core import FileCore
from .._errors import AccessModeError
from .._flush.flusher import Flusher
from .._flush.scheduler import FlushScheduler
from .._ipc.file_locks import FileLocks
from .._logs import FILES
from .._runtime.loops import spawn, wait_or_withdraw
from .._watch.watcher import Watcher


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a mapped file needs of its hub."""

    scheduler: FlushScheduler
    watcher: Watcher
    #: Gives up what a core holds.
    release: Callable[[FileCore], Awaitable[None]]
    #: Opens the path again; None if it still names the file of that core.
    open_again: Callable[[FileCore], Awaitable[FileCore | None]]
    #: Told, on the loop, that a file went from one core to another.
    move: Callable[[FileCore, FileCore], None]


async def bring_home(core: FileCore, flusher: Flusher) -> None:
    """Flush until nothing is left to lose (reopening.1).

    Returns without giving way after the last look.
    """
    if not core.shared_writable:
        await _check_private(core)
        return
    core.check_flushed()
    while True:
        await core.lanes.wait_stored()
        await core.lanes.wait_served()
        # As when it is closed: a policy that does not flush then lets stores go.
        dirty = core.route.policy.flush_at_close and flusher.has_work()
        if not dirty and not core.own.queued_bytes and not flusher.busy:
            return
        if dirty:
            await flusher.flush_everything()
        await anyio.lowlevel.checkpoint()  # as in _check_private


async def _check_private(core: FileCore) -> None:
    """Raise if stores of mode "c" would be left behind: no flush can bring them home."""
    while core.own.queued_bytes:
        await core.lanes.wait_stored()
        await anyio.lowlevel.checkpoint()  # the writer may wake after us, and counts until then
    if core.mapping.dirty_bytes():
        remedy = "its private stores would be lost: copy them, then pass discard=True"
        raise AccessModeError("reopen", core.mode, remedy)


class Retired:
    """Cores that a file has moved on from, until they are given up."""

    __slots__ = ("_left", "_locks", "_release")

    def __init__(self, release: Callable[[FileCore], Awaitable[None]]) -> None:
        self._release = release
        self._left: dict[FileCore, anyio.Event] = {}
        #: Those that somebody was inside of when they were left.
        self._locks: list[FileLocks] = []

    def add(self, core: FileCore, leave: Callable[[], Awaitable[None]]) -> None:
        """Give a core up once no verb uses it, and before it what depends on it."""
        self._left[core] = anyio.Event()
        core.lifecycle.retire()
        spawn(self._retire, core, leave)

    async def leave(self, locks: FileLocks) -> None:
        """Give up the locks of a core, but for those that somebody is inside of (reopening.3)."""
        await locks.leave()
        self._locks = [kept for kept in (*self._locks, locks) if kept.held]

    async def wait(self) -> None:
        """Wait until all are given up; locks go now, whoever is inside."""
        for done in list(self._left.values()):
            await wait_or_withdraw(done, lambda: False)
        for locks in self._locks:
            await locks.aclose()

    async def _retire(self, core: FileCore, leave: Callable[[], Awaitable[None]]) -> None:
        try:
            # Inline verbs that gave way to the loop count as nothing; they return in a turn.
            for _ in range(2):
                await core.lifecycle.wait_idle()
                await core.lanes.wait_served()
                await anyio.lowlevel.checkpoint()
            await core.lifecycle.wait_idle()
            await core.lanes.wait_served()
            core.begin_closing()
            await leave()
            await self._release(core)
        except Exception as error:
            # close(2) failed; there is nothing left to lose in a file that was given up.
            FILES.debug("%s was not closed cleanly after it was reopened: %s", core.path, error)
        finally:
            self._left.pop(core).set()
