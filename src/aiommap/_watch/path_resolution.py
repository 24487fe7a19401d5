"""Resolving a path as the kernel does: every directory whose change can redirect the path.

Worker threads only: everything here asks the file system.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from .._core.file_kinds import is_on_server
from .._core.paths import MAX_LINKS


@dataclass(frozen=True, slots=True)
class ResolvedPath:
    """Where a path leads.

    Attributes:
        names: full paths of the directory entries that decide where the path leads: each symbolic
            link on the way, and last the file, or the first name that is missing. No name goes
            through a link.
        exists: whether the last of them is the file itself.
    """

    names: tuple[str, ...]
    exists: bool

    @property
    def directories(self) -> tuple[str, ...]:
        """The directories that hold those entries."""
        return tuple(dict.fromkeys(os.path.dirname(name) for name in self.names))


#: The end of a path, the links on the way, and whether that end exists. If it does not, the last
#: "link" is the missing name, or the first link beyond the number that the kernel follows.
_Resolution = tuple[str, tuple[str, ...], bool]


class PathResolver:
    """Resolves one batch of paths; names that several paths share are looked up once."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, _Resolution] = {}

    def resolve(self, path: str) -> ResolvedPath:
        """Follow a path from the root."""
        end, links, exists = self._follow(path, 0)
        return ResolvedPath((*links, end) if exists else links, exists)

    def _follow(self, path: str, depth: int) -> _Resolution:
        """Follow the names, from the longest part of the path that is resolved already."""
        known = path.rstrip("/")
        names: list[str] = []
        while known and known not in self._known:
            known, _, name = known.rpartition("/")
            names.append(name)
        found = self._known[known] if known else ("/", (), True)
        while names:
            name = names.pop()
            found = self._step(found, name, depth)
            known = f"{known}/{name}"
            if names and (found[2] or not depth):
                self._known[known] = found
        return found

    def _step(self, found: _Resolution, name: str, depth: int) -> _Resolution:
        real, links, exists = found
        if not exists:
            return found
        if name in ("", ".", ".."):
            return os.path.dirname(real) if name == ".." else real, links, True
        full = os.path.join(real, name)
        try:
            target = os.readlink(full)
        except OSError as error:
            plain = error.errno == errno.EINVAL
            return full, links if plain else (*links, full), plain
        if depth >= MAX_LINKS:
            return full, (*links, full), False
        end, further, exists = self._follow(os.path.join(real, target), depth + 1)
        links = (*links, full, *further)
        if len(links) > MAX_LINKS:
            return full, links[: MAX_LINKS + 1], False
        if exists:
            self._known[full] = end, (full, *further), True
        return end, links, exists


def check_watchable(path: str) -> None:
    """Raise if ``open`` could never open a path, whatever is created there.

    Raises:
        OSError: ENOENT if it starts at a directory that was removed; ENAMETOOLONG; ENOTDIR for a
            file with a slash at the end, which asks for a directory.
    """
    if not path.startswith("/"):
        reason = "it starts at the working directory, which was removed or is out of reach"
        raise FileNotFoundError(errno.ENOENT, reason, path)
    try:
        os.stat(path)
    except OSError as error:
        refused = error.errno == errno.ENOTDIR and path.endswith("/") and os.path.exists(path[:-1])
        if refused or error.errno == errno.ENAMETOOLONG:
            raise


def is_remote(path: str) -> bool:
    """Tell whether a path, or its nearest directory that exists, is on a network file system."""
    while True:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            parent = os.path.dirname(path)
            if parent == path:
                return False
            path = parent
            continue
        try:
            return is_on_server(fd)
        finally:
            os.close(fd)
