"""A folder as it was at one moment: what a follower tries, and puts in service."""

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
        """Whether nothing of it is left."""
        return all(file.is_closed for file in self._files)

    async def aclose(self) -> None:
        """Close the files, whoever reads them."""
        for file in self._files:
            await file.aclose()


class FolderGeneration:
    """A folder as it was at one moment, with the files that were news opened.

    Each of the files keeps this alive, so that the end of following finds them all.

    Args:
        listing: all files that there were.
        opened: those that were opened, by name.
        failures: why others could not be opened.
    """

    __slots__ = ("__weakref__", "_alive", "_failures", "_opened", "listing", "resource")

    def __init__(
        self,
        listing: FolderListing,
        opened: dict[str, Generation],
        failures: dict[str, Exception],
    ) -> None:
        self.listing: FolderListing = listing
        #: What is open.
        self.resource: FolderResource = FolderResource([each.resource for each in opened.values()])
        self._opened = opened
        self._failures = failures
        self._alive = weakref.WeakSet(opened.values())
        for generation in opened.values():
            generation.group = self

    def take(self) -> tuple[dict[str, Generation], dict[str, Exception]]:
        """Return what was opened and what could not be; this refers to neither any longer."""
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
        """Tell whether a listing is that of this moment."""
        return state is not None and self.listing.files == state.files

    def is_same_as(self, other: FolderGeneration, /) -> bool:
        """Tell whether the folder was the same at another moment."""
        return self.is_of(other.listing)

    def is_changed_in(self, other: FolderGeneration, /) -> bool:  # noqa: ARG002
        """Tell that changes in place are the files' own matter: each is verified."""
        return False

    def retire(self) -> None:
        """Close each file once there is no hold on it."""
        self._failures.clear()
        for generation in [*self._alive]:
            generation.retire()

    async def ended(self) -> None:
        """Wait until every file is closed after ``retire``."""
        for generation in [*self._alive]:
            await generation.ended()
        await self.resource.aclose()
