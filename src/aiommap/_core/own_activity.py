"""The changes that this process makes to one file, so that watchers do not report them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from .file_state import Identity


class Mapped(Protocol):
    """The counts of a mapping that watchers read; each read is one step under the GIL."""

    @property
    def file_end(self) -> int: ...
    @property
    def grown(self) -> int: ...
    @property
    def growing(self) -> bool: ...
    @property
    def inline_pwrites(self) -> int: ...
    @property
    def pwriting(self) -> bool: ...
    @property
    def sequence(self) -> int: ...
    @property
    def writable_leases(self) -> int: ...
    @property
    def ended_leases(self) -> int: ...


class OwnActivity:
    """Counts what one open file does to its inode, except for what its mapping counts.

    Each number has one writer, the loop or the worker that has the turn; any thread may read it.
    """

    __slots__ = (
        "durable_stores",
        "foreign_growth",
        "identity",
        "mapping",
        "offloaded_writes",
        "queued_bytes",
        "size_changes",
        "touches",
        "touching",
    )

    def __init__(self, mapping: Mapped, identity: Identity, *, size_changed: bool) -> None:
        self.mapping: Mapped = mapping
        self.identity: Identity = identity
        #: Writes that workers have applied.
        self.offloaded_writes: int = 0
        #: Bytes of writes that wait in the store queue or are being applied there.
        self.queued_bytes: int = 0
        #: Writes that a flush worker is applying.
        self.durable_stores: int = 0
        #: Odd while a worker changes the size or the blocks of the file.
        self.size_changes: int = 2 if size_changed else 0
        #: How often an append found that others had appended since our last one.
        self.foreign_growth: int = 0
        #: Operations that changed the times of the file without storing: ended, and under way.
        self.touches: int = 0
        self.touching: int = 0

    @property
    def being_resized(self) -> bool:
        """Whether the size is being changed, by a verb or by a store beyond the end."""
        return self.size_changes % 2 == 1 or self.mapping.growing

    @property
    def calls(self) -> int:
        """How many writes were system calls, for which the kernel raises events."""
        return self.offloaded_writes + self.mapping.inline_pwrites

    @property
    def calling(self) -> bool:
        """Whether such a write is under way, or soon will be."""
        return bool(self.queued_bytes or self.durable_stores or self.mapping.pwriting)

    def queue(self, size: int) -> None:
        """Count the bytes of a write that goes to the store queue; on the loop."""
        self.queued_bytes += size

    def unqueue(self, size: int) -> None:
        """Uncount the bytes of a write that has ended; on the loop."""
        self.queued_bytes -= size

    def count_stores(self, number: int) -> None:
        """Count writes of the store queue that its worker has applied."""
        self.offloaded_writes += number

    def note_foreign_growth(self) -> None:
        """Note that the file includes bytes that others appended; in the flush worker."""
        self.foreign_growth += 1

    def storing(self, number: int) -> _Storing:
        """Count this number of writes as under way during the block; in the flush worker.

        Afterwards they count as applied, unless the block raises.
        """
        self.durable_stores = number
        return _Storing(self)

    def end_storing(self, *, applied: bool) -> None:
        """End what ``storing`` began."""
        if applied:
            self.offloaded_writes += self.durable_stores
        self.durable_stores = 0

    @contextmanager
    def resizing(self) -> Iterator[None]:
        """Mark the block as one that may change the size or the blocks of the file; in a worker."""
        self.size_changes += 1
        try:
            yield
        finally:
            self.size_changes += 1

    @contextmanager
    def moving_times(self) -> Iterator[None]:
        """Mark the block as one that may change only the times of the file; on the loop."""
        self.touching += 1
        try:
            yield
        finally:
            self.touching -= 1
            self.touches += 1


class _Storing:
    """The block of ``OwnActivity.storing``; with a generator each durable write would cost more."""

    __slots__ = ("_own",)

    def __init__(self, own: OwnActivity) -> None:
        self._own = own

    def __enter__(self) -> None:
        """Nothing is left to begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._own.end_storing(applied=kind is None)
