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

    def __init__(self, gather=None):
        self.begun = []
        self._ends = []
        widen = {Kind.PLAIN: WIDE, Kind.OTHER_PLAIN: BROAD}
        self.queue = BatchQueue(Workers(), self._begin, widen=widen, gather=gather)

    def _begin(self, kind, items, done):
        self.begun.append((kind.name.lower(), list(items)))
        self._ends.append(lambda: done(items))

    def land(self):
        """End the batch in flight."""
        self._ends.pop()()

    async def end(self):
        """End the batch in flight, and let the next one begin."""
        self.land()
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


async def test_full_batch_begins_before_the_tasks_that_another_one_wakes():
    b = Batches()
    b.queue.limit(2)
    waiters = [b.queue.join(item, Kind.PLAIN) for item in "abcde"]
    assert b.begun == [("plain", ["a"])]
    b.land()
    assert b.begun[1:] == [("plain", ["b", "c"])]
    b.land()
    assert b.begun[2:] == [("plain", ["d", "e"])]
    b.land()
    assert not b.queue.busy
    assert [await waiter for waiter in waiters] == list("abcde")


async def test_batch_that_gets_full_begins_at_once():
    """A batch waits a turn for others to join, but not once it has no room for another."""
    b = Batches()
    b.queue.limit(3)
    for join in (b.queue.join, lambda *item: b.queue.enqueue(*item)[1]):
        waiters = [join(item, Kind.PLAIN) for item in "abcd"]
        b.land()
        assert b.begun[-1] == ("plain", ["b", "c", "d"])
        b.land()
        waiters += [join(item, Kind.PLAIN) for item in "ef"]
        assert len(b.begun) == 2
        waiters.append(join("g", Kind.PLAIN))
        assert b.begun.pop() == ("plain", ["e", "f", "g"])
        await b.end()
        waiters.append(join("h", Kind.PLAIN))
        await anyio.wait_all_tasks_blocked()
        await b.end()
        assert [await waiter for waiter in waiters] == list("abcdefgh")
        b.begun.clear()


class Gather:
    """Runs tasks when it answers: they join the queue again, some of them by the lists."""

    def __init__(self, back):
        self.back = back
        self.lists = None

    def open(self, *lists):
        self.lists = lists

    def shut(self):
        self.lists = None

    def answer(self, waiters, outcomes, then):
        for waiter, outcome in zip(waiters, outcomes, strict=True):
            waiter.set_result(outcome)
        for item in self.back:
            self.join(item)
        then(True)

    def join(self, item):
        if self.lists is None:
            self.b.queue.enqueue(item)
        else:
            self.lists[0].append(item)
            self.lists[1].append(self.b.queue._workers.waiter())


@pytest.mark.parametrize("back", ["", "d", "def", "defg"])
async def test_batch_begins_at_once_if_all_tasks_that_were_woken_are_back(back):
    """Otherwise it waits a turn for the others to join."""
    gather = Gather(back)
    gather.b = b = Batches(gather)
    for item in "abcd":
        gather.join(item)
    assert b.begun == [("plain", ["a"])]
    gather.back = ""
    b.land()
    await anyio.wait_all_tasks_blocked()
    assert b.begun[1:] == [("plain", ["b", "c", "d"])]
    assert gather.lists is None, "no batch gathers"
    gather.back = back
    b.land()
    assert b.begun[2:] == ([("plain", [*back])] if len(back) >= 3 else [])
    await anyio.wait_all_tasks_blocked()
    assert b.begun[2:] == ([("plain", [*back])] if back else [])


async def test_batch_that_is_not_full_waits_for_the_tasks_that_another_one_wakes():
    b = Batches()
    b.queue.limit(4)
    waiters = [b.queue.join(item, Kind.PLAIN) for item in "abc"]
    b.land()
    waiters.append(b.queue.join("d", Kind.PLAIN))
    assert len(b.begun) == 1
    await anyio.wait_all_tasks_blocked()
    assert b.begun[1:] == [("plain", ["b", "c", "d"])]
    b.land()
    assert [await waiter for waiter in waiters] == list("abcd")
