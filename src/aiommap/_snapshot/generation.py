"""Generations: snapshots that many tasks share and none closes.

No call closes a generation: garbage collection does. Its file is open as long as anything refers to
the generation: a variable, a read under way, a hold or a view. Then a finalizer closes the file in
the background. With explicit leases every path to the snapshot would need one, and one forgotten
lease would read from a closed file during a swap.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import anyio.lowlevel

from .._core.file_state import FileState
from .._core.options import OpenOptions
from .._file.mapped_file import MappedFile
from .._hub.hub import Hub
from .._runtime.callbacks import when_garbage
from .snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class GenerationFile:
    """The file of a generation; a reference to this object does not keep the generation."""

    file: MappedFile

    @property
    def is_closed(self) -> bool:
        """Whether the file is closed and unmapped."""
        return self.file._core.mapping.closed  # noqa: SLF001  a snapshot is made of its file

    async def aclose(self) -> None:
        """Close the file, even if somebody reads it."""
        await self.file.aclose()


class Generation(Snapshot):
    """A snapshot that many tasks share; it is closed when nothing refers to it."""

    __slots__ = ("group", "resource")

    def __init__(self, file: MappedFile) -> None:
        super().__init__(file)
        #: The folder generation that this is part of; this keeps it alive.
        self.group: object = None
        #: Whoever opened the generation has to keep this until it is closed. The finalizer has only
        #: a weak reference to the file: it lives until it runs, and the file may lead to an object
        #: that refers to the generation.
        self.resource: GenerationFile = GenerationFile(file)
        when_garbage(self, _close_soon, weakref.ref(file))

    @classmethod
    async def of(cls, hub: Hub, options: OpenOptions) -> Generation:
        """Open the file that a path names."""
        return cls(await hub._open(options))  # noqa: SLF001  as for any snapshot

    @property
    def state(self) -> FileState:
        """The state of the file when it was opened."""
        return self._core.state

    def is_of(self, state: FileState | None, *, strictly: bool = False) -> bool:
        """Tell whether a state is the one in which this was opened.

        With ``strictly``, the time of change must not be later, either; it moves with names and
        permissions, too.
        """
        mine = self.state
        if state is None or (strictly and mine.ctime_ns < state.ctime_ns):
            return False
        return (mine.size, mine.mtime_ns, mine.device, mine.inode) == (
            state.size,
            state.mtime_ns,
            state.device,
            state.inode,
        )

    def is_same_as(self, other: Generation) -> bool:
        """Tell whether another generation is of the same file in the same state."""
        return self.is_of(other.state)

    def is_changed_in(self, other: Generation) -> bool:
        """Tell whether another generation is of the same file, changed in place."""
        return self.state.is_same_file(other.state) and not self.is_of(other.state)

    @property
    def is_held(self) -> bool:
        """Whether there is a hold on it."""
        return self._holds.any

    def retire(self) -> None:
        """Close when there is no hold on it, even if something still refers to it."""
        if self._holds.refuse():
            self._open.start_closing()

    async def ended(self) -> None:
        """Wait until it is closed after ``retire``."""
        await super().aclose()

    async def aclose(self) -> None:
        """Do nothing but give way: other tasks may be reading. ``async with`` is allowed."""
        await anyio.lowlevel.checkpoint()


def _close_soon(reference: weakref.ref[MappedFile]) -> None:
    """Close the file of a generation that is garbage; called in any thread, at any moment."""
    file = reference()
    if file is None:
        return
    opened = file._open  # noqa: SLF001  a snapshot is made of its file
    if not opened.core.mapping.forked:
        opened.core.workers.call_from_thread(opened.start_closing_unasked)
