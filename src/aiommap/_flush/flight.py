"""The record of a batch in the engine, and its types; ``writeback`` begins and ends each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from .._core.disk import Store
from .._core.receipt import WriteReceipt
from .._native import Mapping, PoolCommit, Receipt
from .requests import Outcome

Run: TypeAlias = tuple[int, int]
#: What a flush without stores makes durable: the write of a receipt, or a range.
Asked: TypeAlias = Receipt | Run
#: Called on the loop with the outcome of each item, or with an error of all of them.
Ended: TypeAlias = Callable[[Sequence[Outcome] | None, BaseException | None], None]


#: The result of a flush by the engine: bytes flushed, where they end, the size and the number of
#: names of the file, and the runs; or an errno.
Flushed: TypeAlias = tuple[int, int, tuple[int, int], list[Run]] | int
#: The result of stores and their flush: the receipts, whether no other write was counted, and then
#: the same without the runs. If a store stopped short: the result of ``write_many``. Or an errno.
Committed: TypeAlias = (
    tuple[list[Receipt], bool, int, int, tuple[int, int]] | list[Receipt | tuple[int, int]] | int
)


class Flight:
    """A batch whose calls the engine makes: stores and their flush, or a flush alone."""

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
        #: The counts of bytes and writes when it began (writeback.2).
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
        """Report the outcomes or the error; on the loop."""
        self._ended(self.outcomes, self.error)


def settle(receipts: Iterable[object]) -> None:
    """Mark receipts whose own ranges are durable, though ``durable_sequence`` may not say so."""
    for receipt in receipts:
        if isinstance(receipt, WriteReceipt):
            receipt._settled = True  # noqa: SLF001  the two are one mechanism


def run_of(asked: Receipt | Run) -> Run:
    """Return the range that was asked for."""
    if isinstance(asked, tuple):
        return asked
    return asked.offset, asked.offset + asked.length
