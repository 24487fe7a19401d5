"""Turns for ranges: compared with a list of all requests; and the cost of many requests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.internals import Turns


@dataclass(eq=False)
class Request:
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


def turns_among(requests):
    """Return the requests that conflict with no earlier one."""
    return [
        request
        for number, request in enumerate(requests)
        if not any(conflict(request, earlier) for earlier in requests[:number])
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
    turns, requests, have = Turns(), [], []
    for step in steps:
        if isinstance(step, tuple):
            offset, length, shared = step
            request = Request(offset, offset + length, shared)
            requests.append(request)
            if turns.enter(request):
                have.append(request)
        elif requests:
            gone = requests.pop(step % len(requests))
            have = [request for request in have if request is not gone] + turns.leave(gone)
        assert sorted(map(id, have)) == sorted(map(id, turns_among(requests)))
        assert len(turns) == len(requests)
    for request in requests:
        turns.leave(request)
    assert len(turns._starts) == 1, "nothing stays behind"


def looks(many, order, make):
    """Count how often requests are looked at while many of them come and go."""
    turns = Turns()
    requests = [make(number) for number in range(many)]
    before = Request.total
    for request in requests:
        turns.enter(request)
    for request in order(requests):
        turns.leave(request)
    return Request.total - before


@pytest.mark.parametrize("order", [iter, reversed], ids=["first", "last"])
@pytest.mark.parametrize(
    "make",
    [
        lambda number: Request(0, 8, shared=False),
        lambda number: Request(8 * number, 8 * number + 8, shared=False),
        lambda number: Request(0, 8, shared=True),
        lambda number: Request(0, 8, shared=bool(number % 10)),
        lambda number: Request(8 * number, 8 * number + 12, shared=False),
    ],
    ids=["one", "apart", "shared", "mixed", "chained"],
)
def test_turns_of_many_cost_each_the_same(make, order):
    few, many = looks(100, order, make), looks(1000, order, make)
    assert many <= 12 * few
