"""The bounds check, page rounding, and sets of ranges compared with a set of integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from aiommap import OutOfBoundsError
from tests.support.internals import (
    RangeCounts,
    RangeSet,
    align_down,
    align_up,
    check_range,
    check_tail,
)
from tests.support.strategies import LARGEST, PAGE, WRAP, edges, examples, numbers, windows

LIMIT = 4 * PAGE
UNIVERSE = 24
NO_DEADLINE = settings(deadline=None)


@pytest.mark.parametrize("limit", [0, 1, LIMIT, LARGEST], ids=["empty", "byte", "pages", "largest"])
def test_check_range_accepts_only_what_fits(limit):
    table = edges(limit)
    for offset in table:
        for length in table:
            if 0 <= offset <= limit and 0 <= length <= limit - offset:
                assert check_range(offset, length, limit) == (offset, length)
                continue
            with pytest.raises(OutOfBoundsError, match=r"only|cannot be negative") as caught:
                check_range(offset, length, limit)
            error = caught.value
            assert (error.offset, error.length, error.limit) == (offset, length, limit)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(LARGEST, 1), (LARGEST, LARGEST), (1, WRAP - 1), (WRAP - 1, 2), (WRAP, 0), (0, WRAP)],
)
def test_check_range_does_not_wrap_at_64_bits(offset, length):
    with pytest.raises(OutOfBoundsError, match=f"only {LIMIT}"):
        check_range(offset, length, LIMIT)


@NO_DEADLINE
@given(offset=numbers(LIMIT), length=numbers(LIMIT))
def test_check_range_agrees_with_slices(offset, length):
    reached = range(LIMIT)[offset : offset + length] if min(offset, length) >= 0 else None
    inside = reached is not None and offset <= LIMIT and len(reached) == length
    try:
        assert check_range(offset, length, LIMIT) == (offset, length)
    except OutOfBoundsError:
        assert not inside
    else:
        assert inside


@pytest.mark.parametrize("offset", edges(LIMIT))
def test_check_tail_without_length_to_the_end(offset):
    if 0 <= offset <= LIMIT:
        assert check_tail(offset, None, LIMIT) == (offset, LIMIT - offset)
        return
    with pytest.raises(OutOfBoundsError, match=r"only|cannot be negative") as caught:
        check_tail(offset, None, LIMIT)
    assert (caught.value.offset, caught.value.limit) == (offset, LIMIT)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (0, LIMIT), (LIMIT, 0), (1, LIMIT), (-1, 1), (LIMIT, 1)]
)
def test_check_tail_with_a_length(offset, length):
    def outcome(check):
        try:
            return check(offset, length, LIMIT)
        except OutOfBoundsError as error:
            return error.offset, error.length, error.limit

    assert outcome(check_tail) == outcome(check_range)


class Indexed:
    """An object that converts to an integer."""

    def __index__(self):
        return 5


@pytest.mark.parametrize(
    ("given_number", "meant"),
    [
        pytest.param(np.int8(5), 5, id="int8"),
        pytest.param(np.int64(5), 5, id="int64"),
        pytest.param(np.uint64(5), 5, id="uint64"),
        pytest.param(True, 1, id="bool"),
        pytest.param(Indexed(), 5, id="__index__"),
    ],
)
def test_integers_of_every_kind_come_back_plain(given_number, meant):
    for check, length in ((check_range, given_number), (check_tail, given_number)):
        checked = check(given_number, length, LIMIT)
        assert checked == (meant, meant)
        assert [type(number) for number in checked] == [int, int]
    checked = check_tail(given_number, None, LIMIT)
    assert checked == (meant, LIMIT - meant)
    assert [type(number) for number in checked] == [int, int]


def test_numpy_integers_do_not_wrap():
    with pytest.raises(OutOfBoundsError, match="only") as caught:
        check_range(np.uint64(WRAP - 1), np.uint64(1), LIMIT)
    error = caught.value
    assert (error.offset, error.length, error.limit) == (WRAP - 1, 1, LIMIT)


@pytest.mark.parametrize(
    "number", [1.0, np.float64(1), "1", b"1", None, np.array([1, 2])], ids=repr
)
def test_no_integer_is_a_type_error(number):
    for offset, length in ((number, 1), (1, number)):
        with pytest.raises(TypeError, match=r"integer|index"):
            check_range(offset, length, LIMIT)
    with pytest.raises(TypeError, match=r"integer|index"):
        check_tail(number, None, LIMIT)


@NO_DEADLINE
@given(
    number=st.one_of(st.sampled_from([0, 1, LARGEST, WRAP]), st.integers(0, 3 * PAGE)),
    alignment=st.sampled_from([1, 2, 3, PAGE]),
)
def test_rounding_meets_nearest_multiples(number, alignment):
    below, above = align_down(number, alignment), align_up(number, alignment)
    assert below % alignment == above % alignment == 0
    assert below <= number <= above
    assert number - below < alignment
    assert above - number < alignment


class RangeSetMachine(RuleBasedStateMachine):
    """The model is the plain set of the integers that the ranges hold."""

    @initialize(base=st.sampled_from([0, LARGEST - UNIVERSE]), first=windows(UNIVERSE))
    def begin(self, base, first):
        # Also far from zero: no step may depend on numbers that fit a machine word.
        self.base = base
        self.ranges = RangeSet([(base + first[0], base + first[1])])
        self.model = set(range(*first))

    def runs(self, low=0, high=UNIVERSE):
        """Gather the model's integers in [low, high) into maximal runs, the slow and sure way."""
        found = []
        for number in range(low, high):
            if number not in self.model:
                continue
            if number - 1 in self.model and number > low:
                found[-1][1] += 1
            else:
                found.append([number, number + 1])
        return [(self.base + start, self.base + end) for start, end in found]

    def place(self, window):
        return self.base + window[0], self.base + window[1]

    @rule(window=windows(UNIVERSE))
    def add(self, window):
        self.ranges.add(*self.place(window))
        self.model |= set(range(*window))

    @rule(window=windows(UNIVERSE))
    def discard(self, window):
        self.ranges.discard(*self.place(window))
        self.model -= set(range(*window))

    @rule(which=st.integers(0, UNIVERSE), length=st.integers(1, 3), behind=st.booleans())
    def add_touching(self, which, length, behind):
        """Add a window that touches a range at its end or at its start."""
        runs = self.runs()
        if not runs:
            return
        start, end = (bound - self.base for bound in runs[which % len(runs)])
        window = (end, min(UNIVERSE, end + length)) if behind else (max(0, start - length), start)
        self.ranges.add(*self.place(window))
        self.model |= set(range(*window))

    @rule(which=st.integers(0, UNIVERSE), length=st.integers(1, 3), behind=st.booleans())
    def discard_touching(self, which, length, behind):
        """Discard a window that touches a range and shares no byte with it: nothing may change."""
        runs = self.runs()
        if not runs:
            return
        start, end = (bound - self.base for bound in runs[which % len(runs)])
        window = (end, min(UNIVERSE, end + length)) if behind else (max(0, start - length), start)
        self.ranges.discard(*self.place(window))
        self.model -= set(range(*window))

    @rule(window=windows(UNIVERSE))
    def turned_round_is_empty(self, window):
        if window[0] < window[1]:
            end, offset = self.place(window)
            self.ranges.add(offset, end)
            self.ranges.discard(offset, end)

    @rule(window=windows(UNIVERSE))
    def covers(self, window):
        assert self.ranges.covers(*self.place(window)) == (set(range(*window)) <= self.model)

    @rule(window=windows(UNIVERSE, shortest=1))
    def within(self, window):
        assert self.ranges.within(*self.place(window)) == tuple(self.runs(*window))

    @invariant()
    def the_ranges_are_the_maximal_runs(self):
        runs = self.runs()
        assert list(self.ranges) == runs
        assert len(self.ranges) == len(runs)
        assert self.ranges.total() == len(self.model)
        assert repr(self.ranges) == f"RangeSet({runs!r})"


