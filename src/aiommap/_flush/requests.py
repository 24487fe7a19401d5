"""The items of the commit queue: stores, ranges to make durable, changes of the file. Pure.

Most items are a store that is to become durable, or a receipt whose write is to become durable.
These are plain items, without an object around them, because each item takes time of the loop. A
``Request`` is a general item, a ``Change`` is a barrier, and an append is just its bytes. So a
batch is a list of stores, of receipts, of requests, of changes, or of appends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from .._core.disk import Store
from .._core.receipt import WriteReceipt


@dataclass(slots=True)
class Request:
    """A range to make durable, or stores of one caller in it, or both; the stores come first.

    In the store queue a request has only stores. ``receipt`` is the receipt to mark as durable.
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
        act: the function that makes the change.
        own: makes the block that tells watchers that the change is ours. If another process made
            the change and we only take it over, the block does nothing.
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
#: Appends a batch, and returns the outcome of each. Returns None if others cut off earlier writes:
#: then nothing may be stored before a flush has reported that (I5).
ApplyAppends = Callable[[list[bytes | memoryview]], "list[Outcome] | None"]
Done = Callable[[Sequence[Outcome]], None]


def touch(stores: Iterable[Store], offset: int, end: int) -> bool:
    """Tell whether one of the stores touches a part of a range."""
    return any(start < end and offset < start + len(data) for start, data in stores)


def is_error(outcome: Outcome) -> bool:
    """Tell whether a request failed."""
    return isinstance(outcome, BaseException)
