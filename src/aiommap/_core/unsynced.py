"""What the next flush of one file has to sync beside its dirty pages, and the failure that latched.

Invariants.
  1  ``failure`` is set once and never cleared: the first failed flush latches (I5).
"""

from __future__ import annotations

from .._errors import FlushError


class Unsynced:
    """Written by the thread that has the flusher's turn; read in any thread.

    Attributes:
        created: whether the directory entry of a new file may not be durable.
        size_changed: whether the size, or the set of blocks, was changed since the last flush of
            everything.
        resized: whether the size was changed; the next flush then checks that the file still has
            that size.
        named: whether the file ever had a name. memfd_create(2), O_TMPFILE and some FUSE drivers
            give none.
        failure: the error of the first flush that failed.
    """

    __slots__ = ("created", "failure", "named", "resized", "size_changed")

    def __init__(self, *, created: bool, made: bool, named: bool) -> None:
        self.created: bool = created
        self.size_changed: bool = made
        self.resized: bool = made
        self.named: bool = named
        self.failure: FlushError | None = None

    def note_resize(self) -> None:
        """Note that the size was changed."""
        self.size_changed = self.resized = True

    def note_blocks(self) -> None:
        """Note that blocks were given back, which fdatasync(2) need not make durable."""
        self.size_changed = True

    def note_name(self) -> None:
        """Note that the file has a name."""
        self.named = True

    def take_changes(self) -> tuple[bool, bool]:
        """Return (size_changed, resized) and clear both, because a flush begins to sync them.

        A change that is noted while the disk works belongs to the next flush.
        """
        changes = self.size_changed, self.resized
        self.size_changed = self.resized = False
        return changes

    def restore_changes(self, changes: tuple[bool, bool]) -> None:
        """Put back the result of ``take_changes``, because the flush failed."""
        self.size_changed |= changes[0]
        self.resized |= changes[1]

    def name_is_durable(self) -> None:
        """Note that the directory entry was synced."""
        self.created = False

    def latch(self, failure: FlushError) -> None:
        """Keep the failure of a flush; after it no flush runs."""
        self.failure = failure
