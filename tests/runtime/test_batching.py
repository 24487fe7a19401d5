"""The batch queue: which items share a batch, and which ones can leave it."""

from __future__ import annotations

import anyio
import pytest

from tests.support.internals import BatchQueue, Kind, Workers

pytestmark = pytest.mark.anyio

WIDE = "wide {}".format
BROAD = "broad {}".format


class Batches:
    """A queue whose batches end when the test says so."""

    def __init__(self):
        self.begun = []
        self._ends = []
        widen = {Kind.PLAIN: WIDE, Kind.OTHER_PLAIN: BROAD}
        self.queue = BatchQueue(Workers(), self._begin, widen=widen)

    def _begin(self, kind, items, done):
        self.begun.append((kind.name.lower(), list(items)))
        self._ends.append(lambda: done(items))

    async def end(self):
        """End the batch in flight, and let the next one begin."""
        self._ends.pop()()
        await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("items", "batches"),
    [
        (["plain a", "plain b"], [("plain", ["a", "b"])]),
        (["plain a", "general b", "plain c"], [("general", ["wide a", "b", "wide c"])]),
        (["general a", "plain b"], [("general", ["a", "wide b"])]),
        (["other_plain a", "other_plain b"], [("other_plain", ["a", "b"])]),
        (
            ["plain a", "other_plain b", "plain c", "other_plain d"],
            [("general", ["wide a", "broad b", "wide c", "broad d"])],
        ),
        (["other_plain a", "general b"], [("general", ["broad a", "b"])]),
        (["barrier a", "barrier b"], [("barrier", ["a", "b"])]),
        (
            ["plain a", "barrier b", "plain c", "general d", "barrier e"],
            [
                ("plain", ["a"]),
                ("barrier", ["b"]),
                ("general", ["wide c", "d"]),
                ("barrier", ["e"]),
            ],
        ),
    ],
)
async def test_batch_has_one_kind(items, batches):
    b = Batches()
    outcomes = {}

    async def submit(kind, item):
        outcomes[item] = await b.queue.submit(item, kind=Kind[kind.upper()])

    async with anyio.create_task_group() as group:
        group.start_soon(submit, "plain", "first")
        await anyio.wait_all_tasks_blocked()
        for item in items:
            group.start_soon(submit, *item.split())
            await anyio.wait_all_tasks_blocked()
        assert b.begun == [("plain", ["first"])]
        for _ in range(len(batches) + 1):
            await b.end()
    assert b.begun[1:] == batches
    assert not b.queue.busy
    # Each waiter got the outcome at the place of its own item.
    assert all(outcome in (item, WIDE(item), BROAD(item)) for item, outcome in outcomes.items())


async def test_item_behind_a_barrier_withdraws():
    b = Batches()
    async with anyio.create_task_group() as group:
        group.start_soon(b.queue.submit, "first")
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                for kind in (Kind.BARRIER, Kind.PLAIN):
                    inner.start_soon(lambda kind=kind: b.queue.submit("gone", kind=kind))
                    await anyio.wait_all_tasks_blocked()
                assert b.queue.waiting() == ["gone", "gone"]
                scope.cancel()
        assert b.queue.waiting() == []
        for _ in range(3):  # the two empty batches begin, too
            await b.end()
    assert b.begun == [("plain", ["first"]), ("barrier", []), ("plain", [])]
    assert not b.queue.busy
