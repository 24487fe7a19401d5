"""The files of a folder that are in service together, and how the next ones are loaded.

Invariants.
  1  A file in service is held for ``SETTLE_SECONDS`` at least. What replaces it later has another
     time of change, even if it gets the number of the old one.
  2  Nothing is changed once it is in service: a trial makes new files of the old ones, and of those
     that are news. So a trial that is abandoned leaves no trace.
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

#: Longer than the tick that times of files move in.
SETTLE_SECONDS = 0.25
#: How many files of a folder are loaded at a time.
LOADS_AT_ONCE = 16

#: Gets the path of a file that is not served, and why.
Failed = Listeners[tuple[str, Exception]]


class Entry(Generic[Value]):
    """A file of a folder: the state in which it was tried, and its last good values, if any."""

    __slots__ = ("good", "state", "values")

    def __init__(self, state: FileState, values: tuple[Value, ...], *, good: bool) -> None:
        self.state = state
        self.values = values
        self.good = good

    def needs_trial(self, state: FileState) -> bool:
        """Tell whether the file is to be tried in a state; what could not be opened, in any."""
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
        # Weakly: whoever keeps values may let them go sooner.
        call_later(SETTLE_SECONDS, partial(_settle, weakref.ref(self)))

    def held(self, name: str) -> Mapping[str, Generation]:
        """Return the file of a name while it has to be held (folder_files.1)."""
        return {name: self._held[name]} if name in self._held else {}

    def settle(self) -> None:
        """Hold no file any more."""
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
    """Load the files that are news, and put them beside those that are in service."""
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
    failures.clear()  # an error refers to frames that refer to this
    return LoadedFiles(entries, held)


async def _load_all(
    load: Load[Loaded],
    prewarm: bool,
    opened: Mapping[str, Generation],
    failures: dict[str, Exception],
) -> dict[str, Loaded]:
    """Load files, some at a time; return the values, and add the failures of the others."""
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
