"""Following a path: which file is in service, which is on trial, and how long old ones stay open.

Terms. A *generation* is one file that the path named, opened, found good and put in service. A
*candidate* is a file on *trial*: opened, and not yet found good. A trial is *overtaken* when the
path names another file by then.

Theory of operation. There are two background tasks. One listens to the hub's watcher, whose every
change only means "the path may name another file now". The other runs one trial after the other,
each of the file that the path names at that moment. So names that come and go quickly cost one
trial and not many, and it does not matter how a file got there: renamed, linked, reached by a
symbolic link, created, or written in place.

No call closes a generation: garbage collection does. Its file is open as long as anything refers to
it: a variable, a read under way, a hold or a view. A finalizer then closes the file in the
background. Explicit leases would be needed on every path to the snapshot; one forgotten lease would
read from a closed file during a swap.

Invariants.
  1  ``current`` is always a generation that was found good. One step on the loop thread replaces
     it, so a caller gets the old one or the new one, and it is open.
  2  A generation is not closed while anything refers to it, unless the follower or the hub is. Only
     ``_current`` and ``_candidate`` refer to one in here.
  3  An overtaken candidate is never put in service, and its failure is not reported. But after
     ``MAX_OVERTAKEN`` trials in a row the next one counts all the same. Otherwise a path that is
     replaced faster than files can be tried would be served from its first file for ever.
  4  If the path stops changing, the file that it names is tried last; if that is good, it is
     ``current``. While a file is being opened its identity is unknown, so every change counts.
  5  A failed trial is reported, and changes nothing else.
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

#: How many overtaken trials in a row are abandoned.
MAX_OVERTAKEN = 3

Validate = Callable[[Snapshot], Awaitable[object]]


class Generation(Snapshot):
    """A snapshot that many share and nobody closes: it is closed when it is garbage."""

    __slots__ = ()

    def __init__(self, file: MappedFile) -> None:
        super().__init__(file)
        # Weakly, as a finalizer is never garbage, and the file leads to whoever refers to this. The
        # follower keeps the file until it is closed.
        weakref.finalize(self, _close_soon, weakref.ref(file)).atexit = False

    @property
    def mapped(self) -> MappedFile:
        """The file itself. A reference to it does not keep it open."""
        return self._file

    def is_of(self, state: FileState | None, *, strictly: bool = False) -> bool:
        """Tell whether a state is the one in which this was opened.

        Strictly, the time of change is the same, too; new names and permissions move it.
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
        """Whether there is a hold on it."""
        return self._holds > 0

    def retire(self) -> None:
        """Close once there is no hold; references count no longer."""
        self._closing = True
        if not self._holds:
            self._open.start_closing()

    async def ended(self) -> None:
        """Wait until it is closed after ``retire``."""
        await super().aclose()

    async def aclose(self) -> None:
        """Do nothing: others may be reading. ``async with`` keeps it for the block."""
        await anyio.lowlevel.checkpoint()


def _close_soon(reference: weakref.ref[MappedFile]) -> None:
    """Close a file that nobody reads any more; called in any thread, at any moment."""
    file = reference()
    if file is None:
        return
    opened = file._open  # noqa: SLF001  a snapshot is made of its file
    if not opened.core.mapping.forked:
        opened.core.workers.call_from_thread(opened.start_closing_unasked)


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
        failed: gets the failures of trials, and of files in service that are changed in place.
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
        #: Whether following has ended.
        self.over: bool = False
        #: The file that the path names, as the last change said.
        self._named: FileState | None = None
        #: Whether bytes of the file in service may have been overwritten: its time of change moved.
        self._doubted: bool = False
        #: Whether the file of the path is being opened.
        self._opening: bool = False
        #: Set when a file waits for a trial that is neither in service nor on trial.
        self._wanted = anyio.Event()
        self._overtaken = 0
        self._trial = anyio.CancelScope()
        self._tasks = 0
        self._ended = anyio.Event()
        self._moved = anyio.Event()
        #: Generations that something may refer to, and files that may still be mapped.
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
            raise anyio.ClosedResourceError(
                f"{self.path} is not followed any more: follow it again"
            )
        return self._current

    async def start(self) -> None:
        """Put the first file in service, or raise what is wrong with it."""
        try:
            # Watched before it is opened, so that no change is missed in between (I11).
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
        for task in (self._listen, self._try_each):
            self._tasks += 1
            spawn_user_task(self._run, task)

    @property
    def held(self) -> bool:
        """Whether there is a hold on any generation."""
        return any(generation.is_held for generation in self._alive)

    async def moved(self) -> None:
        """Wait for the next generation, or for the end of following."""
        await self._moved.wait()

    def check_process(self) -> None:
        """Raise in a forked child, where nothing listens to changes (I10)."""
        if self._forks != Forks.count:
            raise ForkedError(self.path)

    async def aclose(self) -> None:
        """End following, and close each generation as soon as there is no hold on it."""
        if self._forks != Forks.count:
            for file in self._files:
                await file.aclose()
            return
        self._changes.close()
        self._end()
        for generation in [*self._alive]:
            generation.retire()
        await self._ended.wait()
        await self._wait_closed()

    async def _wait_closed(self) -> None:
        """Wait for every file to close; raise only the failure of the one in service."""
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

    # The background tasks, from here on. No group of anyio's holds them: what it knows of a task
    # keeps the task, and all that it refers to, for good if the loop is closed while it waits.

    async def _run(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except GeneratorExit:
            raise  # the loop is gone, and nobody waits for the end any more
        except Exception:
            FOLLOWING.exception("following %s met an error and has ended", self.path)
            self._end_task()
        except BaseException:
            self._end_task()
            raise
        else:
            self._end_task()

    def _end_task(self) -> None:
        """End the other task, too, and tell whoever waits for the last one."""
        self._changes.close()
        self._end()
        self._tasks -= 1
        if not self._tasks:
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
        """Tell whether a state is that of the candidate, or else of the generation in service."""
        newest = self._current if self._candidate is None else self._candidate
        return newest is not None and newest.is_of(state, strictly=strictly)

    async def _try_each(self) -> None:
        while True:
            await self._wanted.wait()
            if self.over:
                return
            self._wanted = anyio.Event()
            seen_through = self._overtaken >= MAX_OVERTAKEN
            with anyio.CancelScope() as self._trial:
                await self._try()
            # A trial that failed while the path changed was overtaken as well.
            again = self._wanted.is_set() and not seen_through
            self._overtaken = self._overtaken + 1 if again else 0

    async def _try(self) -> None:
        """Open the file that the path names, and put it in service if it is good."""
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
        """Tell whether a candidate needs a trial; report the file in service if it was changed."""
        if candidate.is_of(self._named, strictly=True):
            self._wanted = anyio.Event()  # the change came while this file was being opened
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
            # Not in this task: a stray cancellation would end following, and not just the trial.
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
        served = self._current is not None and not self._current.closed  # else the hub is ending
        if served and not self._is_overtaken():
            self._failed.tell(error)

    def _end(self) -> None:
        """Put nothing in service any more."""
        self.over = True
        self._current = None
        self._moved.set()
        self._wanted.set()
        self._trial.cancel()
