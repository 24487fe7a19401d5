"""What to fetch: runs, requests, read-ahead; pure functions, tested without a store or a clock."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.internals import ReadAhead, requests_of, runs_of
from tests.support.strategies import examples

few = settings(max_examples=examples(40), deadline=None)
blocks = st.sets(st.integers(0, 200)).map(sorted)


@few
@given(blocks)
def test_runs_cover_exactly_the_blocks(found):
    runs = runs_of(found)
    assert [block for run in runs for block in range(*run)] == found
    assert all(end < start for (_, end), (start, _) in pairwise(runs))


@few
@given(blocks, st.integers(1, 40))
def test_requests_are_no_longer_than_allowed(found, most):
    requests = list(requests_of(runs_of(found), most))
    assert [block for request in requests for block in range(*request)] == found
    assert all(0 < end - first <= most for first, end in requests)
    assert len(requests) <= sum(-(-(end - first) // most) for first, end in runs_of(found))


reads = st.lists(st.tuples(st.booleans(), st.integers(0, 5000), st.integers(0, 300)), max_size=60)


@few
@example([(False, 0, 1), (True, 0, 1), (True, 0, 0), (True, 0, 1)], 2)  # an empty read changes none
@given(reads, st.integers(1, 500))
def test_read_ahead_stays_inside_and_asks_once(steps, request):
    size = 5000
    ahead = ReadAhead(size, request)
    position, asked = 0, set()
    for follows, start, length in steps:
        start = position if follows else start
        length = min(length, size - start)
        wanted = ahead.read(start, length)
        if not follows:
            asked = set()
        position = start + length
        if wanted is not None:
            low, high = wanted
            assert position <= low < high <= size
            assert high - position <= 4 * request + 300
            assert asked.isdisjoint(range(low, high))
            asked.update(range(low, high))


@few
@given(st.integers(1, 300), st.integers(0, 300))
def test_read_ahead_covers_a_scan(length, more):
    size, request = 5000, length + more
    ahead = ReadAhead(size, request)
    asked = [ahead.read(start, min(length, size - start)) for start in range(0, size, length)]
    covered = {byte for wanted in asked if wanted is not None for byte in range(*wanted)}
    assert covered >= {*range(2 * length, size)}


@few
@given(st.lists(st.integers(0, 40).map(lambda block: 100 * block), min_size=1))
def test_random_reads_fetch_nothing_ahead(starts):
    ahead = ReadAhead(5000, 100)
    for start in starts:
        assert ahead.read(start, 50) is None
