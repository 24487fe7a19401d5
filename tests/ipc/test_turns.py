"""Turns for ranges: compared with a list of all claims, and counted where there are many."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiommap._ipc.turns import Turns


@dataclass(eq=False)
class Claim:
    offset: int
    end: int
    shared: bool

    def __getattribute__(self, name):
        if name == "offset":
            type(self).total += 1
        return super().__getattribute__(name)

    total = 0


def conflict(one, other):
    overlap = max(one.offset, other.offset) < min(one.end, other.end)
    return overlap and not (one.shared and other.shared)


def turns_among(claims):
    """Tell which claims no earlier one keeps from their turn."""
    return [
        claim
        for number, claim in enumerate(claims)
        if not any(conflict(claim, earlier) for earlier in claims[:number])
    ]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 12), st.integers(0, 6), st.booleans()),
        st.integers(0, 30),
    ),
    max_size=40,
)


@given(STEPS)
def test_turns_are_those_of_a_list(steps):
    turns, claims, have = Turns(), [], []
    for step in steps:
        if isinstance(step, tuple):
            offset, length, shared = step
            claim = Claim(offset, offset + length, shared)
            claims.append(claim)
            if turns.enter(claim):
                have.append(claim)
        elif claims:
            gone = claims.pop(step % len(claims))
            have = [claim for claim in have if claim is not gone] + turns.leave(gone)
        assert sorted(map(id, have)) == sorted(map(id, turns_among(claims)))
        assert len(turns) == len(claims)
    for claim in claims:
        turns.leave(claim)
    assert len(turns._starts) == 1, "nothing stays behind"


def looks(many, order, make):
    """Count how often claims were looked at while so many came and went."""
    turns = Turns()
    claims = [make(number) for number in range(many)]
    before = Claim.total
    for claim in claims:
        turns.enter(claim)
    for claim in order(claims):
        turns.leave(claim)
    return Claim.total - before


@pytest.mark.parametrize("order", [iter, reversed], ids=["first", "last"])
@pytest.mark.parametrize(
    "make",
    [
        lambda number: Claim(0, 8, shared=False),
        lambda number: Claim(8 * number, 8 * number + 8, shared=False),
        lambda number: Claim(0, 8, shared=True),
        lambda number: Claim(0, 8, shared=bool(number % 10)),
        lambda number: Claim(8 * number, 8 * number + 12, shared=False),
    ],
    ids=["one", "apart", "shared", "mixed", "chained"],
)
def test_turns_of_many_cost_each_the_same(make, order):
    few, many = looks(100, order, make), looks(1000, order, make)
    assert many <= 12 * few
