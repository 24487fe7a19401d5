"""What the commit queue takes: stores, ranges to make durable, changes of the file. Pure.

A store that is to be durable, and a receipt whose write is, are plain items of the queue, as they
are: most items are, and each costs the loop time. A ``Request`` is a general item, a ``Change`` a
barrier, and an append is the bytes alone. So a batch is a list of stores, of receipts, of requests,
of changes, or of appends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from .._core.disk import Store
from .._core.receipt import WriteReceipt


@dataclass(slots=True)
class Request:
    """A range to make durable, the stores of one caller in it, or both, stores first.

    In the store queue there are only stores. ``receipt`` is the receipt to mark as durable.
    """

    offset: int
    end: int
    receipt: WriteReceipt | None = None
    stores: Sequence[Store] = ()

    @classmethod
    def of_receipt(cls, receipt: WriteReceipt) -> Request:
        """Make the request that a single receipt stands for."""
        return cls(receipt.offset, receipt.offset + receipt.length, receipt)

    @classmethod
    def of(cls, store: Store) -> Request:
        """Make the request that a single store stands for."""
        offset, data = store
        return cls(offset, offset + len(data), stores=(store,))

    def stores_to(self, offset: int, end: int) -> bool:
        """Tell whether a store touches a part of a range."""
        return touch(self.stores, offset, end)


@dataclass(slots=True)
class Change:
    """Something to do to the file between two flushes, in a worker.

    Attributes:
        act: does it.
        own: makes the block that tells watchers that the change is ours. Where another process
            made the change, and we only take it over, it does nothing.
    """

    act: Callable[[], None]
    own: Callable[[], AbstractContextManager[None]] = nullcontext

    def run(self) -> Exception | None:
        """Act, and return the exception, for the waiter. Worker threads only."""
        try:
            with self.own():
                self.act()
        except Exception as error:
            return error
        return None


Outcome = WriteReceipt | BaseException | None
#: Appends a batch, and gives the outcome of each; None if what was written before is found to be
#: cut off, so that nothing may be stored before a flush has said so (I5).
ApplyAppends = Callable[[list[bytes | memoryview]], "list[Outcome] | None"]
Done = Callable[[Sequence[Outcome]], None]


def touch(stores: Iterable[Store], offset: int, end: int) -> bool:
    """Tell whether one of the stores touches a part of a range."""
    return any(start < end and offset < start + len(data) for start, data in stores)


def is_error(outcome: Outcome) -> bool:
    """Tell whether a request failed."""
    return isinstance(outcome, BaseException)
