"""The files that a folder holds at one moment. Worker threads only, but for comparing.

Kubernetes mounts a ConfigMap or a Secret as a folder of links through ``..data``. That is itself a
link, to a folder that is never written to again. A new version is another such folder: one rename
makes ``..data`` lead to it, and the links of the outer folder are updated a moment later. So if
there is a link ``..data``, we take the files of the folder to which it leads: all of one version.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .._core.file_state import FileState, Identity
from .._watch.changes import ChangeKind, classify

#: The link of a folder that Kubernetes mounts.
DATA_LINK = "..data"


@dataclass(frozen=True, slots=True)
class FolderListing:
    """The files of a folder at one moment.

    Attributes:
        root: path of the folder that holds them.
        files: the state of each file, by name.
    """

    root: str
    files: Mapping[str, FileState]

    @property
    def is_version(self) -> bool:
        """Whether the whole folder is replaced, and never a file in it."""
        return self.root.endswith(f"/{DATA_LINK}")

    def path_of(self, name: str) -> str:
        """Return the path of a file."""
        return f"{self.root}/{name}"

    def held_until(self, later: FolderListing, opened: Mapping[str, FileState]) -> bool:
        """Tell whether all files were in the folder together, at a moment between two listings.

        Args:
            later: the later listing.
            opened: the states of files that were opened in between and are still open. The others
                have to be in the same state in both listings.
        """
        if self.files.keys() != later.files.keys():
            return False
        return all(
            opened[name].is_same_file(later.files[name])
            if name in opened
            else state == later.files[name]
            for name, state in self.files.items()
        )


def same_bytes(old: FileState, new: FileState) -> bool:
    """Tell whether a file has the same bytes in two states, as far as these show."""
    return classify(old, new) in (None, ChangeKind.METADATA)


def matcher(pattern: str) -> Callable[[str], object]:
    """Return a function that tells whether a name matches a pattern, as in a shell."""
    if not isinstance(pattern, str):
        raise TypeError(f"pattern is {pattern!r}: give a str, such as '*.json'")
    if not pattern or "/" in pattern:
        raise ValueError(f"pattern is {pattern!r}: give one for names in the folder, as '*.json'")
    matches = re.compile(fnmatch.translate(pattern)).match
    if pattern.startswith("."):
        return matches
    return lambda name: not name.startswith(".") and matches(name)


def list_folder(folder: str, matches: Callable[[str], object]) -> FolderListing:
    """List the regular files of a folder, and the links to such files, whose names match."""
    data = f"{folder}/{DATA_LINK}"
    while True:
        root = data if os.path.islink(data) else folder
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files = _files_of(directory, matches)
            # If the folder was replaced meanwhile, its files may have been half removed.
            if Identity.of(os.stat(root)) == Identity.of(os.fstat(directory)):
                return FolderListing(root, files)
        finally:
            os.close(directory)


def _files_of(directory: int, matches: Callable[[str], object]) -> dict[str, FileState]:
    files = {}
    for name in sorted(filter(matches, os.listdir(directory))):
        try:
            found = os.stat(name, dir_fd=directory)
        except OSError:
            continue  # the file was just removed, or is a link to a missing one
        if stat.S_ISREG(found.st_mode):
            files[name] = FileState.of(found)
    return files
