"""The native pool against an oracle: whatever is begun, withdrawn, limited and cut, in any order.

The oracle keeps the content of the file, how far it was cut, and the reads that were begun. A read
has one outcome at most, and returns only bytes that the file had. A cancelled waiter gets no
result. Nothing is in flight at the end.
"""

from __future__ import annotations

import os
import random
import select
import tempfile

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.internals import native
from tests.support.strategies import examples

SIZE = 64 << 10
CONTENT = random.Random(15).randbytes(SIZE)
FLAGS = native.WRITABLE | native.NOWAIT | native.RESIDENCY_VISIBLE
ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)


class Waiter:
    """What a task waits for; keeps every result that it gets."""

    def __init__(self):
        self.results = []
        self.cancelled = False

    def done(self):
        return self.cancelled or bool(self.results)

    def set_result(self, result):
        if self.done():
            raise ValueError("as a future does")
        self.results.append(result)


class Begun:
    """One read: its ranges, and where its outcome comes."""

    def __init__(self, ranges, several):
        self.ranges = ranges
        self.several = several
        self.reading = None
        self.waiter = None
        self.told = []
        self.buffer = None
        self.plain = False
        self.withdrawn = False
        self.checked = False
        self.cancelled_first = False


class PoolMachine(RuleBasedStateMachine):
    """One pool, one file, which is mapped, and hubs that come and go."""

    @initialize()
    def begin(self):
        self.soon, self.begun, self.shortest = [], [], SIZE
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115  teardown closes it
        self.file.write(CONTENT)
        self.file.flush()
        self.mapping = native.Mapping(os.dup(self.file.fileno()), SIZE, SIZE, FLAGS)
        self.pool = native.Pool(Waiter, self.soon.append)
        self.queues = [self.pool.queue(1, 2, 1)]

    @rule(hub=st.integers(1, 3), limit=st.integers(0, 4), device=st.integers(1, 2))
    def come(self, hub, limit, device):
        self.queues.append(self.pool.queue(hub, limit, device))

    @precondition(lambda self: len(self.queues) > 1)
    @rule(data=st.data())
    def go(self, data):
        self.queues.remove(data.draw(st.sampled_from(self.queues)))

    def _add(self, begun, reading):
        assert reading is not None
        begun.reading, begun.waiter = reading, reading.waiter
        self.begun.append(begun)

    @rule(data=st.data(), wanted=ranges, times=st.sampled_from([1, 1, 2, 600]))
    def read(self, data, wanted, times):
        queue = data.draw(st.sampled_from(self.queues))
        for _ in range(times):
            self._add(Begun([wanted], False), queue.read(self.mapping, *wanted, True))

    @rule(data=st.data(), wanted=st.lists(ranges, min_size=1, max_size=40))
    def read_many(self, data, wanted):
        queue = data.draw(st.sampled_from(self.queues))
        self._add(Begun(wanted, True), queue.read_many(self.mapping, wanted))

    @rule(data=st.data(), wanted=ranges)
    def read_into(self, data, wanted):
        queue, begun = data.draw(st.sampled_from(self.queues)), Begun([wanted], False)
        begun.buffer = bytearray(b"?" * wanted[1])
        self._add(begun, queue.read_into(self.mapping, wanted[0], begun.buffer, begun.told.append))

    @rule(data=st.data(), wanted=ranges)
    def read_file(self, data, wanted):
        queue, begun = data.draw(st.sampled_from(self.queues)), Begun([wanted], False)
        fd, begun.plain = self.file.fileno(), True
        self._add(begun, queue.read_file(fd, *wanted, begun.told.append))

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def withdraw(self, data):
        begun = data.draw(st.sampled_from(self.begun))
        over = begun.reading.withdraw()
        begun.withdrawn = True
        if over and begun.buffer is not None:
            begun.buffer.extend(b"!")  # it is the caller's again
            begun.buffer.pop()

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def cancel(self, data):
        """Cancel a waiter as a loop does, before its task withdraws the read."""
        begun = data.draw(st.sampled_from(self.begun))
        if begun.waiter is not None:
            begun.cancelled_first = not begun.waiter.results
            begun.waiter.cancelled = True

    @rule(size=st.integers(0, SIZE))
    def cut(self, size):
        self.shortest = min(self.shortest, size)
        os.ftruncate(self.file.fileno(), self.shortest)

    @rule()
    def turn(self):
        """Do what a turn of the loop does."""
        soon, self.soon[:] = self.soon[:], []
        for function in soon:
            function()
        if select.select([self.pool.fileno()], [], [], 0)[0]:
            self.pool.drain()
        self.check()

    def check(self):
        for begun in self.begun:
            results = begun.told if begun.waiter is None else begun.waiter.results
            assert len(results) <= 1
            if not results or begun.checked:
                continue
            begun.checked = True  # and not taken out: what is drawn must not depend on the threads
            assert begun.waiter is None or not begun.cancelled_first
            outcomes = results[0] if begun.several else results
            for (offset, length), outcome in zip(begun.ranges, outcomes, strict=True):
                self.check_outcome(begun, offset, length, outcome)

    def check_outcome(self, begun, offset, length, outcome):
        if begun.buffer is not None and outcome == length:
            outcome = bytes(begun.buffer)
        if isinstance(outcome, bytes) and begun.plain and offset + length > self.shortest:
            assert len(outcome) == length  # a plain read sees zeros of a page cut off meanwhile
        elif isinstance(outcome, bytes):
            assert outcome == CONTENT[offset : offset + length]
        else:
            assert begun.withdrawn or offset + length > self.shortest, outcome
            assert outcome < length

    @invariant()
    def nothing_is_lost(self):
        waiting = sum(len(begun.ranges) for begun in self.begun if not begun.checked)
        assert self.pool.in_flight <= waiting

    def teardown(self):
        for hub in (1, 2, 3):
            self.queues.append(self.pool.queue(hub, 100, 1))
        emptied = []
        while self.pool.in_flight or self.soon:
            self.turn()
        self.pool.when_empty(lambda: emptied.append(True))
        assert emptied
        self.check()
        for begun in self.begun:
            assert begun.checked or begun.withdrawn or begun.waiter.cancelled
        self.mapping.close()
        self.pool.close()
        assert self.queues[0].read(self.mapping, 0, 1, True) is None
        self.file.close()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=examples(25),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
