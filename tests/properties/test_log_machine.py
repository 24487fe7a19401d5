"""A log against a list: appends, discards, crashes, reopenings and readers in any order."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiommap import FlushPolicy, Log
from tests.support.logs import SEGMENT, pure_records

pytestmark = pytest.mark.slow

POLICIES = [
    FlushPolicy.manual(),
    FlushPolicy.always(),
    FlushPolicy.never(),
    FlushPolicy.every_writes(2),
    FlushPolicy.max_dirty(3000),
]
LENGTHS = st.one_of(
    st.integers(0, 40), st.integers(4000, 4200), st.sampled_from([20_000, SEGMENT - 4096 - 56])
)


class LogMachine(RuleBasedStateMachine):
    """``records`` is all that was ever appended and not lost; number n is at place n - 1."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.home = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.folder = self.home / "log"
        self.copies = 0
        self.records = []
        self.first = 1
        self.flushed = 0
        self.counter = 0
        self.log = None
        self.tail = None
        self.seen = 0
        self.open(POLICIES[0])

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def open(self, policy):
        async def opening():
            return await Log.open(self.folder, flush=policy, segment_size=SEGMENT)

        self.log = self.run(opening())

    def leave(self):
        if self.tail is not None:
            self.run(self.reader.aclose())
            self.tail = None

    def data(self, length):
        self.counter += 1
        return (b"%d " % self.counter * (length // 2 + 1))[:length]

    @rule(length=LENGTHS)
    def append(self, length):
        data = self.data(length)
        receipt = self.run(self.log.append(data))
        self.records.append(data)
        assert receipt.sequence == len(self.records)
        if receipt.durable:
            self.flushed = receipt.sequence

    @rule(lengths=st.lists(LENGTHS, min_size=1, max_size=5))
    def append_many(self, lengths):
        datas = [self.data(length) for length in lengths]
        receipt = self.run(self.log.append_many(datas))
        self.records += datas
        assert (receipt.sequence, receipt.count) == (len(self.records), len(datas))

    @rule(lengths=st.lists(LENGTHS, min_size=2, max_size=8))
    def append_together(self, lengths):
        datas = [self.data(length) for length in lengths]

        async def together():
            return await asyncio.gather(*map(self.log.append, datas))

        receipts = self.run(together())
        self.records += datas
        numbers = [receipt.sequence for receipt in receipts]
        assert numbers == list(range(len(self.records) - len(datas) + 1, len(self.records) + 1))

    @rule()
    def flush(self):
        self.run(self.log.flush())
        assert self.log.durable == len(self.records)

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def discard(self, data):
        before = data.draw(st.integers(1, len(self.records) + 1))
        self.run(self.log.discard(before))
        assert self.first <= self.log.first <= max(before, self.first)
        self.first = self.log.first

    @rule(policy=st.sampled_from(POLICIES), control=st.booleans())
    def reopen(self, policy, control):
        self.run(self.log.aclose())
        if not control:
            (self.folder / "control").unlink()
            self.leave()  # a reader that has it mapped learns that it is gone
        self.open(policy)

    @rule(policy=st.sampled_from(POLICIES), control=st.booleans())
    def crash(self, policy, control):
        """Go on with what another process would find now: a copy, made while the writer lives."""
        self.copies += 1
        copy = self.home / f"log{self.copies}"
        shutil.copytree(self.folder, copy)
        if not control:
            (copy / "control").unlink()
        self.run(self.log.aclose())
        self.leave()
        self.folder = copy
        self.open(policy)
        assert self.log.life > 1

    @rule(data=st.data())
    def read(self, data):
        start = data.draw(st.integers(self.log.first, len(self.records) + 1))

        async def reading(log):
            return [(record.sequence, record.data) async for record in log.read(start)]

        async def other():
            async with Log.open(self.folder, "r") as reader:
                return await reading(reader), reader.first, reader.last

        expected = list(enumerate(self.records[start - 1 :], start))
        assert self.run(reading(self.log)) == expected
        found, first, last = self.run(other())
        assert (found, first, last) == (expected, self.first, len(self.records))

    @rule()
    def follow(self):
        """One tail lives through everything that keeps its folder, discards included."""

        async def more():
            if self.tail is None:
                self.reader = await Log.open(self.folder, "r")
                self.seen = self.reader.first - 1
                self.tail = self.reader.tail(self.seen + 1)
            if self.seen + 1 < self.first:
                return
            while self.seen < len(self.records):
                record = await anext(self.tail)
                self.seen += 1
                assert (record.sequence, record.data) == (self.seen, self.records[self.seen - 1])

        self.run(more())

    @invariant()
    def the_log_says_what_it_holds(self):
        assert (self.log.first, self.log.last) == (self.first, len(self.records))
        assert self.log.durable >= self.flushed
        assert self.log.durable <= self.log.last

    def teardown(self):
        self.leave()
        self.run(self.log.aclose())
        found = [(sequence, data) for sequence, _, data in pure_records(self.folder)]
        assert found == list(enumerate(self.records[self.first - 1 :], self.first))
        self.loop.close()
        shutil.rmtree(self.home)
        assert not os.path.exists(self.home)


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
