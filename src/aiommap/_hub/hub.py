"""The hub: limits on worker threads, queues for opening and closing, and the flush scheduler.

Files are opened and closed in batches, so that a thousand files opened at once take a handful of
hops. ``aiommap.open`` makes a private hub for one file.
"""

from __future__ import annotations

import copyreg
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.lowlevel

from .._advice import Advice
from .._arguments import check_kind, integer
from .._core.file_core import FileCore
from .._core.file_state import FileState, Identity
from .._core.leases import past_leases
from .._core.opening import Opened, open_mapping, warn_if_unguarded
from .._core.options import OpenOptions, reopening
from .._core.paths import NewName, absolute_path
from .._errors import AccessModeError, ForkedError, not_copied
from .._file.mapped_file import MappedFile
from .._file.open_file import HubServices
from .._flush.scheduler import FlushScheduler
from .._flush_policy import MANUAL, FlushPolicy
from .._logs import FILES
from .._native import Mapping
from .._runtime.batching import BatchQueue, as_jobs
from .._runtime.blocks import close_after
from .._runtime.tracing import traced
from .._runtime.workers import Workers
from .._watch.attribution import OwnChanges
from .._watch.subscriptions import DEFAULT_BUFFER, Changes
from .._watch.watcher import Watcher
from .opening import Opening

Item = TypeVar("Item")
Result = TypeVar("Result")

#: How many files a hub closes in one turn of the loop.
FILES_A_TURN = 32
#: How many files one hop opens or releases; all tasks that wait for them wake in one turn.
FILES_A_BATCH = 256


@dataclass(frozen=True, slots=True)
class _Release:
    """What to close when a file is closed, and whether to undo that it was opened."""

    mapping: Mapping
    identity: Identity
    made: NewName | None
    undo: bool = True

    @classmethod
    def of(cls, opened: Opened) -> _Release:
        """Make the release of a mapping that never became a file."""
        return cls(opened.mapping, opened.identity, opened.made)

    def run(self) -> None:
        """Close; remove a file that a cancelled or failed open created. Worker threads only."""
        try:
            # While the file is open, no other file can get its inode number.
            if self.made is not None and self.undo:
                self.made.remove(self.identity)
        finally:
            if self.made is not None:
                self.made.close()
            self.mapping.close()


