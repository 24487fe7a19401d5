"""A MappedFile against a bytearray, driven by Hypothesis; invalid requests are drawn on purpose."""

from __future__ import annotations

import os
import tempfile

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.internals import core_of

SIZE = 6 * PAGE
positions = st.one_of(
    st.sampled_from([-1, 0, 1, PAGE - 1, PAGE, PAGE + 1, SIZE - 1, SIZE, SIZE + 1, 2**63 - 1]),
    st.integers(0, 12 * PAGE),
)
lengths = st.one_of(st.sampled_from([0, 1, PAGE, SIZE]), st.integers(0, 3 * PAGE))
patterns = st.binary(min_size=1, max_size=7)
policies = st.sampled_from(["never", "manual", "always"])
#: Where tasks that woke together write, how much, and by which verb.
together = st.lists(
    st.tuples(st.integers(0, 2 * PAGE), st.integers(1, PAGE), st.sampled_from(["one", "many"])),
    min_size=4,
    max_size=8,
)


class MappedFileMachine(RuleBasedStateMachine):
    """The model is the bytes that the object must show, and those that the file must hold."""

    backend: tuple[str, dict[str, bool]]

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "file")
        self.portal_manager = start_blocking_portal(self.backend[0], self.backend[1])
        self.portal = self.portal_manager.__enter__()
        self.file = None
        self.views = []

    @initialize(mode=st.sampled_from(["r", "r+", "w+", "x+", "c"]), policy=policies)
    def begin(self, mode, policy):
        self.model = bytearray(os.urandom(SIZE) if mode in ("r", "r+", "c") else SIZE)
        if mode != "x+":
            with open(self.path, "wb") as file:
                file.write(self.model if mode != "w+" else b"overwritten")
        self.disk = bytes(self.model)
        self.open(mode, policy, size=SIZE if mode in ("w+", "x+") else None)

    def open(self, mode, policy, **options):
        self.mode = mode
        flush = getattr(aiommap.FlushPolicy, policy)()

        async def start():
            return await aiommap.open(self.path, mode, flush=flush, **options)

        self.file = self.portal.call(start)

    def inside(self, offset, length):
        return min(offset, length) >= 0 and offset + length <= len(self.model)

    def attempt(self, allowed, verb, *arguments):
        """Run a verb; return its result if it is allowed, else see it refused."""
        if allowed:
            return self.portal.call(verb, *arguments)
        refusals = (aiommap.OutOfBoundsError, aiommap.AccessModeError)
        with pytest.raises(refusals, match=r"asked for|cannot"):
            self.portal.call(verb, *arguments)
        return None

    @rule(offset=positions, length=lengths)
    def read(self, offset, length):
        inside = self.inside(offset, length)
        data = self.attempt(inside, self.file.read, offset, length)
        assert not inside or data == self.model[offset : offset + length]

    @rule(ranges=st.lists(st.tuples(positions, lengths), max_size=4))
    def read_many(self, ranges):
        inside = all(self.inside(*pair) for pair in ranges)
        data = self.attempt(inside, self.file.read_many, ranges)
        assert not inside or data == [self.model[o : o + n] for o, n in ranges]

    @rule(offset=positions, length=lengths)
    def read_into(self, offset, length):
        buffer = bytearray(b"?" * length)
        inside = self.inside(offset, length)
        self.attempt(inside, self.file.read_into, offset, buffer)
        expected = self.model[offset : offset + length] if inside else b"?" * length
        assert buffer == expected

    @rule(offset=positions, length=lengths, pattern=patterns)
    def write(self, offset, length, pattern):
        data = (pattern * (length // len(pattern) + 1))[:length]
        allowed = self.mode != "r" and self.inside(offset, length)
        receipt = self.attempt(allowed, self.file.write, offset, data)
        if allowed:
            assert (receipt.offset, receipt.length) == (offset, length)
            self.model[offset : offset + length] = data

    @rule(items=st.lists(st.tuples(positions, patterns), max_size=4))
    def write_many(self, items):
        allowed = self.mode != "r" and all(self.inside(o, len(d)) for o, d in items)
        self.attempt(allowed, self.file.write_many, items)
        for offset, data in items if allowed else []:
            self.model[offset : offset + len(data)] = data

    @precondition(lambda self: self.mode != "r" and len(self.model) >= 3 * PAGE)
    @rule(writes=together, cancelled=st.integers(0, 8), start=st.integers(0, PAGE))
    def write_together(self, writes, cancelled, start):
        """Write in tasks woken together, after adjoining stores; the last one cancels another."""
        self.model[start : start + 128] = b"s" * 128
        submitted = self.portal.call(self.run_together, writes, cancelled, start)
        with_it, without = bytearray(self.model), bytearray(self.model)
        for offset, data, returned in submitted:
            with_it[offset : offset + len(data)] = data
            if returned:
                without[offset : offset + len(data)] = data
        found = self.portal.call(self.file.read, 0, len(self.model))
        assert found in (with_it, without)  # whole or not at all
        self.model[:] = found

    async def run_together(self, writes, cancelled, start):
        """Write in tasks that begin in one turn; return the writes, and whether each returned."""
        for at in range(start, start + 128, 16):
            await self.file.write(at, b"s" * 16)
        core, submitted, scopes = core_of(self.file), [], []

        async def act(offset, length, verb):
            number = len(submitted)
            data = bytes([number + 1]) * length
            submitted.append([offset, data, False])
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                if number == len(writes) - 1 and cancelled < number:
                    scopes[cancelled].cancel()
                if verb == "one":
                    await self.file.write(offset, data)
                else:
                    await self.file.write_many([(offset, data[:1]), (offset, data)])
                submitted[number][2] = True

        async with anyio.create_task_group() as group:
            if core.workers.pause is not None:
                core.mapping.expect_stores(len(writes))
            for write in writes:
                group.start_soon(act, *write)
        assert not core.mapping.gathered
        return submitted

    @rule(offset=positions, length=lengths)
    def flush_range(self, offset, length):
        self.attempt(self.inside(offset, length), self.file.flush_range, offset, length)

    @rule()
    def flush(self):
        self.portal.call(self.file.flush)

    @precondition(lambda self: self.mode not in ("r", "c"))
    @rule(size=st.integers(0, 12 * PAGE))
    def resize(self, size):
        self.portal.call(self.file.resize, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    @rule(offset=positions, length=lengths)
    def hold_view(self, offset, length):
        if self.inside(offset, length):
            memory = self.file.view(offset, length).memory
            assert bytes(memory) == self.model[offset : offset + length]
            self.views.append(memory)

    @precondition(lambda self: self.views)
    @rule()
    def touch_and_drop_views(self):
        self.drop_views()

    def drop_views(self):
        for memory in self.views:
            bytes(memory)
        self.views.clear()

    @precondition(lambda self: self.mode != "c")
    @rule(mode=st.sampled_from(["r", "r+"]), policy=policies)
    def reopen(self, mode, policy):
        self.portal.call(self.file.aclose)
        self.drop_views()  # the next object may shrink the file under them
        self.open(mode, policy)
        assert self.portal.call(self.file.read, 0, self.file.size) == self.model

    @invariant()
    def the_file_holds_what_it_must(self):
        if self.file is None:
            return
        assert self.file.size == len(self.model)
        with open(self.path, "rb") as file:
            assert file.read() == (self.disk if self.mode == "c" else self.model)

    def teardown(self):
        if self.file is not None:
            self.portal.call(self.file.aclose)
        self.views.clear()
        self.portal_manager.__exit__(None, None, None)
        self.folder.cleanup()


@pytest.mark.slow
def test_mapped_file_agrees_with_a_bytearray(anyio_backend):
    class Machine(MappedFileMachine):
        backend = anyio_backend

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, derandomize=True, database=None
        ),
    )
