"""A scan fetches an object once, however little of it the cache can keep."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.internals import Body, Fetch, Sequence
from tests.support.objects import BLOCK, BegunObjects, Objects
from tests.support.remote import content
from tests.support.strategies import examples

pytestmark = pytest.mark.anyio

SIZE = 96 * BLOCK + 100
DATA = content(1, SIZE)
#: With requests of 4 blocks: no room; less than a request; a few requests; more than fetched ahead.
LIMITS = [0, 3, 8, 24, 70]


@pytest.fixture
def large():
    return Objects(DATA)


async def by_chunks(s, step):
    return b"".join([chunk async for chunk in s.chunks(step)])


async def by_reads(s, step):
    starts = range(0, s.size, step)
    return b"".join([await s.read_exact(at, min(step, s.size - at)) for at in starts])


@pytest.mark.parametrize("read_ahead", [True, False])
@pytest.mark.parametrize("scan", [by_chunks, by_reads])
@pytest.mark.parametrize("limit", LIMITS)
async def test_scan_fetches_each_byte_once(make_cache, large, limit, scan, read_ahead):
    for step in (BLOCK // 3, 5 * BLOCK + 7):
        async with (
            make_cache(max_bytes=limit * BLOCK) as cache,
            cache.open(large, read_ahead=read_ahead) as s,
        ):
            assert await scan(s, step) == DATA
            # Memory keeps nothing that a larger cache stores, which may give it up early.
            most = SIZE if limit < LIMITS[-1] else SIZE * 1.25
            assert SIZE <= cache.statistics().fetched_bytes <= most, step
            await cache.clear()


@pytest.mark.parametrize("scan", [by_chunks, by_reads])
async def test_scan_beside_a_full_disk_fetches_each_byte_once(make_cache, large, scan):
    async with (
        make_cache(min_free=0.9999, on_error=lambda _: None) as cache,
        cache.open(large) as s,
    ):
        assert await scan(s, BLOCK // 3) == DATA
        assert cache.statistics().fetched_bytes == SIZE


async def test_scan_by_one_reader_beside_others_at_random(make_cache, large):
    """The scan keeps what it needs, whatever others read of the same snapshot."""
    async with make_cache(max_bytes=0) as cache, cache.open(large) as s:
        others = 0
        async for chunk in s.chunks(BLOCK):
            at = others * 7 % 90 * BLOCK
            assert await s.read_exact(at, 10) == DATA[at : at + 10]
            others += 1
            assert len(chunk) in (BLOCK, 100)
        assert cache.statistics().fetched_bytes <= SIZE + others * BLOCK


async def test_first_block_that_cannot_be_stored_is_fetched_once(make_cache):
    objects = BegunObjects(DATA[:BLOCK])
    async with make_cache(max_bytes=0) as cache, cache.open(objects) as s:
        assert await s.read_exact(0, 10) == DATA[:10]
        assert await s.read_exact(10, BLOCK - 10) == DATA[10:BLOCK]
        assert (cache.statistics().gets, objects.gets) == (1, [])


async def test_reader_that_goes_on_keeps_no_more_than_it_needs(make_cache, large):
    async with make_cache(max_bytes=0) as cache, cache.open(large) as s:
        await s.read_exact(0, 10)
        await s.read_exact(10, 10)
        await s.read_exact(50 * BLOCK, 10)  # a jump: the first block is forgotten
        await s.read_exact(20, 10)
        assert cache.statistics().fetched_bytes == 3 * BLOCK


BYTES = bytes(range(250)) * 20
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 9), st.integers(1, 20)),
        st.tuples(st.just("jump"), st.integers(1, 9), st.integers(1, 20)),
        st.tuples(st.just("body"), st.integers(0, 9), st.integers(1, 30), st.booleans()),
        st.tuples(st.just("ahead"), st.integers(0, 9), st.integers(1, 30), st.booleans()),
    ),
    max_size=40,
)


@settings(max_examples=examples(60), deadline=None)
@given(STEPS)
def test_sequence_hands_out_what_was_not_stored(steps):
    """The model is the set of bytes that were not stored, came since a jump, and lie ahead."""
    sequence, position, known = Sequence(lambda first, end: (first, end)), 0, set()
    for kind, gap, length, *kept in steps:
        if kind in ("body", "ahead"):
            give(sequence, kind, position + gap, length, *kept)
            if not any(kept):
                known |= set(range(position + gap, position + gap + length))
            continue
        reach = max(known, default=position)
        start = reach + 1 + gap if kind == "jump" else min(reach, position + gap)
        known = set() if kind == "jump" else {byte for byte in known if byte >= start}
        position = start + length
        sequence.advance(start, position)
        found = sequence.bodies(start, position)
        assert all(body.data == BYTES[body.start : body.end] for body in found)
        have = {byte for body in found for byte in range(body.start, body.end)}
        assert have & set(range(start, position)) == known & set(range(start, position))


def nobody_waits():
    raise AssertionError


def give(sequence, kind, start, length, kept):
    body = Body(start, memoryview(BYTES)[start : start + length], kept)
    if kind == "body":
        sequence.keep([body], stored=False)
        return
    fetch = Fetch((body.start, body.end), nobody_waits)
    sequence.expect([fetch])
    fetch.end([body], None)
