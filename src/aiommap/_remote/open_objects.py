"""The objects that are open through a cache, and what its folder holds. For worker threads.

Invariants.
  1  A cache opens an object once, for any number of snapshots, which share its fetches.
  2  If the folder holds other files or is in a place where no cache can be, that is the caller's
     mistake, and an error. If the folder fails, that is a miss: objects are opened without it, and
     nothing is stored (R8).
  3  After ``close`` no object is opened: nobody would close it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import anyio

from .._core.opening import Opened, map_again, mapping_flags
from .._core.options import MODES, OpenOptions
from .._core.paths import FilePath
from .._errors import MappedFileError, RemoteError
from .._hub.hub import Hub
from .._runtime.threads import Mutex, run_in_thread
from .._typing import Buffer
from .beside import outcome_of, run_beside
from .body import Body
from .cache_folder import Files, Folder, anonymous_files
from .comparing import compare
from .counters import Counters
from .entry import Entry
from .eviction import FolderRoom, disk_bytes
from .layout import MARKER, PRESENT, SUSPECT, overhead_bytes
from .obstore import ObstoreSource, source_of_url
from .source import (
    BegunSource,
    ObjectIdentity,
    OpeningSource,
    RemoteSource,
    RemoteState,
    VersionedSource,
)
from .statistics import CacheEntry, CacheReport

#: Called with an object, and whether its first block is still on its way.
HandOver = Callable[["Found", bool], None]
#: What ``OpeningSource.begin`` returns.
_BegunResponse = tuple[RemoteState, Callable[[], Buffer]]

#: "Method Not Allowed", "Not Implemented": a server that knows no HEAD. 403 is a PermissionError.
_REFUSALS = (405, 501)
#: Errors of the system for a size that it cannot map, or give a file.
_TOO_LARGE = (errno.ENOMEM, errno.EFBIG, errno.EOVERFLOW)
#: Errors of a process, or of the machine, that has no descriptor left.
_TOO_MANY = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments of ``RemoteCache.open``, checked."""

    source: str | RemoteSource
    validator: str = "etag"
    version: str | None = None
    offline: bool = False
    prewarm: bool = False
    read_ahead: bool = True
    hub: Hub | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An object that was opened, and its data file, mapped for one snapshot.

    Attributes:
        source: what fetches the blocks that are not cached.
        entry: the object; each ``Found`` counts as one use of it.
        options, opened: of the data file.
    """

    source: RemoteSource
    entry: Entry
    options: OpenOptions
    opened: Opened

    def give_up(self) -> None:
        """Unmap the data file, and end the use of the object."""
        try:
            self.opened.mapping.close()
        finally:
            self.entry.release()


class OpenObjects:
    """The worker half of a cache.

    Args:
        path: path of the folder.
        max_bytes, min_free, block_size, request_size: as for ``RemoteCache``.
        counters: the counters of the cache.
        report: called with each failure of the cache.
    """

    def __init__(
        self,
        path: str,
        max_bytes: int,
        min_free: float,
        block_size: int,
        request_size: int,
        counters: Counters,
        report: Callable[[Exception], object],
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._min_free = min_free
        self._block_size = block_size
        self._request_size = request_size
        self._counters = counters
        self._report = report
        self._mutex = Mutex()
        self._folder: Folder | None = None
        self._room: FolderRoom | None = None
        self._closed = False
        self._entries: dict[tuple[str, ...], Entry] = {}
        #: By device: the flags with which data files are mapped. To find them takes six calls.
        self._flags: dict[int, int] = {}

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The objects that are open; in any thread."""
        return (*self._entries.values(),)

    @property
    def used_bytes(self) -> int:
        """What all processes had reserved when this one last read the count; in any thread."""
        folder = self._folder
        return 0 if folder is None else folder.budget.used_bytes

    def enter(self) -> None:
        """Open the folder, if it is a cache already; a failure shows again when it is needed."""
        if os.path.lexists(os.path.join(self._path, MARKER)):
            with suppress(OSError, ValueError, anyio.ClosedResourceError):
                self._usable_folder()

    def find(
        self,
        asked: Asked,
        is_wanted: Callable[[], bool],
        hand_over: HandOver,
    ) -> list[Body]:
        """Ask the store for the state of the object, open it in the cache, and map its data file.

        Args:
            is_wanted: tells whether the task that opens the object still waits for it.
            hand_over: gets the object, in this thread or in another.
        Returns:
            What of the first block came and was not stored.
        """
        source = source_of_url(asked.source) if isinstance(asked.source, str) else asked.source
        if asked.version is not None:
            source = _at_version(source, asked.version)
        if asked.offline:
            identity = self._find_cached(source.url, asked)
            hand_over(self._found(source, self._open_entry(identity)), False)
            return []
        state, body = self._ask(source, asked)
        identity = ObjectIdentity.of(source.url, state, asked.validator)
        if state.version is not None and isinstance(source, ObstoreSource | VersionedSource):
            source = source.at_version(state.version)
        if body is None or not state.size:
            hand_over(self._found(source, self._open_entry(identity)), False)
            return []
        return self._receive(source, identity, body, hand_over) if is_wanted() else []

    def _receive(
        self,
        source: RemoteSource,
        identity: ObjectIdentity,
        body: Callable[[], Buffer],
        hand_over: HandOver,
    ) -> list[Body]:
        """Open the object and hand it over, then store its first block.

        Another thread receives the block meanwhile. The block is stored, without the GIL, while the
        loop makes the snapshot.
        """
        first = (0, min(self._block_size, identity.state.size))
        receive, taken = run_beside(body), False
        try:
            entry = self._open_entry(identity, new=True)
            entry.use()  # the task may release it at once
            try:
                fits = entry.bytes_of(0, 1) == first
                hand_over(self._found(source, entry), fits)
                if fits:
                    begun = BegunSource(source, identity.state, first[1], receive)
                    try:
                        return entry.fetch(begun, 0, 1)
                    finally:
                        taken = not begun.has(*first)  # not if the block was there already
            finally:
                entry.release()
        finally:
            if not taken:
                outcome_of(receive)  # the thread is ours until it is done
        return []

    def _ask(
        self, source: RemoteSource, asked: Asked
    ) -> tuple[RemoteState, Callable[[], Buffer] | None]:
        """Ask what an object is: with its first block, if nothing of it is cached (R6).

        A server that knows no HEAD refuses to tell the state alone, as does any server for a URL
        that is signed for GET. Then, too, the state comes with the first block.
        """
        # ObstoreSource first, here and elsewhere: whether an object fits a protocol takes long.
        opening = source if isinstance(source, ObstoreSource | OpeningSource) else None
        if opening is not None and asked.read_ahead:
            note: Callable[[], bool] = partial(self._is_new, source.url)
            early = self._has_no_folder
            noted = run_beside(note) if early else outcome_of(note)  # beside: it makes the folder
            if early or noted():
                begun = self._begin_new(opening, source.url, noted)
                if begun is not None:
                    return begun
                opening = None  # it is not asked twice
        self._counters.add(heads=1)
        try:
            state = source.stat(None)
        except (PermissionError, RemoteError) as error:
            begun = None
            if opening is not None and _is_refusal(error):
                begun = self._begin(opening)
            if begun is None:
                raise
            return begun
        assert state is not None  # there was no condition
        return state, None

    def _begin(self, source: OpeningSource) -> _BegunResponse | None:
        self._counters.add(gets=1)
        return source.begin(self._block_size)

    def _begin_new(
        self, source: OpeningSource, url: str, noted: Callable[[], bool]
    ) -> _BegunResponse | None:
        """Ask for an object of which nothing is cached; if that fails, forget its address."""
        try:
            begun = self._begin(source)
        except BaseException:
            with suppress(Exception):  # it is a hint, and the folder may be closed or gone
                noted()
                self._usable_folder().budget.forget_address(url)
            raise
        noted()
        return begun

    @property
    def _has_no_folder(self) -> bool:
        """Whether the folder is not there yet, so that nothing can be cached."""
        return self._folder is None and not os.path.lexists(self._path)

    def _is_new(self, url: str) -> bool:
        """Tell whether nothing of an address can be cached; note that from now on it may be.

        False with a folder that fails: nothing can be stored there.
        """
        try:
            return not self._usable_folder().budget.note_address(url)
        except MappedFileError:
            raise
        except (OSError, ValueError):  # opening the object's files tells of it
            return False

    def _find_cached(self, url: str, asked: Asked) -> ObjectIdentity:
        """Find, among the cached states of an object, the one that was opened last."""
        found: list[tuple[int, ObjectIdentity]] = []

        def look(_: str, files: Files) -> None:
            identity = files.header.identity
            if identity.url == url and asked.version in (None, identity.state.version):
                found.append((files.header.opened, identity))

        self._usable_folder().each(look)
        if not found:
            raise FileNotFoundError(2, f"nothing of it is cached in {self._path}", url)
        return max(found, key=lambda pair: pair[0])[1]

    def _open_entry(self, identity: ObjectIdentity, *, new: bool = False) -> Entry:
        """Open an object, or return its entry if it is open (open_objects.1).

        Args:
            new: whether the object has probably no files yet.
        """
        with self._mutex:
            known = self._entries.get(identity.key)
            if known is not None and not known.lost:
                with suppress(anyio.ClosedResourceError):
                    known.use()
                    return known
            files, room, why = self._open_files(identity, new)
            entry = Entry(
                files, room, self._counters, self._request_size, self._report, self._forget, why
            )
            self._entries[identity.key] = entry
            return entry

    def _found(self, source: RemoteSource, entry: Entry) -> Found:
        """Map the data file of an open object; if that fails, end the use of the object."""
        options = OpenOptions(FilePath(entry.path, entry.path, None), MODES["r"])
        device = entry.device
        try:
            with _explaining(entry.identity):
                if device not in self._flags:
                    found = os.fstat(entry.data_fd)
                    self._flags[device] = mapping_flags(entry.data_fd, found, options)
                opened = map_again(entry.data_fd, options, self._flags[device])
            return Found(source, entry, options, opened)
        except BaseException:
            entry.release()
            raise

    def _forget(self, entry: Entry) -> None:
        """Forget an object whose files were closed."""
        key = entry.identity.key
        if self._entries.get(key) is entry:
            del self._entries[key]

    def _open_files(
        self, identity: ObjectIdentity, new: bool
    ) -> tuple[Files, FolderRoom | None, str]:
        """Open the files of an object; without a room if there is none, and then tell why."""
        try:
            folder = self._ready_folder()
            assert self._room is not None
            files = folder.open(identity, self._block_size, self._room.make, new=new)
            if files is not None:
                return files, self._room.use(), ""
            why = self._room.why_none(overhead_bytes(identity.state.size, self._block_size))
        except MappedFileError:
            raise
        except (OSError, ValueError) as error:  # open_objects.2
            self._counters.add(errors=1)
            self._report(error)
            why = f"its folder failed: {error}"
        with _explaining(identity):
            return anonymous_files(identity, self._block_size), None, why

    def _usable_folder(self) -> Folder:
        with self._mutex:
            return self._ready_folder()

    def _ready_folder(self) -> Folder:
        """Return the folder; make it if it is missing or was deleted. With the mutex held."""
        if self._closed:
            raise anyio.ClosedResourceError(f"the cache {self._path} is closed")
        if self._folder is not None and self._folder.budget.detached:
            assert self._room is not None
            self._room.release()  # objects that are open still use it
            self._folder = self._room = None
        if self._folder is None:
            folder = Folder(self._path, self._max_bytes, self._min_free)
            self._room = FolderRoom(folder, self._counters, self._report)
            self._folder = folder
            if self._room.is_too_full:
                self._trim_in_background(self._room)
        return self._folder

    def _trim_in_background(self, room: FolderRoom) -> None:
        """Evict what is beyond the limit, in a thread for which no read waits."""

        def trim() -> None:
            try:
                room.trim()
            except OSError as error:  # the folder was deleted, or fails
                self._counters.add(errors=1)
                self._report(error)
            finally:
                room.release()

        room.use()
        try:
            run_in_thread(trim)
        except RuntimeError:  # no thread can be started
            trim()

    def close(self) -> None:
        """Open no more objects (open_objects.3), and close the folder after the last open one."""
        with self._mutex:
            self._closed = True
            if self._room is not None:
                self._room.release()
            self._folder = self._room = None

    def clear(self, source: str | RemoteSource | None) -> int:
        url = None if source is None else _url_of(source)
        folder = self._usable_folder()
        room, names = self._room, list[str]()
        assert room is not None

        def look(name: str, files: Files) -> None:
            if url in (None, files.header.identity.url):
                names.append(name)

        folder.each(look)
        freed = sum(room.clear(name) for name in names)
        if url is None:
            freed += folder.remove_earlier()
        folder.budget.recount()
        return freed

    def verify(self) -> CacheReport:
        objects = blocks = length = bad_blocks = 0

        def look(_: str, files: Files) -> None:
            nonlocal objects, blocks, length, bad_blocks
            good, bad, compared = compare(files)
            self._counters.add(bad_blocks=bad)
            objects += 1
            blocks += good + bad
            length += compared
            bad_blocks += bad

        removed = self._usable_folder().each(look)
        return CacheReport(objects, blocks, length, bad_blocks, removed)

    def list(self) -> tuple[CacheEntry, ...]:
        found: list[CacheEntry] = []

        def look(_: str, files: Files) -> None:
            header = files.header
            found.append(
                CacheEntry(
                    header.identity.url,
                    header.identity.state,
                    header.block_size,
                    sum(_cached(files)),
                    disk_bytes(files),
                    header.opened,
                    files.map.is_locked_elsewhere(0),
                )
            )

        self._usable_folder().each(look)
        return tuple(sorted(found, key=lambda entry: -entry.opened))


