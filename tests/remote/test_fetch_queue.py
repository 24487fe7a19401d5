"""How the threads of a cache share the fetches that wait."""

from __future__ import annotations

import os

import anyio
import anyio.to_thread
import pytest

from aiommap.remote import RemoteError
from tests.support.internals import FetchQueue, Limiter, Workers, fetches
from tests.support.objects import BLOCK, Objects

pytestmark = pytest.mark.anyio

BLOCKS = 60


@pytest.fixture
def many():
    return Objects(os.urandom(BLOCKS * BLOCK))


async def read_all_at_once(s, many, outcomes):
    """Read all blocks concurrently; append the numbers of those that failed to ``outcomes``."""

    async def read(number):
        try:
            data = await s.read_exact(number * BLOCK, BLOCK)
            assert data == many.data[number * BLOCK : (number + 1) * BLOCK]
        except RemoteError:
            outcomes.append(number)

    async with anyio.create_task_group() as group:
        for number in range(BLOCKS):
            group.start_soon(read, number)


@pytest.mark.parametrize("workers", [1, 3])
async def test_each_block_is_fetched_once_by_few_threads(make_cache, many, workers):
    async with (
        make_cache(workers=workers, request_size=BLOCK) as cache,
        cache.open(many, read_ahead=False) as s,
    ):
        await read_all_at_once(s, many, [])
        assert sorted(many.gets) == [(at, at + BLOCK) for at in range(0, BLOCKS * BLOCK, BLOCK)]
        assert (await s.residency()).cached == len(many.data)


async def test_thread_goes_on_after_a_fetch_that_failed(make_cache, many):
    def change(start, end):
        if start // BLOCK % 10 == 3:
            raise RemoteError(many.url, "no such luck", start, end - start)

    many.change = change
    failed = []
    async with make_cache(workers=1) as cache, cache.open(many, read_ahead=False) as s:
        await read_all_at_once(s, many, failed)
        assert sorted(failed) == [3, 13, 23, 33, 43, 53]
        assert (await s.residency()).cached == len(many.data) - 6 * BLOCK


async def test_fetches_go_on_after_a_thread_that_could_not_start(make_cache, many, monkeypatch):
    def refuse(*_):
        raise MemoryError

    async with make_cache(workers=1) as cache, cache.open(many, read_ahead=False) as s:
        with monkeypatch.context() as patch:
            patch.setattr(Workers, "start", refuse)
            with pytest.raises(MemoryError):
                await s.read_exact(0, BLOCK)
        with anyio.fail_after(30):
            await read_all_at_once(s, many, [])


async def test_opening_waits_for_few_of_the_fetches_that_wait(make_cache, many):
    """An ``open`` does not wait for all fetches in the queue, even with one thread for both."""
    fetches_before = []

    class Other(Objects):
        def stat(self, known):
            # Here, and not when the loop hears of the object: the thread goes on meanwhile.
            fetches_before.append(len(many.gets))
            return super().stat(known)

    other = Other(b"other" * 1000, url="test://host/other")
    async with make_cache(workers=1) as cache, cache.open(many, read_ahead=False) as s:
        many.gate.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(read_all_at_once, s, many, [])
            await anyio.to_thread.run_sync(many.asked.acquire)
            async with anyio.create_task_group() as opening:

                async def open_other():
                    await (await cache.open(other)).aclose()

                opening.start_soon(open_other)
                await anyio.wait_all_tasks_blocked()
                many.gate.set()
    assert fetches_before == [fetches.FETCHES_A_TURN]


class Loop:
    """Stands for a loop, its clock and its workers: tests run everything that was called."""

    ended = False

    def __init__(self):
        self.reads = Limiter(1)
        self.jobs = []
        self.calls = []
        self.timers = []
        self.wakes = 0
        self.clock_stands = False

    def start(self, _limiter, work, leave):
        self.jobs.append((work, leave))

    def call_from_thread(self, function):
        self.wakes += 1
        self.calls.append(function)
        return True

    def call_later(self, delay, function):
        assert delay == fetches.LOOK_SECONDS
        if not self.clock_stands:
            self.timers.append(function)

    def turn(self):
        """Run what was called from threads, and what timers are due for."""
        due, self.calls, self.timers = self.calls + self.timers, [], []
        for function in due:
            function()


@pytest.fixture
def loop(monkeypatch):
    """A loop whose turns take no time, so that all ends of fetches are close together."""
    made = Loop()
    monkeypatch.setattr(fetches, "call_later", made.call_later)
    monkeypatch.setattr(fetches, "DENSE_SECONDS", float("inf"))
    return made


def start_fetches(loop, count, told, turns=1):
    """Start fetches in each of which the loop takes some turns; they report to ``told``."""

    def fetch():
        for _ in range(turns):
            loop.turn()

    queue = FetchQueue(loop)
    for number in range(count):
        queue.start(fetch, lambda _bodies, _error, number=number: told.append(number))
    ((work, leave),) = loop.jobs
    return work, leave


def test_fetches_that_end_close_together_do_not_wake_the_loop_each(loop):
    told = []
    work, leave = start_fetches(loop, 20, told)
    last = work()
    assert loop.wakes == 1
    assert told == [*range(19)]
    leave(last, None)
    assert told == [*range(20)]


def test_reports_do_not_wait_for_the_clock_when_no_fetch_is_left(loop):
    """A clock may stand still, as those of tests do."""
    told = []
    loop.clock_stands = True
    work, leave = start_fetches(loop, 20, told)
    leave(work(), None)
    assert told == [*range(20)]


def test_loop_stops_looking_when_nothing_has_ended(loop):
    told = []
    work, _leave = start_fetches(loop, 20, told, turns=3)
    work()
    assert loop.wakes == 19
    assert told == [*range(19)]


def test_report_that_fails_keeps_no_other_from_coming(loop):
    def fail(_bodies, _error):
        raise MemoryError

    told = []
    queue = FetchQueue(loop)
    queue.start(list, fail)
    for number in range(3):
        queue.start(list, lambda _bodies, _error, number=number: told.append(number))
    ((work, leave),) = loop.jobs
    last = work()
    with pytest.raises(MemoryError):
        loop.turn()
    leave(last, None)
    assert told == [0, 1, 2]


def test_thread_goes_on_while_nobody_waits_for_its_token(loop):
    told = []
    work, leave = start_fetches(loop, 5 * fetches.FETCHES_A_TURN, told)
    leave(work(), None)
    assert told == [*range(fetches.MOST_FETCHES_A_TURN)]


def test_thread_returns_a_token_that_somebody_waits_for(loop):
    told = []
    work, leave = start_fetches(loop, 5 * fetches.FETCHES_A_TURN, told)
    loop.reads.queue(lambda: None)
    leave(work(), None)
    assert told == [*range(fetches.FETCHES_A_TURN)]
    assert len(loop.jobs) == 2
