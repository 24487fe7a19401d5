"""The flush queue and the flush trigger against naive models, with a clock that the test moves."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiommap import FlushPolicy
from tests.support.internals import FlushQueue, FlushTrigger
from tests.support.strategies import examples

FILES = st.integers(0, 5)


class ScheduleMachine(RuleBasedStateMachine):
    """Model: a list of pending requests (due time, order, file), a queue, and a set."""

    @initialize(limit=st.integers(1, 3))
    def begin(self, limit):
        self.schedule = FlushQueue(limit)
        self.limit = limit
        self.now = 0
        self.order = 0
        self.timers = {}
        self.queue = []
        self.running = []
        self.again = []

    @rule(file=FILES, delay=st.integers(-2, 5))
    def request_for_later(self, file, delay):
        self.order += 1
        timer = self.schedule.at(self.now + delay, file)
        self.timers[timer] = (self.now + delay, self.order, file)

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def cancel(self, data):
        timer = data.draw(st.sampled_from(sorted(self.timers, key=self.timers.get)))
        self.schedule.cancel(timer)
        del self.timers[timer]

    @rule(file=FILES)
    def request_now(self, file):
        self.schedule.soon(file)
        self.expect(file)

    @rule(file=FILES)
    def forget(self, file):
        self.schedule.forget(file)
        self.queue = [other for other in self.queue if other != file]
        self.again = [other for other in self.again if other != file]

    @rule(seconds=st.integers(0, 4))
    def turn(self, seconds):
        self.now += seconds
        for timer, (due, _, file) in sorted(self.timers.items(), key=lambda item: item[1]):
            if due <= self.now:
                del self.timers[timer]
                self.expect(file)
        expected = self.queue[: self.limit - len(self.running)]
        self.queue = self.queue[len(expected) :]
        self.running += expected
        assert self.schedule.start(self.now) == expected

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data):
        file = data.draw(st.sampled_from(self.running))
        self.schedule.finished(file)
        self.running.remove(file)
        if file in self.again:
            self.again.remove(file)
            self.queue.append(file)

    def expect(self, file):
        if file in self.running:
            self.again += [] if file in self.again else [file]
        elif file not in self.queue:
            self.queue.append(file)

    @invariant()
    def agrees(self):
        if hasattr(self, "schedule"):
            assert len(self.running) <= self.limit
            assert self.schedule.next_deadline() == min(
                (due for due, _, _ in self.timers.values()), default=None
            )
            assert self.schedule.idle == (not (self.timers or self.queue or self.running))


class TriggerMachine(RuleBasedStateMachine):
    """Model: a log of writes (time, bytes), cut when a flush begins."""

    @initialize(
        size=st.none() | st.integers(1, 40),
        writes=st.none() | st.integers(1, 5),
        seconds=st.none() | st.integers(1, 10),
    )
    def begin(self, size, writes, seconds):
        self.limits = (size, writes, seconds)
        self.trigger = FlushTrigger(
            FlushPolicy(due_bytes=size, due_writes=writes, due_seconds=seconds)
        )
        self.now = 1
        self.total = self.count = 0
        self.log = []

    @rule(size=st.integers(1, 20))
    def write(self, size):
        self.log.append((self.now, size))
        self.total += size
        self.count += 1

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def flush_begins(self):
        self.trigger.began(self.total, self.count)
        self.log = []

    @invariant()
    def agrees(self):
        if not hasattr(self, "trigger"):
            return
        size, writes, seconds = self.limits
        due = bool(self.log) and (
            (size is not None and sum(n for _, n in self.log) >= size)
            or (writes is not None and len(self.log) >= writes)
            or (seconds is not None and self.now - self.log[0][0] >= seconds)
        )
        since = self.log[0][0] if self.log else None
        assert self.trigger.due(self.total, self.count, since, self.now) == due


TestSchedule = ScheduleMachine.TestCase
TestTrigger = TriggerMachine.TestCase
TestSchedule.settings = TestTrigger.settings = settings(
    max_examples=examples(150), stateful_step_count=40, deadline=None, derandomize=True
)


def test_cancelled_timers_do_not_pile_up():
    schedule = FlushQueue(1)
    schedule.at(0, "rests")
    for deadline in range(10_000):
        schedule.cancel(schedule.at(deadline, "busy"))
    assert len(schedule._timers) < 10
    assert schedule.start(1) == ["rests"]