class Hub:
    """Shares worker threads and queues among any number of mapped files.

    Use it with ``async with``: the end of the block closes every file that is still open.

    Args:
        workers: how many threads may read for this hub at once; None means 40, and more while a
            slow device keeps them waiting. There are other threads for stores, for flushes, and for
            opening and closing. So none of these waits for another, or for the application's own
            threads.
    Raises:
        ValueError: if ``workers`` is not positive.
    """

    def __init__(self, *, workers: int | None = None) -> None:
        if workers is not None and integer(workers, "workers") < 1:
            raise ValueError(f"workers is {workers}: a hub needs at least 1 to read with")
        self._readers = workers
        self._workers: Workers | None = None
        self._closed = False
        self._files: dict[FileCore, MappedFile] = {}
        #: Files whose ``aclose`` raised; each call of the hub's ``aclose`` raises that again (I15).
        self._failed: list[MappedFile] = []
        self._at: dict[str, set[FileCore]] = {}
        self._own = OwnChanges()
        self._watcher = Watcher(self._running_workers, self._own, self._seen)

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The files that are open, in the order in which they were opened; in any thread."""
        # Unpacking takes the values in one step. tuple() could be interrupted, and the loop could
        # change the dictionary meanwhile.
        files = (*self._files.values(),)
        return tuple(file for file in files if not file.closed)

    def open(
        self,
        path: str | os.PathLike[str] | int,
        mode: str = "r",
        *,
        size: int | None = None,
        capacity: int | None = None,
        sparse: bool = False,
        flush: FlushPolicy = MANUAL,
        advice: Advice | None = None,
        prewarm: bool = False,
        lock: bool = False,
        huge_pages: bool = False,
        inline_writes: bool = True,
    ) -> Opening[MappedFile]:
        """Open a file in this hub; arguments, errors and cancellation as for ``aiommap.open``."""
        warn_if_unguarded()
        options = OpenOptions.check(
            path,
            mode,
            size=size,
            capacity=capacity,
            sparse=sparse,
            flush=flush,
            advice=advice,
            prewarm=prewarm,
            lock=lock,
            huge_pages=huge_pages,
            inline_writes=inline_writes,
        )
        return Opening(partial(self._open, options))

    def watch(
        self,
        path: str | os.PathLike[str],
        *,
        buffer: int = DEFAULT_BUFFER,
        poll_interval: float | None = None,
    ) -> Changes:
        """Watch a path for changes by others: ``async with hub.watch(path) as changes: ...``.

        The path need not exist: when a file appears there, that is ``ChangeKind.CREATED``. Changes
        are reported from the moment at which the block begins. For a directory, ``MODIFIED`` means
        that names were added or removed; it does not say which, and changes of files in it are not
        reported. For arguments, errors and limits see ``MappedFile.watch``, which watches the path
        of an open file.
        """
        name = absolute_path(path)
        self._check_process(name)
        return self._watcher.subscribe(name, buffer=buffer, poll_interval=poll_interval)

    async def aclose(self) -> None:
        """Close every file that is still open, then the hub.

        Raises:
            FlushError: if closing one file fails; an ExceptionGroup if closing several fails. Every
                later call raises it again.
        Cancellation: closing is waited out, then the cancellation is delivered.
        """
        self._closed = True
        try:
            await self._close_files()
        finally:
            await self._watcher.aclose()
            if self._workers is not None:
                self._workers.close()

    async def _close_files(self) -> None:
        failures: list[Exception] = []
        files = [*self._failed, *self._files.values()]
        self._failed = []
        cancellation = await self._start_closing(files)
        for number, file in enumerate(files, 1):
            try:
                if not number % FILES_A_TURN:
                    cancellation = await self._let_others_run() or cancellation
                await file.aclose()
            except Exception as error:
                failures.append(error)
                self._failed.append(file)
            except BaseException as error:  # a cancellation: the file has waited it out
                if file._open.is_closing:  # noqa: SLF001  or an exception that ends the program
                    raise
                cancellation = cancellation or error
        if cancellation is not None:
            for failure in failures:
                cancellation.add_note(f"closing a file failed, too: {failure}")
            raise cancellation
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("several files could not be closed cleanly", failures)

    async def _start_closing(self, files: list[MappedFile]) -> BaseException | None:
        """Begin to close all files: they share hops. Return a cancellation, to be raised later."""
        cancellation: BaseException | None = None
        for number, file in enumerate(files, 1):
            file._open.start_closing()  # noqa: SLF001  a hub closes what it opened
            if not number % FILES_A_TURN:
                cancellation = await self._let_others_run() or cancellation
        return cancellation

    async def _let_others_run(self) -> BaseException | None:
        """Let other tasks run once; return a cancellation, which the caller raises later."""
        if self._workers is None or self._workers.forked:
            return None
        try:
            await anyio.lowlevel.cancel_shielded_checkpoint()
        except anyio.get_cancelled_exc_class() as error:  # asyncio's own
            return error
        return None

    async def __aenter__(self) -> Self:
        self._running_workers()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._failed = []  # an ``aclose`` inside the block has raised these already
        await close_after(error, self.aclose, "the hub")

    def _running_workers(self) -> Workers:
        """Return the workers; made on first use, because they belong to one event loop."""
        if self._closed:
            raise anyio.ClosedResourceError("the hub is closed: open files in a new one")
        if self._workers is not None:
            self._workers.check_loop()
        else:
            self._workers = workers = Workers(self._readers)
            self._scheduler = FlushScheduler(workers)
            opening = as_jobs(workers, workers.control, partial(_attempt_all, open_mapping))
            releasing = as_jobs(workers, workers.control, partial(_attempt_all, _Release.run))
            self._opening: BatchQueue[OpenOptions, Opened] = BatchQueue(
                workers, opening, self._discard, max_items=FILES_A_BATCH
            )
            self._releasing: BatchQueue[_Release, None] = BatchQueue(
                workers, releasing, max_items=FILES_A_BATCH
            )
            self._services = HubServices(
                self._scheduler, self._watcher, self._release, self._open_again, self._move
            )
        return self._workers

    def _check_process(self, path: str) -> None:
        """Raise in a forked child of the process that uses the hub (I10)."""
        if self._workers is not None and self._workers.forked:
            raise ForkedError(path)

    async def _open(self, options: OpenOptions) -> MappedFile:
        self._check_process(options.path)
        self._running_workers()
        with traced("open", options.path, 0, options.size or 0) as op:
            op.hop()
            opened = await self._open_mapping(options)
            op.covers(opened.mapping.size)
        return await self._admit(opened, options)

    async def _admit(self, opened: Opened, options: OpenOptions) -> MappedFile:
        """Make a file from an open mapping; undo the opening if that fails or the hub is closed."""
        if self._closed:
            await self._releasing.submit(_Release.of(opened), withdrawable=False)
            raise anyio.ClosedResourceError("the hub was closed while it opened the file")
        core = FileCore(opened, options, self._running_workers())
        file = MappedFile(core, self._services)
        self._files[core] = file
        self._register(core)
        FILES.debug('opened %s in mode "%s": %d bytes', core.path, core.mode, core.mapping.size)
        try:
            await file._prepare()  # noqa: SLF001  half of the constructor
        except BaseException as error:
            core.undo_opening()
            if not isinstance(error, GeneratorExit):  # then the loop has ended
                await file.aclose()
            raise
        core.end_opening()
        return file

    async def _open_mapping(self, options: OpenOptions) -> Opened:
        """Open a mapping in a worker, in one batch with others that are to be opened."""

        def attempt() -> Awaitable[Opened]:
            self._running_workers()  # the hub may have been closed during a wait for a lease
            return self._opening.submit(options)

        return await past_leases(attempt)

    async def _open_again(self, old: FileCore) -> FileCore | None:
        """Open the file that a path names now; None if that is the open file, and it is whole."""
        workers = self._running_workers()
        old.check_path("reopen")
        options = reopening(old.options)
        opened = await self._open_mapping(options)
        if opened.identity == old.identity and old.faults.damage() is None and old.mapping.current:
            await self._releasing.submit(_Release.of(opened), withdrawable=False)
            return None
        core = FileCore(opened, options, workers, mode=old.mode, policy=old.route.policy)
        core.end_opening()
        return core

    def _move(self, old: FileCore, new: FileCore) -> None:
        """Put the reopened core of a file in the place of the old one."""
        self._files[new] = self._files.pop(old)
        self._register(new)

    async def _release(self, core: FileCore) -> None:
        self._files.pop(core, None)
        self._unregister(core)
        FILES.debug("closed %s", core.path)
        await self._releasing.submit(
            _Release(core.mapping, core.identity, core.made, undo=core.undo)
        )

    def _register(self, core: FileCore) -> None:
        self._at.setdefault(core.path, set()).add(core)
        if core.shared_writable:
            self._own.add(core.own)

    def _unregister(self, core: FileCore) -> None:
        self._own.remove(core.own)
        others = self._at.get(core.path, set())
        others.discard(core)
        if not others:
            self._at.pop(core.path, None)

    def _seen(self, path: str, state: FileState | None) -> None:
        """Tell the open files of a path which file the path names now."""
        for core in self._at.get(path, ()):
            core.note_path(None if state is None else Identity(state.device, state.inode))

    async def _discard(self, opened: Opened) -> None:
        """Undo an opening whose task was cancelled."""
        with suppress(OSError):  # no task is left to raise it in, and no data can be lost
            await self._releasing.submit(_Release.of(opened), withdrawable=False)


def _attempt_all(
    function: Callable[[Item], Result], items: list[Item]
) -> list[Result | BaseException]:
    """Apply a function to every item of a batch; one that fails does not stop the others."""
    outcomes: list[Result | BaseException] = []
    for item in items:
        try:
            outcomes.append(function(item))
        except Exception as error:
            outcomes.append(error)
    try:
        return outcomes
    finally:
        del outcomes  # this frame is in the tracebacks of errors, and must not refer to them


class _OwnHub(Hub):
    """The private hub of one file; it ends when the file is closed."""

    async def _release(self, core: FileCore) -> None:
        try:
            await super()._release(core)
        finally:
            if not self._files and self._workers is not None:
                self._workers.close()


def hub_or_new(hub: Hub | None) -> Hub:
    """Return the hub that a caller gave; make a new one for None."""
    if hub is None:
        return Hub()
    return check_kind(hub, Hub, "hub", "pass an aiommap.Hub")


def open(
    path: str | os.PathLike[str] | int,
    mode: str = "r",
    *,
    size: int | None = None,
    capacity: int | None = None,
    sparse: bool = False,
    flush: FlushPolicy = MANUAL,
    advice: Advice | None = None,
    prewarm: bool = False,
    lock: bool = False,
    huge_pages: bool = False,
    inline_writes: bool = True,
) -> Opening[MappedFile]:
    """Open a file and map it: ``async with aiommap.open(path) as f``.

    The file has limits on worker threads of its own; to share them among files use ``Hub.open``.

    Args:
        path: a regular file, or an open descriptor of one. The kernel resolves a path as in
            open(2): it follows ``..`` and links, and a slash at the end asks for a directory. A
            relative path starts at the working directory of this call. The file keeps the path as
            an absolute one, with links and ``..`` as they are. A descriptor stays yours: this call
            duplicates it, and opens the file again by the duplicate where the system allows it, so
            that the file has its own position and flags.
        mode: "r": shared, read-only. "r+": shared, writable. "w+": shared, writable, created or
            overwritten with zeros. "x+": shared, writable, created; the file must not exist. "a+":
            shared, writable, created in one atomic step if it is missing, and never cut off; for
            processes that may be the first, and for ``append`` beside other processes. "c": private
            and writable: its stores never reach the file.
        size: how many bytes "w+" and "x+" create; they need it. In "a+", the file is made at least
            this long; 0 by default. Other modes refuse it.
        capacity: bytes of address space to reserve; ``resize`` up to there moves nothing.
        sparse: whether to skip reserving disk blocks when the file is created or grows; a full disk
            then shows at a later ``write`` instead.
        flush: when background flushes are due; by default ``FlushPolicy.manual()``.
        advice: how the whole file is going to be used.
        prewarm: whether to make the whole file resident before returning.
        lock: whether to keep the whole file in memory for as long as it is open.
        huge_pages: whether to ask for huge pages, if the file system has them;
            ``statistics().huge_page_bytes`` says what that obtained. On tmpfs mounted with
            huge=advise, pages that were reserved before they were mapped are small: create the file
            with ``sparse=True``.
        inline_writes: whether a ``write`` may store on the loop thread, if it can be told that the
            store need not wait for the disk. That cannot be told while a file system is frozen (by
            ``fsfreeze``, for a backup), and hardly if it is over a network or its writers are
            throttled. With False a worker makes every store; stores that wait at the same time go
            together. Operations on words, and stores through views, always run in the thread that
            makes them.
    Returns:
        An object to use with ``async with``, or to ``await`` for a MappedFile to ``aclose``.
    Raises:
        ValueError, TypeError: if an option makes no sense; raised before any file is touched.
        FileNotFoundError, FileExistsError, PermissionError: as ``open``.
        UnsupportedError: if the path is a directory, pipe, socket or device, a file whose content
            the kernel makes when it is read (/proc, /sys), or a file on hugetlbfs: use
            ``FileBackend`` for these. Also if the file system claims that a new file has the size
            asked for, and it has not.
        BlockingIOError: if another process keeps its lease on the file for longer than the kernel
            grants it; until then opening waits, as open(2) does.
        OSError: ENOSPC if the disk is full, EFBIG beyond RLIMIT_FSIZE, ENOMEM. A file that this
            call created is removed again, except in "a+"; a file that existed keeps its old size
            and bytes.
    Cancellation: an open that has begun in a worker is waited out and then undone: a file that it
        created is removed, if its name still names that file. A file that "w+" has overwritten
        stays so. A file that "a+" has created stays, because another process may have opened it by
        then. A wait for a lease ends at once.
    Source: mmap(2), posix_fallocate(3).
    """
    return _OwnHub().open(
        path,
        mode,
        size=size,
        capacity=capacity,
        sparse=sparse,
        flush=flush,
        advice=advice,
        prewarm=prewarm,
        lock=lock,
        huge_pages=huge_pages,
        inline_writes=inline_writes,
    )


def _reopen(file: MappedFile) -> tuple[Callable[..., Any], tuple[()]]:
    """Pickle a file as an ``Opening`` of its path, with its options."""
    options = file._core.options  # noqa: SLF001  they were given here
    path = file.path
    if path is None:
        raise not_copied(file, "pass its descriptor, fileno(), and open that")
    if options.mode.private:
        raise AccessModeError("pickle", "c", "its private stores would be lost")
    if file.closed:
        raise anyio.ClosedResourceError(f"{file.path} is closed: pickle it while it is open")
    reopen = partial(
        open,
        path,
        reopening(options).mode.name,  # the file of "w+" and "x+" exists by now
        capacity=None if options.capacity is None else file.capacity,
        sparse=options.sparse,
        flush=file.flush_policy,
        advice=options.advice,
        prewarm=options.prewarm,
        lock=options.lock,
        huge_pages=options.huge_pages,
        inline_writes=options.inline_writes,
    )
    return reopen, ()


copyreg.pickle(MappedFile, _reopen)
