"""What all verbs of one mapped file share: constants, the owners of its state, and checks.

``lifecycle`` says whether verbs may run, ``unsynced`` what a flush has to sync beside pages,
``own`` what we do to the file ourselves, ``route`` which way its writes take. Nobody else writes
their fields.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, TypeVarTuple, Unpack

from .._errors import AccessModeError, FlushError, ForkedError, UnsupportedError, name_file
from .._flush_policy import FlushPolicy
from .._native import Mapping
from .._ranges import RangeSet
from .._runtime.threads import Mutex
from .._runtime.workers import Limiter, Workers
from .disk import Disk
from .faults import Faults
from .file_state import FileState, Identity
from .lifecycle import Lifecycle
from .opening import Opened
from .options import OpenOptions
from .own_activity import OwnActivity
from .paths import NewName
from .unsynced import Unsynced
from .write_route import WriteRoute

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class FileCore:
    """The shared state of one mapped file; touched on the loop thread unless it says otherwise.

    Args:
        opened: what opening found.
        options: what opening was asked for.
        workers: the threads of the hub.
        mode, policy: those of the file that was reopened; by default the options'.
    """

    __slots__ = (
        "disk",
        "faults",
        "identity",
        "lifecycle",
        "made",
        "mapping",
        "mode",
        "options",
        "orphaned",
        "own",
        "path",
        "prepared",
        "resize_mutex",
        "route",
        "sealed",
        "state",
        "undo",
        "unsynced",
        "volatile",
        "workers",
    )

    def __init__(
        self,
        opened: Opened,
        options: OpenOptions,
        workers: Workers,
        *,
        mode: str | None = None,
        policy: FlushPolicy | None = None,
    ) -> None:
        options = replace(options, where=opened.where)
        self.options: OpenOptions = options
        #: Whether nothing of it is ever durable, and whether its size is fixed.
        self.volatile: bool = opened.volatile
        self.sealed: bool = opened.sealed
        self.mapping: Mapping = opened.mapping
        #: The mapping again, where a worker asks the disk through it.
        self.disk: Disk = opened.mapping
        self.path: str = options.path
        self.mode: str = mode or options.mode.name
        self.identity: Identity = opened.identity
        #: What stat(2) said when the file was opened.
        self.state: FileState = opened.state
        #: Whether the path was last seen to name another file, or none.
        self.orphaned: bool = False
        self.workers: Workers = workers
        #: The name that this opening gave to the file, or that may not be durable for another
        #: reason; it also holds the directory open.
        self.made: NewName | None = opened.made
        #: Opening is over, and will not be undone.
        self.prepared: bool = False
        #: Opening failed or was cancelled after the file had been created: remove it again.
        self.undo: bool = False
        made = opened.resized
        self.lifecycle: Lifecycle = Lifecycle(options.path, workers.event)
        self.unsynced: Unsynced = Unsynced(
            created=opened.made is not None, made=made, named=opened.named
        )
        #: What watchers must not take for somebody else's doing.
        self.own: OwnActivity = OwnActivity(opened.mapping, opened.identity, size_changed=made)
        self.route: WriteRoute = WriteRoute(
            opened.mapping,
            policy or options.flush,
            self.unsynced,
            shared=self.shared_writable,
            inline=options.inline_writes and self.mode != "r",
        )
        self.faults: Faults = Faults(opened.mapping, self.path, self.mode)
        #: Keeps stores and changes of size apart. Taken in worker threads only.
        self.resize_mutex: Mutex = Mutex()

    def use_disk(self, disk: Disk | None, *, declining: bool) -> None:
        """Lay a disk over the mapping, or None to take it away; for ``aiommap.testing``.

        Args:
            declining: whether inline verbs decline, so that all reads and stores come to the disk.
        """
        self.disk = disk or self.mapping
        self.mapping.declining = declining or self.lifecycle.closing

    def begin_closing(self) -> None:
        """Let no verb pass from now on, an inline one neither."""
        self.lifecycle.begin_closing()
        self.mapping.declining = True

    def note_path(self, found: Identity | None) -> None:
        """Take note of which file the path names by now; None if there is none."""
        self.orphaned = found != self.identity

    def name_is_durable(self) -> None:
        """Take note that the directory entry is; in the flush worker."""
        self.unsynced.name_is_durable()
        self._release_directory()

    def undo_opening(self) -> None:
        """Have closing remove the file, if opening created it."""
        self.undo = self.made is not None

    def end_opening(self) -> None:
        """Take note that opening will not be undone; on the loop."""
        self.prepared = True
        self._release_directory()

    def _release_directory(self) -> None:
        """Close the directory of a new file once neither undoing nor syncing needs it."""
        if self.made is not None and self.prepared and not self.unsynced.created:
            self.made.close()

    @property
    def shared_writable(self) -> bool:
        """Whether stores reach the file."""
        return self.mode not in ("r", "c")

    @property
    def flushable(self) -> bool:
        """Whether stores reach a file of which something can be durable."""
        return self.mode not in ("r", "c") and not self.volatile

    @property
    def sound(self) -> bool:
        """Whether no flush failed and no page is gone: what ``check_whole`` and others raise."""
        return self.unsynced.failure is None and self.mapping.first_bad is None

    def check_loop(self) -> None:
        """Raise unless on the loop of the file, which may have gone on in another thread.

        Where the inline way ends: native code knows the thread, but not the loop.
        """
        if self.workers.on_loop():
            self.mapping.bind_loop_thread()
        else:
            self.check_open()
            self.workers.check_loop(self.path)

    def check_usable(self) -> None:
        """Raise unless the file is open, in this process, and whole."""
        self.check_open()
        self.check_whole()
        if self.mode == "c":
            self.check_mapped()  # its verbs answer from the mapping where there are private stores

    def check_mapped(self) -> None:
        """Raise if the mapping shows another file than the one that reads and ``reopen`` find."""
        if not self.mapping.current:
            reason = (
                "overlayfs has copied it up since it was opened, as somebody opened it to write, "
                "and its mapping keeps the old bytes: call reopen()"
            )
            raise UnsupportedError(f"map {self.path}", reason, errno.ESTALE)

    def check_current(self) -> None:
        """Raise unless the file is usable, and its path was not reopened: nobody waits here then.

        For what waits for others, and would be ended by nothing once closing or retiring begins.
        """
        self.check_usable()
        if self.lifecycle.retired:
            raise self.lifecycle.ended()

    def check_open(self) -> None:
        """Raise unless the file is open, and open in this process."""
        if self.lifecycle.closing:
            raise self.lifecycle.ended()
        if self.mapping.forked:
            raise ForkedError(self.path)

    def check_whole(self) -> None:
        """Raise if a load or store through a view met a page that is gone."""
        damage = self.faults.damage()
        if damage is not None:
            raise damage

    def check_path(self, operation: str) -> None:
        """Raise unless a path leads to the file."""
        if not self.options.has_path:
            reason = "it was opened without a path, and the system knows none that leads to it"
            raise UnsupportedError(f"{operation} {self.path}", reason)

    def check_growable(self, operation: str) -> None:
        """Raise unless the file can become longer."""
        if self.sealed:
            raise AccessModeError(operation, self.mode, "it is sealed: its size is fixed")
        self.check_writable(operation, 'open it with "r+"')
        if self.mode == "c":
            raise AccessModeError(operation, "c", 'a private file has a fixed size: use "r+"')

    def check_writable(
        self, operation: str, remedy: str = 'open it with "r+", or with "c" for private changes'
    ) -> None:
        """Raise unless stores are allowed and believed in."""
        self.check_usable()
        if self.mode == "r":
            raise AccessModeError(operation, self.mode, remedy)
        self.check_flushed()

    def check_flushed(self) -> None:
        """Raise the failure of an earlier flush again (I5)."""
        if self.unsynced.failure is not None:
            first = self.unsynced.failure
            # A store that was under way when the flush failed came after its list of ranges.
            ranges = RangeSet([*first.ranges, *self.mapping.dirty_runs()])
            raise FlushError(
                first.path, first.reason, tuple(ranges), first.errno or errno.EIO
            ) from first

    async def run(
        self,
        limiter: Limiter,
        function: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> T:
        """Run a job that closing waits for."""
        with self.lifecycle.activity():
            try:
                return await self.workers.run(limiter, function, *args)
            except OSError as error:
                name_file(error, self.path)
                raise
