"""A folder as it was at one moment; a follower tries it, and puts it in service."""

from __future__ import annotations

import weakref
from collections.abc import Collection

from .folder_listing import FolderListing
from .generation import Generation, GenerationFile


class FolderResource:
    """What the files of a candidate keep open."""

    __slots__ = ("_files",)

    def __init__(self, files: Collection[GenerationFile]) -> None:
        self._files = files

    @property
    def is_closed(self) -> bool:
        """Whether all files are closed."""
        return all(file.is_closed for file in self._files)

    async def aclose(self) -> None:
        """Close the files, even if somebody reads them."""
        for file in self._files:
            await file.aclose()


class FolderGeneration:
    """A folder as it was at one moment; the files that need a trial are open.

    Each open file keeps this object alive, so that the end of following finds all files.

    Args:
        listing: all files in the folder at that moment.
        opened: the files that were opened, by name.
        failures: the errors of files that could not be opened, by name.
    """

    __slots__ = ("__weakref__", "_alive", "_failures", "_opened", "listing", "resource")

    def __init__(
        self,
        listing: FolderListing,
        opened: dict[str, Generation],
        failures: dict[str, Exception],
    ) -> None:
        self.listing: FolderListing = listing
        #: The open files; a reference to this does not keep them open.
        self.resource: FolderResource = FolderResource([each.resource for each in opened.values()])
        self._opened = opened
        self._failures = failures
        self._alive = weakref.WeakSet(opened.values())
        for generation in opened.values():
            generation.group = self

    def take(self) -> tuple[dict[str, Generation], dict[str, Exception]]:
        """Return the open files and the failures, and drop the references to both."""
        taken = dict(self._opened), dict(self._failures)
        self._opened.clear()
        self._failures.clear()
        return taken

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(state.size for state in self.listing.files.values())

    @property
    def is_held(self) -> bool:
        """Whether there is a hold on a file."""
        return any(generation.is_held for generation in self._alive)

    def is_of(self, state: FolderListing | None, *, strictly: bool = False) -> bool:  # noqa: ARG002
        """Tell whether a listing has the same files in the same states."""
        return state is not None and self.listing.files == state.files

    def is_same_as(self, other: FolderGeneration, /) -> bool:
        """Tell whether the folder had the same files in the same states at another moment."""
        return self.is_of(other.listing)

    def is_changed_in(self, other: FolderGeneration, /) -> bool:  # noqa: ARG002
        """Return False: each file is verified by itself."""
        return False

    def retire(self) -> None:
        """Close each file when there is no hold on it, even if something still refers to it."""
        self._failures.clear()
        for generation in [*self._alive]:
            generation.retire()

    async def ended(self) -> None:
        """Wait until every file is closed after ``retire``."""
        for generation in [*self._alive]:
            await generation.ended()
        await self.resource.aclose()
