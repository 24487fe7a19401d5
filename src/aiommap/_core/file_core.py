"""The core that all verbs of one mapped file share: constants, the owners of its state, and checks.

``lifecycle`` says whether verbs may run. ``unsynced`` says what a flush has to sync beside pages.
``own`` counts what this process does to the file. ``route`` says which way writes take. Each of
these objects writes its own fields, and nobody else does.
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
    """The shared state of one mapped file; for the loop thread unless a member says otherwise.

    Args:
        opened: the result of opening.
        options: the options of opening.
        workers: the threads of the hub.
        mode, policy: those of the file before a reopen; by default those of the options.
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
        if options.where is not opened.where:  # replacing takes 20 us
            options = replace(options, where=opened.where)
        self.options: OpenOptions = options
        #: Whether no byte of it is ever durable, and whether its size is fixed.
        self.volatile: bool = opened.volatile
        self.sealed: bool = opened.sealed
        self.mapping: Mapping = opened.mapping
        #: The mapping, or a disk that ``aiommap.testing`` put in its place; workers use this one.
        self.disk: Disk = opened.mapping
        self.path: str = options.path
        self.mode: str = mode or options.mode.name
        self.identity: Identity = opened.identity
        #: The answer of stat(2) when the file was opened.
        self.state: FileState = opened.state
        #: Whether the path was last seen to name another file, or none.
        self.orphaned: bool = False
        self.workers: Workers = workers
        #: The name of the file if it may not be durable, because this opening created it or for
        #: another reason. It also holds the directory open.
        self.made: NewName | None = opened.made
        #: Whether opening is over and will not be undone.
        self.prepared: bool = False
        #: Whether closing removes the file: opening created it, then failed or was cancelled.
        self.undo: bool = False
        made = opened.resized
        self.lifecycle: Lifecycle = Lifecycle(options.path, workers.event)
        self.unsynced: Unsynced = Unsynced(
            created=opened.made is not None, made=made, named=opened.named
        )
        #: What this process does to the file, so that watchers do not report it.
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
        """Put a disk in place of the mapping, or None to take it away; for ``aiommap.testing``.

        Args:
            declining: whether inline verbs decline, so that all reads and stores use the disk.
        """
        self.disk = disk or self.mapping
        self.mapping.declining = declining or self.lifecycle.closing

    def begin_closing(self) -> None:
        """Let no verb pass from now on, not even an inline one."""
        self.lifecycle.begin_closing()
        self.mapping.declining = True

    def note_path(self, found: Identity | None) -> None:
        """Note which file the path names; None if it names none."""
        self.orphaned = found != self.identity

    def name_is_durable(self) -> None:
        """Note that the directory entry is durable; in the flush worker."""
        self.unsynced.name_is_durable()
        self._release_directory()

    def undo_opening(self) -> None:
        """Have closing remove the file, if opening created it."""
        self.undo = self.made is not None

    def end_opening(self) -> None:
        """Note that opening will not be undone; on the loop."""
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
        """Whether stores reach the file and can become durable."""
        return self.mode not in ("r", "c") and not self.volatile

    @property
    def sound(self) -> bool:
        """Whether no flush failed and the mapping is not poisoned."""
        return self.unsynced.failure is None and self.mapping.first_bad is None

    def check_loop(self) -> None:
        """Raise unless called on the loop of the file, which may have moved to another thread.

        Verbs call this where the inline way ends: native code knows the thread, but not the loop.
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
            self.check_mapped()  # in "c" verbs read private stores from the mapping

    def check_mapped(self) -> None:
        """Raise if overlayfs copied the file up: the mapping shows the old file, reads the copy."""
        if not self.mapping.current:
            reason = (
                "overlayfs has copied it up since it was opened, as somebody opened it to write, "
                "and its mapping keeps the old bytes: call reopen()"
            )
            raise UnsupportedError(f"map {self.path}", reason, errno.ESTALE)

    def check_current(self) -> None:
        """Raise unless the file is usable and not retired.

        For verbs that wait for another task or process: once closing or retiring has begun,
        nothing would end such a wait.
        """
        self.check_usable()
        if self.lifecycle.retired:
            raise self.lifecycle.ended()

    def check_open(self) -> None:
        """Raise unless the file is open, and was opened by this process."""
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
        """Raise unless stores are allowed and no flush has failed."""
        self.check_usable()
        if self.mode == "r":
            raise AccessModeError(operation, self.mode, remedy)
        self.check_flushed()

    def check_flushed(self) -> None:
        """Raise the failure of an earlier flush again (I5)."""
        if self.unsynced.failure is not None:
            first = self.unsynced.failure
            # The list of the first failure lacks stores that were under way when the flush failed.
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
        """Run a job for which closing waits."""
        with self.lifecycle.activity():
            try:
                return await self.workers.run(limiter, function, *args)
            except OSError as error:
                name_file(error, self.path)
                raise
