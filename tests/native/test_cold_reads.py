"""Inline reads of pages that may be cold: which make the device begin, and which only ask.

No job of the pool runs here, so the loop thread began every page that comes into memory.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys

import pytest

from tests.support.internals import native
from tests.support.pages import make_cold, resident_pages
from tests.support.waiting import spend_time_slice

PAGE = os.sysconf("SC_PAGE_SIZE")
PAGES = 256
FLAGS = native.WRITABLE | native.NOWAIT
#: Those of pool_object.h.
FEW, MANY = 32, 64
#: As inline.c has them.
ANSWERS, READS_AN_ANSWER = 16, 8


class Waiter:
    """What a task waits for; no task does here."""

    def done(self):
        return True


@pytest.fixture
def path(tmp_path):
    """A file of which nothing is in memory."""
    made = make_cold(tmp_path / "file", PAGES)
    mapping = native.Mapping(os.open(made, os.O_RDWR), PAGES * PAGE, PAGES * PAGE, FLAGS)
    mapping.read_nowait(PAGES // 4 * PAGE, PAGE)  # a page that no test reads
    works = mapping.nowait
    mapping.close()
    if not works:
        pytest.skip("this file system has no NOWAIT reads")
    return made


class Loop:
    """What the loop thread does to one file, with a pool that holds all jobs."""

    def __init__(self, path, flags):
        fd = os.open(path, os.O_RDWR)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        self.path = path
        self.mapping = native.Mapping(fd, PAGES * PAGE, PAGES * PAGE, flags)
        self.soon = []
        self.pool = native.Pool(Waiter, self.soon.append)
        self.queue = self.pool.queue(1, 0, 1)
        self.begun = []
        self.next = PAGES // 4 + 1

    def spend(self):
        native.time_slice_renew(native.time_slice_yield())
        spend_time_slice()

    def inline(self, number):
        """Read as an inline read does within its time slice, however long this thread is away."""
        return self.mapping.read_nowait(number * PAGE, PAGE)

    def miss(self):
        """Find a cold page; under load the device may bring one before the read declines."""
        while self.inline(self.next) is not None:
            self.next += 1

    def queued(self, number, *tried):
        """Tell whether the queue begins a read; else an inline read has to be tried first."""
        reading = self.queue.read(self.mapping, number * PAGE, PAGE, *tried)
        if reading is not None:
            self.begun.append(reading)
        return reading is not None

    def fill(self, count):
        """Have ``count`` reads in flight, of pages from the end."""
        while self.pool.in_flight < count:
            assert self.queued(PAGES - 1 - self.pool.in_flight, True)

    def bring(self, number):
        """Have the device bring a page in, and so all that it was asked for before."""
        with open(self.path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(file.fileno(), PAGE, number * PAGE)

    def is_brought(self, number):
        """Tell whether the device was asked for a page before this, and so brings it in."""
        self.bring(PAGES // 2)
        return number in resident_pages(self.path)

    def withdraw(self):
        while self.begun:
            self.begun.pop().withdraw()

    def end(self):
        self.withdraw()
        self.mapping.close()
        self.pool.close()


@pytest.fixture
def loop(path):
    made = Loop(path, FLAGS | native.RESIDENCY_VISIBLE)
    yield made
    made.end()


def until_brought(loop, number):
    while number not in resident_pages(loop.path):
        os.sched_yield()


def test_inline_read_has_the_device_begin(loop):
    loop.inline(1)
    until_brought(loop, 1)
    assert len(loop.inline(1)) == PAGE


def test_read_beside_a_few_has_the_device_begin(loop):
    loop.miss()
    loop.fill(FEW - 1)
    loop.spend()
    assert loop.queued(1)
    until_brought(loop, 1)


def test_read_beside_more_of_a_cold_file_only_asks(loop):
    loop.bring(0)
    loop.miss()
    loop.fill(FEW)
    assert loop.inline(1) is None
    loop.spend()
    assert loop.queued(2)
    assert not loop.is_brought(1)
    assert not loop.is_brought(2)
    assert len(loop.inline(0)) == PAGE


def test_read_of_a_warm_file_does_not_ask(loop):
    loop.bring(0)
    assert len(loop.inline(0)) == PAGE
    loop.fill(MANY - 1)
    loop.inline(1)
    until_brought(loop, 1)


def test_file_is_warm_again_after_reads_that_were(loop):
    loop.bring(0)
    loop.miss()
    loop.fill(FEW)
    for _ in range(16):
        assert len(loop.inline(0)) == PAGE
    loop.inline(2)
    until_brought(loop, 2)


def test_read_beside_many_only_asks(loop):
    loop.bring(0)
    loop.fill(MANY)
    assert loop.inline(1) is None
    assert not loop.is_brought(1)
    assert len(loop.inline(0)) == PAGE


def find_cold(loop):
    """Ask so often, with a few reads in flight, that the file is taken for cold."""
    loop.bring(0)
    loop.miss()
    loop.fill(FEW)
    for number in range(1, 1 + ANSWERS):
        assert loop.inline(number) is None


def test_file_that_is_cold_is_asked_about_now_and_then(loop):
    find_cold(loop)
    answered = [loop.inline(0) is not None for _ in range(2 * READS_AN_ANSWER)]
    first = answered.index(True)
    assert first == READS_AN_ANSWER - 1
    assert all(answered[first:]), "what was found in memory has all reads ask again"


def test_spent_slice_asks_as_rarely(loop):
    find_cold(loop)
    loop.spend()
    queued = [loop.queued(0) for _ in range(READS_AN_ANSWER)]
    assert queued == [True] * (READS_AN_ANSWER - 1) + [False]


def test_every_read_beside_a_few_is_tried(loop):
    find_cold(loop)
    loop.withdraw()
    loop.spend()
    assert not loop.queued(0), "it is in memory, so it has to give way and be read inline"
    assert len(loop.inline(0)) == PAGE


def test_spent_slice_holds_up_no_cold_read(loop):
    loop.bring(0)
    loop.miss()
    loop.spend()
    assert loop.queued(1)
    assert not loop.queued(0), "it is in memory, so it has to give way and be read inline"


def test_spent_slice_of_a_warm_file_gives_way_unasked(loop):
    loop.spend()
    assert not loop.queued(1)


@pytest.mark.parametrize(("count", "answered"), [(FEW, True), (MANY - 1, True), (MANY, False)])
def test_file_that_cannot_be_asked_about(path, count, answered):
    loop = Loop(path, FLAGS)
    loop.bring(0)
    loop.miss()
    loop.fill(count)
    assert (loop.inline(0) is not None) is answered
    loop.end()


async def land_cancelled(path, unraisable):
    """Have two reads land; one was cancelled, and its task has not run since."""
    loop = asyncio.get_running_loop()
    mapping = native.Mapping(os.open(path, os.O_RDWR), PAGES * PAGE, PAGES * PAGE, FLAGS)
    pool = native.Pool(loop.create_future, loop.call_soon)
    queue = pool.queue(1, 8, 1)
    waiters = [queue.read(mapping, number * PAGE, PAGE, True).waiter for number in range(2)]
    waiters[0].cancel()
    while pool.in_flight:
        select.select([pool.fileno()], [], [], 0.01)
        pool.drain()
    assert waiters[0].cancelled()
    assert len(waiters[1].result()) == PAGE
    mapping.close()
    pool.close()
    assert not unraisable


def test_cancelled_waiter_is_left_alone(path, monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    asyncio.run(land_cancelled(path, unraisable))


def test_waiter_that_fails_is_reported(path, monkeypatch):
    class Failing:
        def done(self):
            return False

        def set_result(self, result):
            raise ValueError(len(result))

    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    mapping = native.Mapping(os.open(path, os.O_RDWR), PAGES * PAGE, PAGES * PAGE, FLAGS)
    pool = native.Pool(Failing, [].append)
    reading = pool.queue(1, 8, 1).read(mapping, 0, PAGE, True)
    while pool.in_flight:
        select.select([pool.fileno()], [], [])
        pool.drain()
    assert reading.waiter is None
    assert [found.exc_value.args for found in unraisable] == [(PAGE,)]
    mapping.close()
    pool.close()


class Turns:
    """The loop thread and its turns, with a pool that runs the jobs of only one of two files."""

    def __init__(self, path):
        self.mapping = native.Mapping(os.open(path, os.O_RDWR), PAGES * PAGE, PAGES * PAGE, FLAGS)
        self.soon = []
        self.pool = native.Pool(Woken, self.soon.append)
        self.held, self.running = self.pool.queue(1, 0, 1), self.pool.queue(2, 8, 1)
        self.begun = []

    def begin(self, queue, count):
        self.begun += [queue.read(self.mapping, 0, PAGE, True) for _ in range(count)]

    def turn(self):
        soon, self.soon[:] = self.soon[:], []
        for function in soon:
            function()

    def land(self):
        """Have one read land and wake its task."""
        before = self.pool.in_flight
        self.begin(self.running, 1)
        self.turn()
        while self.pool.in_flight > before:
            select.select([self.pool.fileno()], [], [])
            self.pool.drain()

    def end(self):
        for reading in self.begun:
            reading.withdraw()
        self.mapping.close()
        self.pool.close()


class Woken(Waiter):
    def done(self):
        return False

    def set_result(self, result):
        assert len(result) == PAGE


@pytest.mark.parametrize(("held", "comes"), [(FEW - 1, False), (FEW, True)])
def test_what_woke_a_task_beside_many_comes_again_behind_it(path, held, comes):
    turns = Turns(path)
    turns.begin(turns.held, held)
    turns.turn()
    turns.land()
    assert len(turns.soon) == comes
    turns.turn()
    assert not turns.soon, "it comes no more where it woke nobody"
    turns.land()
    turns.end()
