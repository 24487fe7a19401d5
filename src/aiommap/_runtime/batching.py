"""A batch queue: one batch in flight, the next one gathering.

While a batch runs, new items gather for the next batch. So a single hop, or a single flush, answers
many tasks. If items wait when a batch ends, the next one starts one loop turn later, so that tasks
woken together batch together; but a batch that is full starts at once. If no items wait, the next
item starts a batch: one turn later after a batch with several items, at once after a batch of one,
because a task that is alone should not wait. So if several tasks then submit in one turn, the first
item runs without the others.

Everything here runs on the loop thread, in tasks and in callbacks. The queue needs no task of its
own. An item costs one future, which gets its outcome: where a flush serves hundreds of writes, the
time that each takes on the loop limits their number (docs/decisions.md).

Invariants.
  1  At most one batch is in flight; items run in the order of submission (I9). A batch holds items
      of one kind, so ``begin`` need not check; a barrier shares a batch only with barriers.
  2  An item submitted while a batch is in flight is never part of it. So the batch that answers
      an item began after the item was submitted (I4).
  3  If a waiter is cancelled before its batch begins, its item is taken out and never runs. If
      later, the waiter waits for the batch to end (I8).
  4  A batch that has begun is answered, and the next one follows, whatever fails at its end: an
      error in ``after`` keeps no outcome from a waiter. A batch that all waiters left has nothing
      to run, and is over at once.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from .._native import time_slice_wake
from .event_loop import Event, Waiter
from .loops import wait_out
from .workers import Limiter, Workers

Item = TypeVar("Item")
Result = TypeVar("Result")


class Kind(Enum):
    """Which items share a batch; all items of one batch are of one kind."""

    PLAIN = auto()
    #: Plain items of another type.
    OTHER_PLAIN = auto()
    #: They share batches with plain items, which are then widened into general ones.
    GENERAL = auto()
    #: They share batches only with each other, and so separate earlier items from later ones.
    BARRIER = auto()
    #: They share batches only with each other, too.
    APPEND = auto()


#: Kinds that share batches only with their own kind.
_ALONE = frozenset({Kind.BARRIER, Kind.APPEND})

Outcomes = Sequence[Result | BaseException]


class Gather(Protocol):
    """Lets waiters join the batch that gathers without the queue, and answers all waiters."""

    def set_limit(self, items: int, /) -> None:
        """Set how many items share a batch; the one that fills it has to come by the queue."""

    def open(self, items: list[Any], waiters: list[Any], /) -> None:
        """Let them join a batch, by its lists."""

    def shut(self) -> None:
        """Let none join: no batch gathers, or not for them."""

    def answer(
        self,
        waiters: list[Any],
        outcomes: Sequence[Any],
        then: Callable[[bool], object],
        /,
    ) -> None:
        """Answer all waiters, now or soon; then say whether their tasks have run already."""


Begin = Callable[[Kind, list[Item], Callable[[Outcomes[Result]], None]], None]
Widen = Mapping[Kind, Callable[[Any], Any]]

_ONE_KIND: Widen = {}


def as_jobs(
    workers: Workers,
    limiter: Limiter,
    run: Callable[[list[Item]], Outcomes[Result]],
    after: Callable[[], None] | None = None,
) -> Begin[Item, Result]:
    """Make a ``begin`` that runs each batch as one job and calls ``after`` when that has ended."""

    def begin(_kind: Kind, items: list[Item], done: Callable[[Outcomes[Result]], None]) -> None:
        def ended(results: Outcomes[Result] | None, error: BaseException | None) -> None:
            if results is None:
                results = [error or RuntimeError("a batch gave no results")] * len(items)
            try:
                if after is not None:
                    after()
            finally:
                done(results)  # batching.4

        if items:
            workers.start(limiter, partial(run, items), ended)
        else:
            ended([], None)

    return begin


class Batch(Generic[Item, Result]):
    """Items, and the waiter of each at the same place."""

    __slots__ = ("_fixed", "_over", "begun", "items", "kind", "outcomes", "waiters")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.items: list[Item] = []
        self.waiters: list[Waiter[Result | BaseException]] = []
        self.begun = False
        #: The waiters of a batch that has begun, once somebody leaves it: very many may.
        self._fixed: frozenset[Waiter[Result | BaseException]] | None = None
        self.outcomes: Outcomes[Result] | None = None
        self._over: Event | None = None

    def widen(self, widen: Callable[[Item], Item]) -> None:
        """Make the items general ones."""
        self.kind = Kind.GENERAL
        self.items = [*map(widen, self.items)]

    def begin(self) -> list[Item]:
        """Return the items; from now on none is taken out."""
        self.begun = True
        return self.items

    def has(self, waiter: Waiter[Result | BaseException]) -> bool:
        """Tell whether somebody waits for this batch."""
        if not self.begun:
            return waiter in self.waiters
        if self._fixed is None:
            self._fixed = frozenset(self.waiters)
        return waiter in self._fixed

    def withdraw(self, waiter: Waiter[Result | BaseException]) -> bool:
        if not self.begun:
            at = self.waiters.index(waiter)
            del self.items[at], self.waiters[at]
        return not self.begun

    def end(
        self,
        outcomes: Outcomes[Result],
        gather: Gather | None,
        then: Callable[[bool], object],
    ) -> None:
        """Answer the waiters, and then say whether their tasks have run already."""
        asked, given = len(self.waiters), len(outcomes)
        if asked != given:
            outcomes = [RuntimeError(f"a batch of {asked} gave {given} results")] * asked
        self.outcomes = outcomes
        if self._over is not None:
            self._over.set()
        if gather is not None:
            gather.answer(self.waiters, outcomes, then)
            return
        try:
            for waiter, outcome in zip(self.waiters, outcomes, strict=True):
                if not waiter.done():  # else its task was cancelled
                    waiter.set_result(outcome)
        finally:
            then(False)

    def over(self, event: Callable[[], Event]) -> Event:
        """Return the event that is set when the batch ends; made only if asked for."""
        if self._over is None:  # not `or`: trio's events have no truth value
            self._over = event()
        if self.outcomes is not None:
            self._over.set()
        return self._over


class BatchQueue(Generic[Item, Result]):
    """Runs submitted items in batches.

    Args:
        begin: begins one batch. It gets the kind, the items and a function. It calls that function
            on the loop, once, at once or later, with one result or exception per item. If it
            raises, nothing has begun. If all waiters left there are no items, and it only answers.
        discard: frees the result of a cancelled waiter. The waiter waits for it, and it must not be
            cancellable.
        widen: functions that make a general item of a plain one, by kind; for several kinds.
        max_items: how many items share a batch at most. All their waiters wake in one loop turn. A
            full batch starts as soon as the queue is free.
        gather: lets items join a batch without the queue, and answers; only if all are plain.
    """

    __slots__ = (
        "_answering",
        "_begin",
        "_discard",
        "_gather",
        "_in_flight",
        "_last",
        "_max_items",
        "_waiting",
        "_widen",
        "_workers",
    )

    def __init__(
        self,
        workers: Workers,
        begin: Begin[Any, Result],
        discard: Callable[[Result], Awaitable[None]] | None = None,
        *,
        widen: Widen = _ONE_KIND,
        max_items: int = sys.maxsize,
        gather: Gather | None = None,
    ) -> None:
        self._workers = workers
        self._max_items = max_items
        self._gather = gather
        #: Whether the tasks of a batch are woken: those that join begin no batch one by one.
        self._answering = False
        self._begin = begin
        self._widen = widen
        self._discard = discard
        #: Batches in order; several only if one is full or kinds do not mix. The last one gathers.
        #: A list: an empty deque takes 760 bytes, and each open file has two queues.
        self._waiting: list[Batch[Item, Result]] = []
        self._in_flight: Batch[Item, Result] | None = None
        self._last = 0

    async def submit(
        self, item: Item, *, kind: Kind = Kind.PLAIN, withdrawable: bool = True
    ) -> Result:
        """Run an item in the next batch; return its result or raise its exception.

        An item that is not withdrawable runs even if its waiter is cancelled before it begins.
        """
        batch, waiter = self.enqueue(item, kind)
        try:
            if waiter.done():  # answered without a hop, like an inline verb
                await self._workers.checkpoint_if_due()
            outcome = await waiter
        except GeneratorExit:
            raise  # the loop is gone, and nothing can be awaited any more
        except BaseException:
            await self.leave(batch, waiter, withdrawable=withdrawable)
            raise
        if not isinstance(outcome, BaseException):
            return outcome
        try:
            raise outcome
        finally:
            del batch, waiter, outcome  # its traceback refers to this frame

    def enqueue(
        self,
        item: Item,
        kind: Kind = Kind.PLAIN,
        waiter: Any = None,
    ) -> tuple[Batch[Item, Result], Waiter[Result | BaseException]]:
        """Do the first half of ``submit``, for callers that avoid the cost of one more coroutine.

        The caller awaits the waiter, raises the outcome if it is an exception, and calls ``leave``
        when it is cancelled. It may give a waiter of its own, which ``Gather.answer`` then knows.
        """
        self._workers.check_loop()
        if waiter is None:
            waiter = self._workers.waiter()
        waiting = self._waiting
        fresh = not waiting
        if fresh:
            batch = self._gathering(kind)
        else:
            batch = waiting[-1]
            if (kind is not batch.kind and not self._can_share(kind)) or (
                len(batch.items) >= self._max_items
            ):
                batch = self._gathering(kind)
        if kind is not batch.kind:
            item = self._widen[kind](item)
        batch.items.append(item)
        batch.waiters.append(waiter)
        if len(batch.items) >= self._max_items:
            self._advance()
        elif fresh and self._in_flight is None:
            self._start()
        return batch, waiter

    def _gathering(self, kind: Kind) -> Batch[Item, Result]:
        """Make the batch that gathers from now on."""
        batch: Batch[Item, Result] = Batch(kind)  # a subscript here would take 2 us
        self._waiting.append(batch)
        if self._gather is not None:
            self._gather.open(batch.items, batch.waiters)
        return batch

    def join(self, item: Item, kind: Kind) -> Waiter[Result | BaseException]:
        """Enqueue an item without a check of the loop; the caller leaves by ``leave_early``.

        For the loop thread. If another loop runs there, awaiting the waiter raises, because the
        waiter belongs to this loop.
        """
        waiting = self._waiting
        if not waiting:
            return self.enqueue(item, kind)[1]
        batch = waiting[-1]
        items, limit = batch.items, self._max_items
        if batch.kind is not kind or len(items) >= limit:
            return self.enqueue(item, kind)[1]
        waiter: Waiter[Result | BaseException] = self._workers.waiter()
        items.append(item)
        batch.waiters.append(waiter)
        if len(items) >= limit:
            self._advance()
        return waiter

    def _can_share(self, kind: Kind) -> bool:
        """Tell whether the gathering batch takes items of another kind; widen it if so."""
        batch = self._waiting[-1]
        if not {kind, batch.kind}.isdisjoint(_ALONE):
            return False
        if batch.kind is not Kind.GENERAL:
            batch.widen(self._widen[batch.kind])
        return True

    def limit(self, max_items: int) -> None:
        """Set how many items share a batch at most from now on."""
        self._max_items = max_items
        if self._gather is not None:
            self._gather.set_limit(max_items)

    async def leave(
        self,
        batch: Batch[Item, Result],
        waiter: Waiter[Result | BaseException],
        *,
        withdrawable: bool,
    ) -> None:
        """Withdraw an item whose waiter was cancelled, or else wait for its batch (batching.3)."""
        if withdrawable and batch.withdraw(waiter):
            return
        await wait_out(batch.over(self._workers.event))
        if self._discard is None:
            return
        assert batch.outcomes is not None
        outcome = batch.outcomes[batch.waiters.index(waiter)]
        if not isinstance(outcome, BaseException):
            await self._discard(outcome)

    async def leave_early(self, waiter: Any) -> None:
        """Leave the batch of a waiter, unless it has ended."""
        for batch in self._batches():
            if batch.has(waiter):
                await self.leave(batch, waiter, withdrawable=True)
                return

    @property
    def busy(self) -> bool:
        """Whether a batch is in flight or gathering."""
        return self._in_flight is not None or bool(self._waiting)

    @property
    def gathered(self) -> int:
        """The number of items whose batches have not begun."""
        return sum([len(batch.items) for batch in self._waiting]) if self._waiting else 0

    def waiting(self) -> list[Item]:
        """The items whose batches have not begun."""
        return [*chain.from_iterable(batch.items for batch in self._waiting)]

    def unfinished(self, kind: Kind = Kind.PLAIN) -> list[Item]:
        """The items in batches of a kind that have not run to their end."""
        batches = (batch for batch in self._batches() if batch.kind is kind)
        return [*chain.from_iterable(batch.items for batch in batches)]

    def _batches(self) -> list[Batch[Item, Result]]:
        flying = () if self._in_flight is None else (self._in_flight,)
        return [*flying, *self._waiting]

    async def settle(self) -> None:
        """Wait until everything submitted so far has run."""
        for batch in self._batches():
            await batch.over(self._workers.event).wait()

    def _start(self) -> None:
        if self._answering:
            return  # `_answer` sees what has joined
        if self._last > 1:
            self._workers.call_soon(self._advance)
        else:
            self._advance()

    def _advance(self) -> None:
        if not self._waiting or self._in_flight is not None:
            return
        batch = self._in_flight = self._waiting.pop(0)
        if self._gather is not None and not self._waiting:
            self._gather.shut()
        items = batch.begin()
        self._last = len(items)
        try:
            self._begin(batch.kind, items, partial(self._end, batch))
        except Exception as error:  # no memory, for one
            self._end(batch, [error] * len(items))

    def _end(self, batch: Batch[Item, Result], outcomes: Outcomes[Result]) -> None:
        self._in_flight = None
        time_slice_wake(len(outcomes))
        try:
            if self._waiting and len(self._waiting[0].items) >= self._max_items:
                self._advance()  # it is full: it runs while the tasks of this batch wake
        finally:
            self._answer(batch, outcomes)

    def _answer(self, batch: Batch[Item, Result], outcomes: Outcomes[Result]) -> None:
        before, answered = self.gathered, len(outcomes)
        self._answering = True

        def then(have_run: bool) -> None:
            self._answering = False
            # In a forked child the batch is the parent's: a task that has run may have forked.
            if not self._waiting or self._in_flight is not None or self._workers.forked:
                return
            if have_run and self.gathered - before >= answered:
                self._advance()  # all of them have joined again: there is nobody to wait for
            else:
                # One turn later: the tasks that this batch answered wake first and may join.
                self._workers.call_soon(self._advance)

        batch.end(outcomes, self._gather, then)
