"""What the commit queue takes: stores, ranges to make durable, and changes of the file. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

    def stores_to(self, offset: int, end: int) -> bool:
        """Tell whether a store touches a part of a range."""
        return touch(self.stores, offset, end)


@dataclass(slots=True)
class Change:
    """Something to do to the file between two flushes, in a worker."""

    act: Callable[[], None]
    #: Whether it is we who change the file, and not somebody else who did.
    ours: bool = True

    def run(self) -> Exception | None:
        """Act, and return what it raises, for whoever waits. Worker threads only."""
        try:
            self.act()
        except Exception as error:
            return error
        return None


#: A single store to make durable is itself its request: most are, and each costs the loop time.
Item = Store | Request | Change
Outcome = WriteReceipt | BaseException | None
Done = Callable[[Sequence[Outcome]], None]


def acts(item: Item) -> bool:
    """Tell whether an item has something to do even if nothing is dirty."""
    return not isinstance(item, Request) or bool(item.stores)


def touch(stores: Iterable[Store], offset: int, end: int) -> bool:
    """Tell whether one of the stores touches a part of a range."""
    return any(start < end and offset < start + len(data) for start, data in stores)


def stores_of(request: Store | Request) -> Sequence[Store]:
    """Return what is to be stored."""
    return request.stores if isinstance(request, Request) else (request,)


def bounds(request: Store | Request) -> tuple[int, int]:
    """Return where the range of a request begins and ends."""
    if isinstance(request, Request):
        return request.offset, request.end
    offset, data = request
    return offset, offset + len(data)


def is_error(outcome: Outcome) -> bool:
    """Tell whether a request failed."""
    return isinstance(outcome, BaseException)


def settle(receipts: Iterable[object]) -> None:
    """Mark receipts whose own ranges are durable, though ``durable_sequence`` may not say so."""
    for receipt in receipts:
        if isinstance(receipt, WriteReceipt):
            receipt._settled = True  # noqa: SLF001  the two are one mechanism
