"""A lane: one batch in flight, the next one gathering.

While a batch runs, whatever is submitted gathers and makes up the next batch, so that a single
hop, or a single flush, answers many tasks. A batch starts as soon as the lane is free; nothing
waits for company, but for the rest of a turn of the loop when the last batch had company: tasks
that one batch answered wake in the same turn, and belong into one batch again.

Everything here runs on the loop thread, in tasks and in callbacks; no task is needed to serve.

Invariants.
  L1  At most one batch is in flight; items run in the order of submission (I9).
  L2  An item submitted while a batch is in flight is never part of it: what answers it began
      after it was asked for (I4).
  L3  An item whose waiter is cancelled before its batch begins is taken out and never runs;
      afterwards it is waited out (I8).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import anyio

from ._workers import Event, Limiter, Workers, wait_or_withdraw

Item = TypeVar("Item")
Result = TypeVar("Result")


Outcomes = Sequence[Result | BaseException]
Begin = Callable[[list[Item], Callable[[Outcomes[Result]], None]], None]


def batches(
    workers: Workers,
    limiter: Limiter,
    run: Callable[[list[Item]], Outcomes[Result]],
    after: Callable[[], None] | None = None,
) -> Begin[Item, Result]:
    """Make the ``begin`` of a lane whose batches are one job each, and what follows each."""

    def begin(items: list[Item], done: Callable[[Outcomes[Result]], None]) -> None:
        def ended(results: Outcomes[Result] | None, error: BaseException | None) -> None:
            if after is not None:
                after()
            if results is None:
                results = [error or RuntimeError("a batch gave no results")] * len(items)
            done(results)

        workers.start(limiter, partial(run, items), ended)

    return begin


_TAKEN = RuntimeError("the outcome of an item was asked for twice")


class _Entry(Generic[Item, Result]):
    __slots__ = ("item", "outcome")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.outcome: Result | BaseException = anyio.ClosedResourceError(
            "the event loop ended before the operation did"
        )

    def take(self) -> Result:
        """Return or raise the outcome, once: its traceback refers to this entry."""
        outcome, self.outcome = self.outcome, _TAKEN
        if not isinstance(outcome, BaseException):
            return outcome
        try:
            raise outcome
        finally:
            del outcome


class _Batch(Generic[Item, Result]):
    __slots__ = ("begun", "done", "entries")

    def __init__(self, done: Event) -> None:
        self.entries: list[_Entry[Item, Result]] = []
        self.begun = False
        self.done = done

    def withdraw(self, entry: _Entry[Item, Result]) -> bool:
        if not self.begun:
            self.entries.remove(entry)
        return not self.begun


class Lane(Generic[Item, Result]):
    """Runs submitted items in batches.

    Args:
        begin: begins one batch, given its items, and has the second argument called on the loop
            with one result, or exception, per item, at once or later; does not raise.
        discard: frees a result that nobody gets because its waiter was cancelled; the waiter
            waits for it, and it must not be cancellable.
    """

    __slots__ = ("_begin", "_discard", "_flying", "_gathering", "_last", "_workers")

    def __init__(
        self,
        workers: Workers,
        begin: Begin[Item, Result],
        discard: Callable[[Result], Awaitable[None]] | None = None,
    ) -> None:
        self._workers = workers
        self._begin = begin
        self._discard = discard
        self._gathering: _Batch[Item, Result] | None = None
        self._flying: _Batch[Item, Result] | None = None
        self._last = 0

    async def submit(self, item: Item, *, withdrawable: bool = True) -> Result:
        """Run an item in the next batch; return its result or raise its exception.

        An item that is not withdrawable runs even if its waiter is cancelled before it begins.
        """
        self._workers.check_loop()
        batch = self._gathering
        fresh = batch is None
        if batch is None:
            batch = self._gathering = _Batch(self._workers.event())
        entry: _Entry[Item, Result] = _Entry(item)
        batch.entries.append(entry)
        if fresh and self._flying is None:
            if self._last > 1:
                self._workers.call_soon(self._advance)
            else:
                self._advance()
        try:
            if batch.done.is_set():  # answered without a hop: as an inline verb is
                await self._workers.give_way()
            else:
                await wait_or_withdraw(batch.done, lambda: withdrawable and batch.withdraw(entry))
        except GeneratorExit:
            raise
        except BaseException:
            if self._discard is not None and not isinstance(entry.outcome, BaseException):
                await self._discard(entry.outcome)
            raise
        return entry.take()

    def waiting(self) -> list[Item]:
        """The items of the gathering batch."""
        return [entry.item for entry in self._gathering.entries] if self._gathering else []

    def unfinished(self) -> list[Item]:
        """The items that have not run to their end."""
        batches = (self._flying, self._gathering)
        return [entry.item for batch in batches if batch is not None for entry in batch.entries]

    async def settle(self) -> None:
        """Wait until everything submitted so far has run."""
        for batch in (self._flying, self._gathering):
            if batch is not None:
                await batch.done.wait()

    def _advance(self) -> None:
        batch = self._gathering
        if batch is None or self._flying is not None:
            return
        self._gathering, self._flying = None, batch
        batch.begun = True
        self._last = len(batch.entries)
        self._begin([entry.item for entry in batch.entries], partial(self._end, batch))

    def _end(self, batch: _Batch[Item, Result], outcomes: Outcomes[Result]) -> None:
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            entry.outcome = outcome
        self._flying = None
        batch.done.set()
        if self._gathering is not None:
            # Not at once: those whom this batch answered wake first, and may belong into the next.
            self._workers.call_soon(self._advance)
