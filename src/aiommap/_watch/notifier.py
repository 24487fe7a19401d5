"""What the kernel watches for a scanner: the directories on the routes of all its entries.

The notifier's set of directories cannot be changed, so another one is made while the old one is
still there. Nothing slips through between the two if everything is looked at afterwards (I11),
which is up to the caller. Scanner thread only.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from .._core.file_state import Identity
from .._logs import WATCHING
from .._runtime.threads import check_threads
from .path_resolution import Route, Router

#: After the kernel refused to watch, it is asked again.
RETRY_SECONDS = 5.0


class Stop(Protocol):
    """What a notifier asks at every step whether to stop waiting."""

    def is_set(self) -> bool: ...


class Notifier(Protocol):
    """watchfiles' native class, as far as it is used."""

    def watch(
        self, debounce_ms: int, step_ms: int, timeout_ms: int, stop_event: Stop
    ) -> set[tuple[int, str]] | str: ...
    def close(self) -> None: ...


class Routed(Protocol):
    """Something with a path, and the way there."""

    path: str
    route: Route | None

    def __hash__(self) -> int: ...


Entry = TypeVar("Entry", bound=Routed)


class WatchSet(Generic[Entry]):
    """Entries by the names that decide them, and the notifier that watches those names.

    Args:
        notify: whether to ask the kernel at all.
    """

    def __init__(self, *, notify: bool) -> None:
        self._notify = notify
        self._retry_at = -math.inf
        self._entries: dict[str, set[Entry]] = {}
        #: Entries whose route is to be found, or found again.
        self._astray: set[Entry] = set()
        #: Watched directories, and which inode each of them was.
        self._inodes: dict[str, Identity] = {}
        #: All paths of a directory that is watched under one of them: the kernel knows inodes.
        self._aliases: dict[str, list[str]] = {}
        self._incomplete = False
        self.notifier: Notifier | None = None

    @property
    def directories(self) -> Iterable[str]:
        """What is watched, or would be if the kernel had not refused."""
        return self._inodes

    @property
    def incomplete(self) -> bool:
        """Whether ``rebuild`` has something to do: until then, an entry may not be watched."""
        if self._incomplete or not self._notify or self.notifier is not None:
            return self._incomplete
        return bool(self._entries) and time.monotonic() >= self._retry_at

    def add(self, entry: Entry) -> None:
        """Watch an entry from the next ``find_routes`` on."""
        self._astray.add(entry)

    def discard(self, entry: Entry) -> None:
        """Watch an entry no longer."""
        self._astray.discard(entry)
        self._unname(entry)

    def find_routes(self) -> None:
        """Find the way to whatever was added or has to be found again."""
        if not self._astray:
            return
        router = Router()
        for entry in self._astray:
            self._unname(entry)
            entry.route = router.route(entry.path)
            for name in entry.route.names:
                self._entries.setdefault(name, set()).add(entry)
            if self._notify and not self._inodes.keys() >= set(entry.route.directories):
                self._incomplete = True
        self._astray.clear()

    def rebuild(self) -> None:
        """Watch the directories that are needed now."""
        self._incomplete = False
        needed = {os.path.dirname(name) for name in self._entries}
        inodes = {name: inode for name in needed if (inode := identity_of(name)) is not None}
        self._replace_notifier(inodes)
        self._inodes = inodes
        # A directory may have come or gone while this went on; links may have turned.
        moved = len(inodes) < len(needed) or any(map(self.has_moved, inodes))
        self._incomplete = moved
        for group in self._entries.values():
            for entry in group:
                if moved:
                    self._astray.add(entry)
                else:
                    self.reroute(entry)
        self.find_routes()

    def has_moved(self, directory: str) -> bool:
        """Tell whether a watched directory is another one by now, or none."""
        return identity_of(directory) != self._inodes.get(directory)

    def lose(self, directory: str) -> None:
        """Say that a directory is not the one that is watched under its path."""
        self._inodes.pop(directory, None)
        self._incomplete = self._notify
        for name, entries in self._entries.items():
            if os.path.dirname(name) == directory:
                self._astray.update(entries)
        self.find_routes()

    def reroute(self, entry: Entry) -> None:
        """Find the way to an entry again if anything but the file itself can have changed it."""
        route = entry.route
        if route is None or not route.whole or len(route.names) > 1:
            self._astray.add(entry)

    def paths(self, name: str) -> Iterable[str]:
        """All the paths that the kernel may mean by a name."""
        if name in self._aliases:
            return self._aliases[name]
        directory, base = os.path.split(name)
        others = self._aliases.get(directory, (directory,))
        return [os.path.join(other, base) for other in others]

    def entries(self, path: str) -> tuple[Entry, ...]:
        """The entries that a name decides."""
        return (*self._entries.get(path, ()),)

    def is_watched(self, path: str) -> bool:
        """Tell whether a path is one of the directories."""
        return path in self._inodes

    def close(self) -> None:
        """Let go of the notifier."""
        notifier, self.notifier = self.notifier, None
        self._inodes = {}
        self._incomplete = self._notify
        if notifier is not None:
            notifier.close()

    def _unname(self, entry: Entry) -> None:
        for name in entry.route.names if entry.route else ():
            others = self._entries.get(name)
            if others is not None:
                others.discard(entry)
                if not others:
                    del self._entries[name]

    def _replace_notifier(self, inodes: dict[str, Identity]) -> None:
        first: dict[Identity, str] = {}
        self._aliases = {}
        for directory, inode in inodes.items():
            name = first.setdefault(inode, directory)
            self._aliases.setdefault(name, []).append(directory)
        wanted = [name for name in first.values() if _can_be_watched(name)]
        old, self.notifier = self.notifier, self._make_notifier(wanted)
        if old is not None:
            old.close()

    def _make_notifier(self, directories: list[str]) -> Notifier | None:
        if not directories:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return None
        try:
            # Only here, so that nobody imports it who watches nothing; that takes descriptors, too.
            from watchfiles._rust_notify import RustNotify  # noqa: PLC0415

            check_threads()  # it starts one, and aborts the process if it gets none
            made: Notifier = RustNotify(directories, False, False, 0, False, False)
        except (
            BaseException
        ) as error:  # nor can be imported after a chroot; a panic is no Exception
            if not isinstance(error, FileNotFoundError):
                self._retry_at = time.monotonic() + RETRY_SECONDS
                text = "%d directories cannot be watched by the kernel, so they are polled: %s"
                WATCHING.warning(text, len(directories), str(error) or repr(error))
            return None
        return made


def _can_be_watched(directory: str) -> bool:
    """Tell whether the kernel watches a directory for us, and the notifier can name it.

    It has to be readable, and text. Others are polled.
    """
    try:
        directory.encode()
    except UnicodeEncodeError:
        return False
    return os.access(directory, os.R_OK)


def identity_of(path: str) -> Identity | None:
    """Tell which file a path names; None if that cannot be found out."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Identity.of(found)
