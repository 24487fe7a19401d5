"""What the next flush of one file has to sync beside its dirty pages, and whether flushes failed.

Invariants.
  1  ``failure`` is set once and never cleared: the first failed flush latches (I5).
"""

from __future__ import annotations

from .._errors import FlushError


class Unsynced:
    """Written by whoever has the flusher's turn; read in any thread.

    Attributes:
        created: whether the directory entry of a new file is not durable yet.
        size_changed: whether the size, or which blocks there are, was changed since the last flush
            of everything.
        resized: whether the size was; the next flush then looks whether the file still has it.
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
        """The size was changed."""
        self.size_changed = self.resized = True

    def note_blocks(self) -> None:
        """Blocks were given back, which fdatasync(2) need not cover."""
        self.size_changed = True

    def note_name(self) -> None:
        """The file was seen to have a name."""
        self.named = True

    def take_changes(self) -> tuple[bool, bool]:
        """Begin to sync what was changed: return (size_changed, resized), and clear both.

        What is noticed while the disk works then belongs to the next flush.
        """
        changes = self.size_changed, self.resized
        self.size_changed = self.resized = False
        return changes

    def restore_changes(self, changes: tuple[bool, bool]) -> None:
        """Put back what could not be synced."""
        self.size_changed |= changes[0]
        self.resized |= changes[1]

    def name_is_durable(self) -> None:
        """The directory entry was synced."""
        self.created = False

    def latch(self, failure: FlushError) -> None:
        """A flush failed: nothing is flushed any more."""
        self.failure = failure
