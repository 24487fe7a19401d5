"""Batches whose system calls the engine makes, and what they are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from .._core.disk import Store
from .._core.receipt import WriteReceipt
from .._native import Mapping, PoolCommit, Receipt
from .requests import Outcome

Run: TypeAlias = tuple[int, int]
#: What a flush without stores makes durable: writes, or (start, end).
Asked: TypeAlias = Receipt | Run
#: Is told, on the loop, the outcome of each item, or an error of all of them.
Ended: TypeAlias = Callable[[Sequence[Outcome] | None, BaseException | None], None]


#: What the engine gives: bytes flushed, where they end, what ``stat`` said, and their runs; or the
#: errno.
Flushed: TypeAlias = tuple[int, int, tuple[int, int], list[Run]] | int
#: The same for stores, without runs, behind their receipts and whether no other write was counted;
#: or what ``write_many`` gives, if a store stopped short.
Committed: TypeAlias = (
    tuple[list[Receipt], bool, int, int, tuple[int, int]] | list[Receipt | tuple[int, int]] | int
)


class Flight:
    """A batch whose calls the engine makes: of stores, or of what is to be made durable."""

    __slots__ = (
        "_ended",
        "count",
        "error",
        "job",
        "outcomes",
        "sequence",
        "start",
        "stores",
        "written",
    )

    def __init__(self, count: int, stores: list[Store], mapping: Mapping, ended: Ended) -> None:
        self.count = count
        self.stores = stores
        self.start: float = time.monotonic()
        #: What had been written when it began (writeback.2).
        self.written: int = mapping.written_bytes
        self.sequence: int = mapping.sequence
        self.job: PoolCommit | None = None
        self.outcomes: Sequence[Outcome] | None = None
        self.error: BaseException | None = None
        self._ended = ended

    def end(self, outcomes: Sequence[Outcome]) -> None:
        """Note the outcome of each item."""
        self.outcomes = outcomes

    def fail(self, error: BaseException) -> None:
        """Note an error of all of them."""
        self.error = error

    def tell(self) -> None:
        """Tell what became of it; on the loop."""
        self._ended(self.outcomes, self.error)


def settle(receipts: Iterable[object]) -> None:
    """Mark receipts whose own ranges are durable, though ``durable_sequence`` may not say so."""
    for receipt in receipts:
        if isinstance(receipt, WriteReceipt):
            receipt._settled = True  # noqa: SLF001  the two are one mechanism


def run_of(asked: Receipt | Run) -> Run:
    """Say where it begins and ends."""
    if isinstance(asked, tuple):
        return asked
    return asked.offset, asked.offset + asked.length
