"""Following a path: which file is served, which one is on trial, and who keeps old ones open.

Terms. A *generation* is one file that the path named, opened, found good and put in service. A
*candidate* is one on *trial*: opened and not yet found good. A trial is *overtaken* when the path
names something else by then.

Theory of operation. One background task does two things for as long as a path is followed. It
listens to the watcher, whose every word only means "what the path names may not be what you have";
and it holds one trial after the other of whatever the path names by then. So names that come and
go quickly cost one trial and not many, and nothing depends on how a file got there: renamed,
linked, turned to by a symbolic link, created, or written in place.

A generation is closed by nobody's call but when it is garbage: its file is open for as long as
anybody refers to it, by a variable, a read under way, a hold or a view. A finalizer then closes
the file in the background. Leases that readers must take would have to be taken on every way to
the snapshot, and the one that forgets reads from a closed file on the day of a swap.

Invariants.
  1  ``current`` is always a generation that was found good; it is replaced in one step on the
      loop thread, so whoever asks gets the old one or the new one, open.
  2  A generation is not closed while it is referred to, unless the follower or the hub is.
      Nothing in here refers to one but ``_current`` and ``_candidate``.
  3  What is overtaken is never put in service, and its failure is nobody's concern; but after
      ``MAX_OVERTAKEN`` trials in a row the next one counts all the same, or a path that is
      replaced faster than files can be tried would be served from its first file for ever.
  4  If the path stops changing, what it names is tried last; found good, it is ``current``. While
      a file is being opened nobody knows yet which one it is, so whatever is heard counts.
  5  A failed trial changes nothing but that it is reported.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel

from .._core.file_state import FileState
from .._core.options import OpenOptions
from .._errors import ForkedError, StaleSnapshotError
from .._file.mapped_file import MappedFile
from .._hub.hub import Hub
from .._logs import FOLLOWING
from .._runtime.callbacks import Listeners, call_user
from .._runtime.loops import spawn_user_task
from .._runtime.threads import Forks
from .._watch.changes import ChangeKind
from .snapshot import Snapshot

#: So many overtaken trials in a row are abandoned.
MAX_OVERTAKEN = 3

Validate = Callable[[Snapshot], Awaitable[object]]


class Generation(Snapshot):
    """A snapshot that many share and nobody has to close: it is closed when it is garbage."""

    __slots__ = ()

    def __init__(self, file: MappedFile) -> None:
        super().__init__(file)
        weakref.finalize(self, _close_soon, file).atexit = False

    @property
    def mapped(self) -> MappedFile:
        """The file itself; whoever keeps it does not keep it open."""
        return self._file

    def is_of(self, state: FileState | None, *, strictly: bool = False) -> bool:
        """Tell whether a state is the one in which this was opened.

        Strictly so if the time of change is, too, which also tells of new names and permissions.
        """
        mine = self._core.state
        if state is None or (strictly and mine.ctime_ns != state.ctime_ns):
            return False
        return (mine.size, mine.mtime_ns, mine.device, mine.inode) == (
            state.size,
            state.mtime_ns,
            state.device,
            state.inode,
        )

    def is_same_as(self, other: Generation) -> bool:
        """Tell whether another one is of the same file in the same state."""
        return self.is_of(other._core.state)

    def is_changed_in(self, other: Generation) -> bool:
        """Tell whether another one is of the same file, changed in place."""
        state = other._core.state
        return self._core.state.is_same_file(state) and not self.is_of(state)

    @property
    def is_held(self) -> bool:
        """Whether a hold is out."""
        return self._holds > 0

    def retire(self) -> None:
        """Close, once nobody holds it; references count no longer."""
        self._closing = True
        if not self._holds:
            self._file._closer.start()  # noqa: SLF001  a snapshot is made of its file

    async def ended(self) -> None:
        """Wait until it is closed after ``retire``."""
        await super().aclose()

    async def aclose(self) -> None:
        """Do nothing: others may be reading. ``async with`` keeps it for the block."""
        await anyio.lowlevel.checkpoint()


def _close_soon(file: MappedFile) -> None:
    """Close a file that nobody refers to any more; called in any thread, at any point."""
    core, closer = file._core, file._closer  # noqa: SLF001  a snapshot is made of its file
    if not core.mapping.forked:
        core.workers.call_from_thread(closer.start_unasked)


async def _ask(validate: Validate, candidate: Snapshot) -> object:
    answer = validate(candidate)
    if not isinstance(answer, Awaitable):
        raise TypeError(f"{validate!r} returned {answer!r}: validate has to be async")
    return await answer


class Follower:
    """Keeps the newest good file of a path in service.

    Args:
        hub: opens and watches.
        options: how to open; prewarming is left to the trial.
        prewarm: whether a trial ends with making the file resident.
        validate: raises, or returns False, if a file is not good; None to take any.
        failed: told of trials that fail, and of files in service that are changed in place.
    """

    def __init__(
        self,
        hub: Hub,
        options: OpenOptions,
        *,
        prewarm: bool,
        validate: Validate | None,
        failed: Listeners[Exception],
    ) -> None:
        self._forks = Forks.count
        self._hub = hub
        self._options = options
        self._prewarm = prewarm
        self._validate = validate
        self._failed = failed
        self._changes = hub.watch(options.path, buffer=1)
        self._current: Generation | None = None
        #: The file of the generation that is in service, or was when following ended.
        self._serving: MappedFile | None = None
        self._candidate: Generation | None = None
        #: Number of the generation in service, from 1.
        self.number: int = 0
        #: Nothing will be put in service any more.
        self.over: bool = False
        #: What the path was last heard to name.
        self._named: FileState | None = None
        #: Whether bytes of what serves may have been overwritten with no trace but the time.
        self._doubted: bool = False
        #: Whether what it names is being opened.
        self._opening: bool = False
        #: Whether something is to be tried that neither serves nor is on trial.
        self._wanted = anyio.Event()
        self._overtaken = 0
        self._trial = anyio.CancelScope()
        self._running = anyio.CancelScope()
        self._ended = anyio.Event()
        self._moved = anyio.Event()
        #: Generations that may be referred to, and files that may not be unmapped yet.
        self._alive: weakref.WeakSet[Generation] = weakref.WeakSet()
        self._files: set[MappedFile] = set()

    @property
    def path(self) -> str:
        """The absolute path that is followed."""
        return self._options.path

    @property
    def current(self) -> Snapshot:
        """The generation in service (follower.1)."""
        if self.over or self._current is None:
            raise anyio.ClosedResourceError(f"{self.path} is not followed any more: follow it anew")
        return self._current

    async def start(self) -> None:
        """Put the first file in service, or raise what is wrong with it."""
        try:
            # Watched before it is opened, so that no change falls in between (I11).
            await self._changes.__aenter__()
            first = await self._open()
            try:
                await self._examine(first)
            except BaseException:
                first.retire()
                raise
        except BaseException:
            self._changes.close()
            self._end()
            self._ended.set()
            raise
        self._put_in_service(first)
        spawn_user_task(self._run)

    @property
    def held(self) -> bool:
        """Whether a hold is out on any generation."""
        return any(generation.is_held for generation in self._alive)

    async def moved(self) -> None:
        """Wait until there is another generation, or there will be none."""
        await self._moved.wait()

    def check_process(self) -> None:
        """Raise in a forked child, where nothing is listened to (I10)."""
        if self._forks != Forks.count:
            raise ForkedError(self.path)

    async def aclose(self) -> None:
        """End following, and close every generation that nobody holds, then the others."""
        if self._forks != Forks.count:
            for file in self._files:
                await file.aclose()
            return
        self._changes.close()
        self._end()
        self._running.cancel()
        for generation in [*self._alive]:
            generation.retire()
        await self._ended.wait()
        await self._wait_closed()

    async def _wait_closed(self) -> None:
        """Wait for every file; only what is wrong with the one in service is an error of ours."""
        closing = {file: file.aclose for file in self._files}
        closing |= {generation.mapped: generation.ended for generation in self._alive}
        failure: Exception | None = None
        for file, ended in closing.items():
            try:
                await ended()
            except Exception as error:
                if file is self._serving:
                    failure = error
                else:
                    FOLLOWING.warning("%s: closing an old generation failed: %s", self.path, error)
        if failure is not None:
            raise failure

    # The background task, from here on.

    async def _run(self) -> None:
        try:
            with self._running:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._try_each)
                    await self._listen()
                    group.cancel_scope.cancel()
        except Exception:
            FOLLOWING.exception("following %s met an error and has ended", self.path)
        finally:
            self._changes.close()
            self._end()
            self._ended.set()

    async def _listen(self) -> None:
        async for change in self._changes:
            self._named = change.new
            only_times = change.kind is ChangeKind.CHANGED
            if self._opening or not self._has(change.new, strictly=only_times):
                self._doubted = self._doubted or only_times
                self._wanted.set()
                if self._candidate is not None and self._overtaken < MAX_OVERTAKEN:
                    self._trial.cancel()

    def _has(self, state: FileState | None, *, strictly: bool) -> bool:
        """Tell whether a state is of what is on trial, or else in service."""
        newest = self._current if self._candidate is None else self._candidate
        return newest is not None and newest.is_of(state, strictly=strictly)

    async def _try_each(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            seen_through = self._overtaken >= MAX_OVERTAKEN
            with anyio.CancelScope() as self._trial:
                await self._try()
            # What failed while the path moved on was overtaken as well.
            again = self._wanted.is_set() and not seen_through
            self._overtaken = self._overtaken + 1 if again else 0

    async def _try(self) -> None:
        """Open what the path names, and put it in service if it is good."""
        self._opening = True
        try:
            candidate = await self._open()
        except Exception as error:
            self._reject(error)
            return
        finally:
            self._opening = False
        self._candidate = candidate
        try:
            if not self._is_news(candidate):
                return
            await self._examine(candidate)
            if not self._is_overtaken():
                self._put_in_service(candidate)
        except Exception as error:
            self._reject(error)
        finally:
            self._candidate = None
            if candidate is not self._current:
                candidate.retire()

    def _is_news(self, candidate: Generation) -> bool:
        """Tell whether a candidate is worth a trial; say so if it is what serves, but changed."""
        if candidate.is_of(self._named, strictly=True):
            self._wanted = anyio.Event()  # asked for while it was being opened
        current = self._current
        if current is None:
            return False
        same = current.is_same_as(candidate)
        if current.is_changed_in(candidate) or (same and self._doubted):
            self._failed.tell(StaleSnapshotError(self.path, current.size, candidate.size))
        return (self._doubted or not same) and not self._is_overtaken()

    def _is_overtaken(self) -> bool:
        return self._wanted.is_set() and self._overtaken < MAX_OVERTAKEN

    async def _open(self) -> Generation:
        generation = Generation(await self._hub._open(self._options))  # noqa: SLF001  as for any snapshot
        self._alive.add(generation)
        self._files = {file for file in self._files if not file._core.mapping.closed}  # noqa: SLF001
        self._files.add(generation.mapped)
        return generation

    async def _examine(self, candidate: Generation) -> None:
        """Raise unless a candidate is good, and make it resident."""
        if self._validate is not None:
            # Apart, or a stray cancellation would end the following and not just the trial.
            answer = await call_user(_ask, self._validate, candidate)
            if answer is False:
                raise ValueError(f"{self.path}: validate returned False, so it is not served")
        if self._prewarm:
            await candidate.mapped.prewarm()
        await candidate.verify()

    def _put_in_service(self, generation: Generation) -> None:
        if self.over:
            return
        self._current, self._serving = generation, generation.mapped
        self._doubted = self._doubted and self._wanted.is_set()
        self.number += 1
        FOLLOWING.info(
            "%s: generation %d is in service: %d bytes", self.path, self.number, generation.size
        )
        moved, self._moved = self._moved, anyio.Event()
        moved.set()

    def _reject(self, error: Exception) -> None:
        served = self._current is not None and not self._current.closed  # or the hub is ending
        if served and not self._is_overtaken():
            self._failed.tell(error)

    def _end(self) -> None:
        """Say that nothing will be put in service any more."""
        self.over = True
        self._current = None
        self._moved.set()
