"""Write receipts: proof of one write, and the way to learn that it is durable."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from .._native import Receipt
from .._runtime.event_loop import Waiter


class ReceiptOwner(Protocol):
    """The methods of a file that its receipts use."""

    @property
    def durable_sequence(self) -> int: ...

    def begin_flush(self, receipt: WriteReceipt) -> Waiter[Any] | None: ...

    def end_flush(self, error: BaseException | None, waiter: Waiter[Any]) -> Awaitable[object]: ...

    def flush_pages_of(self, receipt: WriteReceipt) -> Awaitable[object]: ...


class WriteReceipt(Receipt):
    """Proof that one write was applied, so that every other mapper of the file sees it.

    Attributes:
        offset: first byte written, from the start of the file.
        length: number of bytes written.
        sequence: number of the write in its file; later writes have higher numbers.
    """

    __slots__ = ()
    _owner: ReceiptOwner

    @property
    def durable(self) -> bool:
        """Whether the write is known to be on stable storage.

        False may also mean "not known". A flush of this receipt counts, and so does a flush of
        everything that was dirty. A flush of a range that merely includes the bytes does not.
        """
        return self._settled or self.sequence <= self._owner.durable_sequence

    async def wait_durable(self) -> None:
        """Make the write durable, whatever the flush policy, and return when it is.

        Raises:
            FlushError: if the flush fails, or an earlier one did.
            anyio.ClosedResourceError: if the file was closed before the write became durable.
            AccessModeError: in mode "c", whose writes never reach the file.
        Cancellation: waits for a flush that has begun.
        Durability: durable, for the bytes of this write.
        Concurrency: the next flush answers all requests that were made while a flush ran.
        """
        owner = self._owner
        waiter = owner.begin_flush(self)
        if waiter is None:
            await owner.flush_pages_of(self)
            return
        try:  # not in a coroutine of its own, which would cost each durable write more
            if waiter.done():
                await owner.end_flush(None, waiter)
            failure = await waiter
        except BaseException as error:
            await owner.end_flush(error, waiter)
            raise
        if failure is not None:
            del waiter  # it refers to the error, whose traceback refers to this frame
            raise failure

    def __repr__(self) -> str:
        state = "durable" if self.durable else "not known to be durable"
        return (
            f"<WriteReceipt {self.sequence}: [{self.offset}, {self.offset + self.length}) {state}>"
        )
