"""A RangeAllocator against one owner per byte, driven by Hypothesis; misuse is drawn on purpose."""

from __future__ import annotations

from types import SimpleNamespace

import anyio
import pytest
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

from aiommap import AllocatedRange, OutOfBoundsError, RangeAllocator, ReceiptError
from tests.support.internals import Layout
from tests.support.strategies import LARGEST

SPAN = 40
lengths = st.integers(1, SPAN // 2)
which = st.integers(0, SPAN)


def allocator_of(layout):
    """Make an allocator of a file that is open; it needs nothing else of the file."""
    core = SimpleNamespace(
        mapping=SimpleNamespace(forked=False),
        workers=SimpleNamespace(call_from_thread=None),
        path="file",
        check_usable=lambda: None,
    )
    return RangeAllocator(core, layout)


class AllocatorMachine(RuleBasedStateMachine):
    """The model: for each byte of the span the range that holds it, or None.

    A range is its (offset, length). ``held`` has the handle of each range that somebody holds. From
    that the model decides again, byte by byte, everything that the allocator decides.
    """

    @initialize(
        base=st.sampled_from([0, 1, 4096, LARGEST - SPAN]), alignment=st.sampled_from([1, 2, 4, 8])
    )
    def begin(self, base, alignment):
        self.base, self.alignment = base, alignment
        self.owner = dict.fromkeys(range(base, base + SPAN))
        self.held = {}
        self.stale = []
        self.allocator = allocator_of(Layout(base, base + SPAN, alignment))

    def fits(self, length, owner):
        """Find the lowest offset at which a range would fit, by trying all."""
        for offset in range(self.base, self.base + SPAN - length + 1):
            if offset % self.alignment == 0:
                at = range(offset, offset + length)
                if all(owner[byte] is None for byte in at):
                    return offset
        return None

    def largest(self, owner):
        return max((n for n in range(1, SPAN + 1) if self.fits(n, owner) is not None), default=0)

    def ranges(self):
        return sorted({owner for owner in self.owner.values() if owner is not None})

    def give(self, span, owner):
        for byte in range(span[0], span[0] + span[1]):
            self.owner[byte] = owner

    def choose(self, number):
        """One of the ranges that are held, with its handle."""
        spans = sorted(self.held)
        span = spans[number % len(spans)]
        return span, self.held[span]

    def retire(self, span):
        self.stale.append(self.held.pop(span))

    @rule(length=lengths)
    def allocate(self, length):
        offset = self.fits(length, self.owner)
        if offset is None:
            self.refuse(length)
            return
        allocated = self.allocator.allocate(length)
        span = (offset, length)
        assert (allocated.offset, allocated.length, allocated.end) == (*span, offset + length)
        self.give(span, span)
        self.held[span] = allocated

    @rule(excess=st.sampled_from([1, 2, SPAN, 2**64]))
    def allocate_too_much(self, excess):
        self.refuse(self.largest(self.owner) + excess)

    def refuse(self, length):
        with pytest.raises(OutOfBoundsError, match=f"no room for {length} bytes") as caught:
            self.allocator.allocate(length)
        error = caught.value
        assert (error.offset, error.length) == (self.base, length)
        assert error.limit == self.largest(self.owner)

    @rule(length=st.sampled_from([0, -1, -SPAN, -(2**64)]))
    def allocate_nothing(self, length):
        with pytest.raises(ValueError, match=f"length is {length}"):
            self.allocator.allocate(length)

    @precondition(lambda self: self.held)
    @rule(number=which)
    def free(self, number):
        span, allocated = self.choose(number)
        self.allocator.free(allocated)
        self.give(span, None)
        self.retire(span)

    @precondition(lambda self: self.held)
    @rule(number=which, position=st.integers(-1, SPAN + 1))
    def split(self, number, position):
        span, allocated = self.choose(number)
        offset, length = span
        if not 0 < position < length:
            with pytest.raises(ValueError, match=r"one part empty|only|cannot be negative"):
                allocated.split_at(position)
            return
        parts = allocated.split_at(position)
        spans = (offset, position), (offset + position, length - position)
        assert tuple((part.offset, part.length) for part in parts) == spans
        self.retire(span)
        for part, at in zip(parts, spans, strict=True):
            self.give(at, at)
            self.held[at] = part

    @precondition(lambda self: self.stale)
    @rule(number=which)
    def use_what_is_not_valid_any_more(self, number):
        self.misuse(self.stale[number % len(self.stale)])

    @precondition(lambda self: self.held)
    @rule(number=which)
    def use_a_copy(self, number):
        span, allocated = self.choose(number)
        self.misuse(AllocatedRange(allocated._owner, *span))

    @rule(length=lengths)
    def use_a_range_of_another_allocator(self, length):
        other = allocator_of(Layout(self.base, self.base + SPAN, 1))
        foreign = other.allocate(length)
        with pytest.raises(ReceiptError, match="another allocator"):
            self.allocator.free(foreign)
        assert foreign.valid

    def misuse(self, allocated):
        with pytest.raises(ReceiptError, match=r"freed or split|another allocator"):
            self.allocator.free(allocated)
        closed = allocated._owner is not self.allocator
        refusal = anyio.ClosedResourceError if closed else ReceiptError
        with pytest.raises(refusal, match=r"freed or split|is closed"):
            allocated.split_at(1)

    @rule()
    def save_and_load(self):
        state = self.allocator.state()
        self.allocator.close()
        for span in list(self.held):
            self.retire(span)
        self.allocator = allocator_of(Layout.decode(state))
        assert self.allocator.state() == state

    @rule(number=which)
    def claim(self, number):
        unclaimed = [span for span in self.ranges() if span not in self.held]
        if unclaimed:
            span = unclaimed[number % len(unclaimed)]
            allocated = self.allocator.claim(*span)
            assert (allocated.offset, allocated.length) == span
            self.held[span] = allocated

    @rule(offset=st.integers(-1, SPAN), length=st.integers(-1, SPAN))
    def claim_anything(self, offset, length):
        span = (self.base + offset, length)
        if span in self.held or span not in self.ranges():
            with pytest.raises(ReceiptError, match="cannot claim"):
                self.allocator.claim(*span)

    @invariant()
    def tables_agree(self):
        allocator = self.allocator
        assert allocator.remaining == sum(owner is None for owner in self.owner.values())
        assert allocator.largest == self.largest(self.owner)
        assert allocator.unclaimed == tuple(s for s in self.ranges() if s not in self.held)
        saved = Layout.decode(allocator.state())
        assert saved.allocated == tuple(self.ranges())
        assert (saved.start, saved.end, saved.alignment) == (
            self.base,
            self.base + SPAN,
            self.alignment,
        )

    @invariant()
    def validity_agrees(self):
        assert all(allocated.valid for allocated in self.held.values())
        assert not any(allocated.valid for allocated in self.stale)


@pytest.mark.slow
def test_allocator_agrees_with_owner_per_byte():
    run_state_machine_as_test(
        AllocatorMachine,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
        ),
    )