@contextmanager
def _explaining(identity: ObjectIdentity) -> Iterator[None]:
    """Explain errors of a block that opens and maps an object: too large, or too many are open."""
    try:
        yield
    except OSError as error:
        if error.errno in _TOO_MANY:
            reason = (
                f"{os.strerror(error.errno)}: each open object takes three descriptors; close some "
                "snapshots, or raise the limit (ulimit -n)"
            )
            raise OSError(error.errno, reason, identity.url) from error
        if error.errno not in _TOO_LARGE:
            raise
        reason = (
            f"the server says that it has {identity.state.size} bytes, and this process cannot map "
            f"so many ({os.strerror(error.errno)}): look at the Content-Range that it sends"
        )
        raise RemoteError(identity.url, reason, number=error.errno) from error


def _is_refusal(error: PermissionError | RemoteError) -> bool:
    """Tell whether a server may give an object although it does not tell its state alone."""
    return isinstance(error, PermissionError) or error.status in _REFUSALS


def _url_of(source: str | RemoteSource) -> str:
    return source_of_url(source).url if isinstance(source, str) else source.url


def _at_version(source: RemoteSource, version: str) -> RemoteSource:
    if not isinstance(source, VersionedSource):
        raise TypeError(f"{source!r} reads no versions: give a source that is bound to one")
    return source.at_version(version)


def _cached(files: Files) -> Iterator[int]:
    """Yield the bytes of each run of blocks that can be read without a request."""
    size, block_size = files.header.identity.state.size, files.header.block_size
    for first in range(0, files.blocks.count, 1 << 16):
        states = files.blocks.states(first, min(files.blocks.count, first + (1 << 16)))
        for at, state in enumerate(states, first):
            if state in (PRESENT, SUSPECT):
                yield min(size, (at + 1) * block_size) - at * block_size
