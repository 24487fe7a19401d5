"""The files of a folder that are in service together, and how the next ones are loaded.

Invariants.
  1  A file in service is kept open for ``SETTLE_SECONDS`` at least. A file that replaces it later
     has another time of change, even if it gets the inode number of the old one.
  2  A ``LoadedFiles`` in service never changes: a trial makes a new one, from old entries and from
     new ones. So an abandoned trial leaves no trace.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import anyio

from .._core.file_state import FileState
from .._runtime.callbacks import Listeners
from .._runtime.loops import call_later
from .folder_generation import FolderGeneration
from .folder_listing import same_bytes
from .generation import Generation
from .trial import Load, call_load

Value = TypeVar("Value", covariant=True)
Loaded = TypeVar("Loaded")

#: Longer than the tick of the clock by which times of files move.
SETTLE_SECONDS = 0.25
#: How many files of a folder are loaded at a time.
LOADS_AT_ONCE = 16

#: Gets the path of a file that is not served, and why.
Failed = Listeners[tuple[str, Exception]]


class Entry(Generic[Value]):
    """A file of a folder.

    Attributes:
        state: the state in which it was tried last.
        values: its last good value; empty if it never had one.
        good: whether the last trial was good.
    """

    __slots__ = ("good", "state", "values")

    def __init__(self, state: FileState, values: tuple[Value, ...], *, good: bool) -> None:
        self.state = state
        self.values = values
        self.good = good

    def needs_trial(self, state: FileState) -> bool:
        """Tell whether to try the file in a state.

        After a good trial only other bytes count, after a failed one any difference.
        """
        return not (same_bytes(self.state, state) if self.good else self.state == state)


class LoadedFiles(Generic[Value]):
    """The files of a folder that are in service together."""

    __slots__ = ("__weakref__", "_held", "by_name", "entries")

    def __init__(self, entries: Mapping[str, Entry[Value]], held: Mapping[str, Generation]) -> None:
        self.entries = entries
        self._held = held
        #: The last good value of each file that ever had one, by name.
        self.by_name: Mapping[str, Value] = MappingProxyType(
            {name: value for name, entry in entries.items() for value in entry.values}
        )
        # Weak, so that this object can be garbage sooner.
        call_later(SETTLE_SECONDS, partial(_settle, weakref.ref(self)))

    def held(self, name: str) -> Mapping[str, Generation]:
        """Return the file of a name if it has to be kept open still (folder_files.1)."""
        return {name: self._held[name]} if name in self._held else {}

    def settle(self) -> None:
        """Keep no file open from now on."""
        self._held = {}


def _settle(reference: weakref.ref[LoadedFiles[Any]]) -> None:
    loaded = reference()
    if loaded is not None:
        loaded.settle()


async def load_files(
    load: Load[Loaded],
    prewarm: bool,
    failed: Failed,
    in_service: Callable[[], LoadedFiles[Loaded] | None],
    candidate: FolderGeneration,
) -> LoadedFiles[Loaded]:
    """Load the files that the candidate opened, and join them with those in service."""
    held, failures = candidate.take()
    values = await _load_all(load, prewarm, dict(held), failures)
    served = in_service()
    entries: dict[str, Entry[Loaded]] = {}
    for name, state in candidate.listing.files.items():
        old = None if served is None else served.entries.get(name)
        if name in values:
            entries[name] = Entry(state, (values[name],), good=True)
        elif name in failures:
            failed.tell((candidate.listing.path_of(name), failures[name]))
            entries[name] = Entry(state, () if old is None else old.values, good=False)
        elif served is not None and old is not None:
            entries[name] = old
            held |= served.held(name)
    failures.clear()  # an error refers to frames, and these refer to the dict
    return LoadedFiles(entries, held)


async def _load_all(
    load: Load[Loaded],
    prewarm: bool,
    opened: Mapping[str, Generation],
    failures: dict[str, Exception],
) -> dict[str, Loaded]:
    """Load files, up to ``LOADS_AT_ONCE`` at a time; return the values, and add to ``failures``."""
    values: dict[str, Loaded] = {}
    limiter = anyio.CapacityLimiter(LOADS_AT_ONCE)

    async def load_one(name: str, generation: Generation) -> None:
        async with limiter:
            try:
                if prewarm:
                    await generation.prewarm()
                value = await call_load(load, generation)
                await generation.verify()
            except Exception as error:
                failures[name] = error
            else:
                values[name] = value

    async with anyio.create_task_group() as group:
        for name, generation in opened.items():
            group.start_soon(load_one, name, generation)
    return values