@pytest.mark.slow
def test_range_set_agrees_with_integers():
    run_state_machine_as_test(
        RangeSetMachine,
        settings=settings(deadline=None, max_examples=examples(100), stateful_step_count=30),
    )


@pytest.mark.parametrize(
    ("ranges", "merged"),
    [
        pytest.param([(0, 2), (2, 4)], [(0, 4)], id="touching"),
        pytest.param([(2, 4), (0, 2)], [(0, 4)], id="touching-backwards"),
        pytest.param([(0, 2), (4, 6), (2, 4)], [(0, 6)], id="filling-a-gap"),
        pytest.param([(0, 2), (3, 4)], [(0, 2), (3, 4)], id="a-gap-of-one"),
        pytest.param([(0, 9), (3, 4)], [(0, 9)], id="inside"),
        pytest.param([(3, 4), (6, 7), (0, 9)], [(0, 9)], id="around"),
        pytest.param([(5, 5), (7, 3)], [], id="empty"),
    ],
)
def test_range_set_has_maximal_ranges(ranges, merged):
    assert list(RangeSet(ranges)) == merged


@pytest.mark.parametrize(
    ("hole", "left"),
    [
        pytest.param((0, 10), [], id="all"),
        pytest.param((3, 5), [(0, 3), (5, 10)], id="middle"),
        pytest.param((0, 3), [(3, 10)], id="head"),
        pytest.param((7, 10), [(0, 7)], id="tail"),
        pytest.param((10, 12), [(0, 10)], id="beyond"),
        pytest.param((4, 4), [(0, 10)], id="nothing"),
    ],
)
def test_discard_leaves_the_rest(hole, left):
    ranges = RangeSet([(0, 10)])
    ranges.discard(*hole)
    assert list(ranges) == left


@pytest.mark.parametrize("window", [(5, 5), (7, 3)], ids=["empty", "turned-round"])
def test_empty_window_holds_nothing(window):
    assert RangeSet([(0, 10)]).within(*window) == ()


@NO_DEADLINE
@given(st.lists(st.one_of(windows(UNIVERSE), st.integers(0, 9)), max_size=30), windows(UNIVERSE))
def test_range_counts_agree_with_integers(steps, asked):
    """A step that is a window adds it; a number removes an added one. The model is a set."""
    ranges, added = RangeCounts(), []
    for step in steps:
        if isinstance(step, tuple):
            added.append(step)
            ranges.add(*step)
        elif added:
            ranges.remove(*added.pop(step % len(added)))
        covered = {number for window in added for number in range(*window)}
        for parts, model in (
            (ranges.within(*asked), covered & set(range(*asked))),
            (ranges.gaps(*asked), set(range(*asked)) - covered),
        ):
            assert parts == tuple(RangeSet((number, number + 1) for number in sorted(model)))
    for window in added:
        ranges.remove(*window)
    assert ranges.within(0, UNIVERSE) == ()
    assert not ranges._edges  # else removed ranges would cost time for ever
