"""A lane: one batch in flight, the next one gathering.

While a batch runs, whatever is submitted gathers and makes up the next batch, so that a single
hop, or a single flush, answers many tasks. A batch starts as soon as the lane is free; nothing
waits for company.

Invariants.
  L1  At most one batch is in flight; items run in the order of submission (I9).
  L2  An item submitted while a batch is in flight is never part of it: what answers it began
      after it was asked for (I4).
  L3  An item whose waiter is cancelled before its batch begins is taken out and never runs;
      afterwards it is waited out (I8).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio

from ._workers import spawn, wait_or_withdraw

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Entry(Generic[Item, Result]):
    __slots__ = ("item", "outcome")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.outcome: Result | BaseException = anyio.ClosedResourceError(
            "the event loop ended before the operation did"
        )


class _Batch(Generic[Item, Result]):
    __slots__ = ("begun", "done", "entries")

    def __init__(self) -> None:
        self.entries: list[_Entry[Item, Result]] = []
        self.begun = False
        self.done = anyio.Event()

    def withdraw(self, entry: _Entry[Item, Result]) -> bool:
        if not self.begun:
            self.entries.remove(entry)
        return not self.begun


class Lane(Generic[Item, Result]):
    """Runs submitted items in batches.

    Args:
        run: runs one batch, given its items; returns one result, or exception, per item.
        discard: frees a result that nobody gets because its waiter was cancelled.
    """

    __slots__ = ("_discard", "_flying", "_gathering", "_run", "_running")

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        discard: Callable[[Result], None] | None = None,
    ) -> None:
        self._discard = discard
        self._run = run
        self._running = False
        self._gathering: _Batch[Item, Result] = _Batch()
        self._flying: _Batch[Item, Result] | None = None

    async def submit(self, item: Item, *, withdrawable: bool = True) -> Result:
        """Run an item in the next batch; return its result or raise its exception.

        An item that is not withdrawable runs even if its waiter is cancelled before it begins.
        """
        batch, entry = self._gathering, _Entry[Item, Result](item)
        batch.entries.append(entry)
        if not self._running:
            self._running = True
            spawn(self._serve)
        try:
            await wait_or_withdraw(batch.done, lambda: withdrawable and batch.withdraw(entry))
        except BaseException:
            if self._discard is not None and not isinstance(entry.outcome, BaseException):
                self._discard(entry.outcome)
            raise
        if isinstance(entry.outcome, BaseException):
            raise entry.outcome
        return entry.outcome

    def waiting(self) -> list[Item]:
        """The items of the gathering batch."""
        return [entry.item for entry in self._gathering.entries]

    async def settle(self) -> None:
        """Wait until everything submitted so far has run."""
        for batch in (self._flying, self._gathering):
            if batch is not None and batch.entries:
                await batch.done.wait()

    async def _serve(self) -> None:
        try:
            while self._gathering.entries:
                batch, self._gathering = self._gathering, _Batch()
                batch.begun, self._flying = True, batch
                try:
                    await self._run_batch(batch)
                finally:
                    self._flying = None
                    batch.done.set()
        finally:
            self._running = False
            if self._gathering.entries:  # only when the loop is torn down: nobody may hang
                abandoned, self._gathering = self._gathering, _Batch()
                abandoned.begun = True
                abandoned.done.set()

    async def _run_batch(self, batch: _Batch[Item, Result]) -> None:
        try:
            outcomes = await self._run([entry.item for entry in batch.entries])
        except Exception as error:
            outcomes = [error] * len(batch.entries)
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            entry.outcome = outcome
