"""How far a log goes: its control file says it, or its frames if that cannot be believed."""

from __future__ import annotations

from dataclasses import replace
from io import FileIO

from .._core.options import OpenOptions
from .._file.mapped_file import MappedFile
from .._hub.hub import Hub
from .._ipc.atomics import AtomicU32, AtomicU64
from .._runtime.workers import Workers
from .control import believed_control, open_control
from .format import (
    DURABLE,
    DURABLE_SEQUENCE,
    FIRST,
    FUTEX,
    LAST_SEQUENCE,
    TAIL,
    ControlIdentity,
)
from .log_folder import Folder
from .opening import Look, look


class Words:
    """The words of a control file by which a log publishes, mapped."""

    __slots__ = ("durable", "durable_sequence", "first", "futex", "last", "place", "tail")

    def __init__(self, file: MappedFile, place: tuple[int, int]) -> None:
        #: Device and inode of the control file.
        self.place: tuple[int, int] = place
        self.tail: AtomicU64 = file.atomic_u64(TAIL)
        self.durable: AtomicU64 = file.atomic_u64(DURABLE)
        self.durable_sequence: AtomicU64 = file.atomic_u64(DURABLE_SEQUENCE)
        self.last: AtomicU64 = file.atomic_u64(LAST_SEQUENCE)
        self.first: AtomicU64 = file.atomic_u64(FIRST)
        self.futex: AtomicU32 = file.atomic_u32(FUTEX)


class Published:
    """What a log has published; for one event loop.

    Attributes:
        words: the words of the control file; None while they cannot be believed.
        log_id: id of the log; None while there is none.
    """

    __slots__ = ("_found", "_hub", "_workers", "log_id", "words")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._hub = Hub()
        self._found = Look(None, False, 1, 0, 0)
        self.words: Words | None = None
        self.log_id: bytes | None = None

    async def attach(self, folder: Folder) -> None:
        """Map the words if they can be believed, else find out how far the frames go.

        While there are no words, a reader at the end calls this again, because a writer may have
        published by then. It follows the frames only until it has found a log: that takes as long
        as reading the last segment.

        Raises:
            CorruptLogError: if there are no words, and the folder was deleted or replaced.
        """
        workers = self._workers
        if self.log_id is None:
            self._found = await workers.run(workers.control, look, folder)
            self.log_id = self._found.log_id
        kept: list[FileIO] = []
        try:
            identity = await workers.run(workers.control, _find, folder, kept)
            if identity is not None:
                options = OpenOptions.check(kept[0].fileno(), "r", prewarm=True)
                file = await self._hub._open(replace(options, part=True))  # noqa: SLF001  as open
                self.log_id = identity.log_id
                self.words = Words(file, (identity.device, identity.inode))
        finally:
            for opened in kept:
                opened.close()

    @property
    def first(self) -> int:
        """The lowest sequence that was not discarded."""
        return self._found.first if self.words is None else self.words.first.load()

    @property
    def last(self) -> int:
        """The sequence of the last record."""
        return self._found.last if self.words is None else self.words.last.load()

    @property
    def durable(self) -> int:
        """The sequence up to which records are known to be durable."""
        return self._found.durable if self.words is None else self.words.durable_sequence.load()

    async def aclose(self) -> None:
        """Unmap the control file."""
        await self._hub.aclose()


def _find(folder: Folder, kept: list[FileIO]) -> ControlIdentity | None:
    """Open the control file, and keep it; return its identity if all its words can be believed."""
    fd = open_control(folder)
    if fd is not None:
        kept.append(FileIO(fd))
        believed = believed_control(fd, folder)
        if believed is not None and believed[2]:
            return believed[1]
    folder.check_path()
    return None
