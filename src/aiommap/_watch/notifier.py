"""The directories that the kernel watches for a scanner, and the notifier that reads its events.

A change of any name on the way to a watched path can redirect it, so the kernel watches all the
directories that hold those names. The notifier cannot change its set of directories. So a new one
starts before the old one is closed, and the old one's last events are read before that: they say
what others did (attribution.1). Events that are lost all the same are found if the caller compares
all paths afterwards (I11). Scanner thread only.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from typing import Protocol

from .._core.file_state import Identity
from .._logs import WATCHING
from .._runtime.threads import check_threads
from .path_resolution import PathResolver
from .watched_path import WatchedPath

#: How long after a refusal we ask the kernel again.
RETRY_SECONDS = 5.0


class Stop(Protocol):
    """The object that a notifier asks, at every step, whether to stop waiting."""

    def is_set(self) -> bool: ...


class Notifier(Protocol):
    """The part of watchfiles' native class that is used here."""

    def watch(
        self, debounce_ms: int, step_ms: int, timeout_ms: int, stop_event: Stop | None
    ) -> set[tuple[int, str]] | str: ...
    def close(self) -> None: ...


class DirectoryWatches:
    """Watched paths by the names that decide them, and the notifier that watches those names.

    Args:
        notify: whether to ask the kernel at all.
    """

    def __init__(self, *, notify: bool) -> None:
        self._notify = notify
        self._retry_at = -math.inf
        self._by_name: dict[str, set[WatchedPath]] = {}
        #: Paths that are not resolved yet, or have to be resolved again.
        self._unresolved: set[WatchedPath] = set()
        #: Watched directories, and the inode that each path named when it was watched.
        self._inodes: dict[str, Identity] = {}
        #: All paths of a directory that is watched by one of them; the kernel watches inodes.
        self._aliases: dict[str, list[str]] = {}
        self._incomplete = False
        self.notifier: Notifier | None = None

    @property
    def directories(self) -> Iterable[str]:
        """The watched directories, or those that should be watched if the kernel has refused."""
        return self._inodes

    @property
    def incomplete(self) -> bool:
        """Whether ``rebuild`` is due: until then, a path may not be watched."""
        if self._incomplete or not self._notify or self.notifier is not None:
            return self._incomplete
        return bool(self._by_name) and time.monotonic() >= self._retry_at

    def add(self, watched: WatchedPath) -> None:
        """Watch a path from the next ``resolve_pending`` on."""
        self._unresolved.add(watched)

    def discard(self, watched: WatchedPath) -> None:
        """Stop watching a path."""
        self._unresolved.discard(watched)
        self._remove_names(watched)

    def mark_unresolved(self, watched: WatchedPath) -> None:
        """Resolve a path again if anything but the file itself may have redirected it."""
        resolved = watched.resolved
        if resolved is None or not resolved.exists or len(resolved.names) > 1:
            self._unresolved.add(watched)

    def mark_stale(self, directory: str) -> None:
        """Note that the path of a watched directory names another directory, or none."""
        self._inodes.pop(directory, None)
        self._incomplete = self._notify
        for name, group in self._by_name.items():
            if os.path.dirname(name) == directory:
                self._unresolved.update(group)
        self.resolve_pending()

    def is_stale(self, directory: str) -> bool:
        """Tell whether the path of a watched directory names another directory, or none."""
        return identity_of(directory) != self._inodes.get(directory)

    def resolve_pending(self) -> None:
        """Resolve the paths that were added or marked."""
        if not self._unresolved:
            return
        resolver = PathResolver()
        for watched in self._unresolved:
            self._remove_names(watched)
            resolved = resolver.resolve(watched.path)
            watched.resolve_to(resolved)
            for name in resolved.names:
                self._by_name.setdefault(name, set()).add(watched)
            if self._notify and not self._inodes.keys() >= set(resolved.directories):
                self._incomplete = True
        self._unresolved.clear()

    def rebuild(self) -> set[str]:
        """Watch the directories that are needed now; return the last names of the old notifier."""
        self._incomplete = False
        needed = {os.path.dirname(name) for name in self._by_name}
        inodes = {name: inode for name in needed if (inode := identity_of(name)) is not None}
        changed = self._replace_notifier(inodes)
        self._inodes = inodes
        # Directories and links may have changed while the notifier started.
        stale = len(inodes) < len(needed) or any(map(self.is_stale, inodes))
        self._incomplete = stale
        for group in self._by_name.values():
            for watched in group:
                if stale:
                    self._unresolved.add(watched)
                else:
                    self.mark_unresolved(watched)
        self.resolve_pending()
        return changed

    def aliases(self, name: str) -> Iterable[str]:
        """All the paths that a name in an event may stand for."""
        if name in self._aliases:
            return self._aliases[name]
        directory, base = os.path.split(name)
        others = self._aliases.get(directory, (directory,))
        return [os.path.join(other, base) for other in others]

    def decided_by(self, name: str) -> tuple[WatchedPath, ...]:
        """The paths that a change of a name can redirect."""
        return (*self._by_name.get(name, ()),)

    def is_watched(self, path: str) -> bool:
        """Tell whether a path is one of the watched directories."""
        return path in self._inodes

    def close(self) -> None:
        """Close the notifier."""
        notifier, self.notifier = self.notifier, None
        self._inodes = {}
        self._incomplete = self._notify
        if notifier is not None:
            notifier.close()

    def _remove_names(self, watched: WatchedPath) -> None:
        for name in watched.resolved.names if watched.resolved else ():
            others = self._by_name.get(name)
            if others is not None:
                others.discard(watched)
                if not others:
                    del self._by_name[name]

    def _replace_notifier(self, inodes: dict[str, Identity]) -> set[str]:
        """Start a notifier for these directories; return the last names of the old one."""
        first: dict[Identity, str] = {}
        aliases: dict[str, list[str]] = {}
        for directory, inode in inodes.items():
            name = first.setdefault(inode, directory)
            aliases.setdefault(name, []).append(directory)
        wanted = [name for name in first.values() if _can_be_watched(name)]
        old, self.notifier = self.notifier, self._make_notifier(wanted)
        changed: set[str] = set()
        if old is not None:
            changed = {path for name in _last_names(old) for path in self.aliases(name)}
            old.close()
        self._aliases = aliases
        return changed

    def _make_notifier(self, directories: list[str]) -> Notifier | None:
        if not directories:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return None
        try:
            # Imported here, so that only a program that watches pays for it; the import needs
            # descriptors, and may fail.
            from watchfiles._rust_notify import RustNotify  # noqa: PLC0415

            check_threads()  # the notifier starts a thread, and aborts the process if it cannot
            made: Notifier = RustNotify(directories, False, False, 0, False, False)
        except BaseException as error:  # after a chroot the import fails; a panic is no Exception
            if not isinstance(error, FileNotFoundError):
                self._retry_at = time.monotonic() + RETRY_SECONDS
                text = "%d directories cannot be watched by the kernel, so they are polled: %s"
                WATCHING.warning(text, len(directories), str(error) or repr(error))
            return None
        return made


def _last_names(notifier: Notifier) -> set[str]:
    """Return the names of events that a notifier has, without waiting for more."""
    try:
        labels = notifier.watch(0, 1, 1, None)
    except RuntimeError:  # it has failed; the caller compares all paths
        return set()
    return set() if isinstance(labels, str) else {name for _, name in labels}


def _can_be_watched(directory: str) -> bool:
    """Tell whether the kernel can watch a directory, and the notifier can name it.

    The directory has to be readable, and its name to be text. Paths in others are polled.
    """
    try:
        directory.encode()
    except UnicodeEncodeError:
        return False
    return os.access(directory, os.R_OK)


def identity_of(path: str) -> Identity | None:
    """Return the identity of the file at a path; None if stat(2) fails."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Identity.of(found)
