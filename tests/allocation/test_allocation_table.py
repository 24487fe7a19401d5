"""Allocated ranges, the table, and its saved form; without a lock, a file or a loop."""

from __future__ import annotations

import copy
import pickle
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiommap import AllocatedRange, OutOfBoundsError, ReceiptError
from tests.support.internals import AllocationTable, Layout, align_up, check_alignment
from tests.support.internals import table as _table
from tests.support.strategies import LARGEST, PAGE, disjoint_windows

NO_DEADLINE = settings(deadline=None)
SPAN = 100


class Owner:
    """The smallest allocator that a range and a table can have."""

    def __init__(self, layout):
        self.table = AllocationTable(self, layout)

    def is_valid(self, allocated):
        return self.table.is_valid(allocated)

    def split(self, allocated, position):
        return self.table.split(allocated, position)


def table_of(start=0, end=SPAN, alignment=1, allocated=()):
    return Owner(Layout(start, end, alignment, allocated)).table


def places(*ranges):
    return [(allocated.offset, allocated.length) for allocated in ranges]


def unchanged(table):
    """Return everything that can be seen of a table, to compare it later."""
    return table.layout(), table.remaining, table.largest(), table.unclaimed()


def test_take_lowest_bytes_that_fit():
    table = table_of(start=10)
    first, second, third = (table.take(20) for _ in range(3))
    assert places(first, second, third) == [(10, 20), (30, 20), (50, 20)]
    table.free(first)
    table.free(second)
    assert places(table.take(15), table.take(15), table.take(26)) == [
        (10, 15),
        (25, 15),
        (70, 26),
    ]
    assert table.remaining == 90 - 20 - 15 - 15 - 26


def test_take_exact_length_or_nothing():
    table = table_of()
    assert places(table.take(60)) == [(0, 60)]
    before = unchanged(table)
    assert table.take(41) is None
    assert unchanged(table) == before
    assert places(table.take(40)) == [(60, 40)]
    assert table.take(1) is None


def test_take_aligned_leaves_gaps_free():
    table = table_of(start=5, alignment=16)
    assert places(table.take(10), table.take(17), table.take(1)) == [(16, 10), (32, 17), (64, 1)]
    assert table.remaining == SPAN - 5 - 28
    assert table.largest() == SPAN - 80


def test_search_skips_gaps_too_small(monkeypatch):
    """A search skips runs that are too small a block at a time, whatever made them small."""
    monkeypatch.setattr(_table, "BLOCK_RUNS", 64)
    looked_at = []

    def counted(offset, alignment):
        looked_at.append(offset)
        return align_up(offset, alignment)

    table = table_of(end=64 * 2500, alignment=64)
    ranges = [table.take(50) for _ in range(1250)]
    assert places(ranges[999]) == [(64 * 999, 50)]
    for allocated in ranges[::2]:
        table.free(allocated)
    assert table.runs() == 626
    monkeypatch.setattr(_table, "align_up", counted)
    beyond = table.take(200)
    assert beyond.offset == 64 * 1250
    table.free(beyond)
    assert table.largest() == 64 * 1250
    assert places(table.take(50)) == [(0, 50)]
    assert len(looked_at) < 8 * _table.BLOCK_RUNS


@pytest.mark.parametrize(
    ("start", "end", "alignment", "largest"),
    [(0, 0, 1, 0), (7, 7, 8, 0), (1, 5, 8, 0), (1, 8, 8, 0), (1, 9, 8, 1), (8, 9, 8, 1)],
)
def test_largest_of_small_spans(start, end, alignment, largest):
    table = table_of(start, end, alignment)
    assert (table.largest(), table.capacity(), table.remaining) == (
        largest,
        largest,
        end - start,
    )
    assert table.take(largest + 1) is None
    if largest:
        assert table.take(largest).length == largest
        assert (table.largest(), table.capacity()) == (0, largest)


def test_numbers_beyond_a_word_do_not_wrap():
    table = table_of(LARGEST - 10, LARGEST, PAGE)
    assert table.take(1) is None
    assert places(table_of(LARGEST - 10, LARGEST).take(10)) == [(LARGEST - 10, 10)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_free_merges_neighbours(order):
    table = table_of(end=30)
    ranges = [table.take(10) for _ in range(3)]
    for which in order:
        table.free(ranges[which])
    assert (table.runs(), table.largest(), table.remaining) == (1, 30, 30)
    assert places(table.take(30)) == [(0, 30)]


def test_freed_range_stays_invalid_once_reused():
    table = table_of()
    stale = table.take(10)
    table.free(stale)
    anew = table.take(10)
    assert places(stale) == places(anew)
    assert (stale.valid, anew.valid) == (False, True)
    before = unchanged(table)
    for use in (table.free, lambda r: r.split_at(5)):
        with pytest.raises(ReceiptError, match="was freed or split"):
            use(stale)
    assert unchanged(table) == before


def test_range_of_another_table_is_refused():
    table, other = table_of(), table_of()
    mine, foreign = table.take(10), other.take(10)
    before = unchanged(table)
    for use in (table.free, lambda r: table.split(r, 5)):
        with pytest.raises(ReceiptError, match="another allocator"):
            use(foreign)
        with pytest.raises(TypeError, match="no AllocatedRange"):
            use((0, 10))
    assert unchanged(table) == before
    assert mine.valid
    assert foreign.valid


def test_range_cannot_be_copied_or_forged():
    table = table_of()
    allocated = table.take(10)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled: .* claim\(\)"):
            duplicate(allocated)
    forged = AllocatedRange(allocated._owner, 0, 10)
    assert forged != allocated
    with pytest.raises(ReceiptError, match="was freed or split"):
        table.free(forged)
    for name in ("offset", "length", "end", "valid"):
        with pytest.raises(AttributeError, match="no setter"):
            setattr(allocated, name, 0)
    assert allocated.valid


def test_split_consumes_and_covers_the_range():
    table = table_of(start=10)
    whole = table.take(20)
    low, high = whole.split_at(5)
    assert places(low, high) == [(10, 5), (15, 15)]
    assert (whole.valid, low.valid, high.valid) == (False, True, True)
    assert table.remaining == 70
    table.free(low)
    assert places(table.take(5)) == [(10, 5)]


@pytest.mark.parametrize(
    ("position", "error", "match"),
    [
        pytest.param(-1, OutOfBoundsError, "cannot be negative", id="before"),
        pytest.param(0, ValueError, "one part empty: use 1 to 9", id="start"),
        pytest.param(10, ValueError, "one part empty: use 1 to 9", id="end"),
        pytest.param(11, OutOfBoundsError, "only 10", id="behind"),
        pytest.param(2**64 + 5, OutOfBoundsError, "only 10", id="wrapped"),
        pytest.param(5.0, TypeError, "integer", id="float"),
    ],
)
def test_split_outside_leaves_range_valid(position, error, match):
    table = table_of()
    allocated = table.take(10)
    before = unchanged(table)
    with pytest.raises(error, match=match):
        allocated.split_at(position)
    assert allocated.valid
    assert unchanged(table) == before


def test_claim_once_and_exactly():
    table = table_of(allocated=((10, 10), (20, 5)))
    for offset, length, match in (
        (10, 9, "has length 10"),
        (10, 15, "has length 10"),
        (11, 9, "no range"),
        (0, 10, "no range"),
        (-10, 10, "no range"),
    ):
        with pytest.raises(ReceiptError, match=match):
            table.claim(offset, length)
    assert table.unclaimed() == ((10, 10), (20, 5))
    claimed = table.claim(10, 10)
    with pytest.raises(ReceiptError, match="is held already"):
        table.claim(10, 10)
    assert table.unclaimed() == ((20, 5),)
    assert table.layout().allocated == ((10, 10), (20, 5))
    table.free(claimed)
    with pytest.raises(ReceiptError, match="no range"):
        table.claim(10, 10)
    assert table.layout().allocated == ((20, 5),)


@pytest.mark.parametrize("alignment", [-2, -1, 0, 3, 6, PAGE - 1, PAGE + 1])
def test_alignment_is_a_power_of_two(alignment):
    with pytest.raises(ValueError, match=f"alignment is {alignment}: use a power of two"):
        check_alignment(alignment)


def test_repr_shows_range_and_validity():
    table = table_of(start=10)
    allocated = table.take(5)
    assert repr(allocated) == "<AllocatedRange [10, 15) valid>"
    table.free(allocated)
    assert repr(allocated) == "<AllocatedRange [10, 15) not valid>"


@st.composite
def layouts(draw):
    base = draw(st.sampled_from([0, 1, PAGE, LARGEST - SPAN]))
    pairs = [(low + base, high - low) for low, high in draw(disjoint_windows(SPAN))]
    # Neighbours without a gap, which a set of bytes would merge into one range.
    cut = [part for o, n in pairs for part in (((o, 1), (o + 1, n - 1)) if n > 1 else ((o, n),))]
    chosen = draw(st.sampled_from([pairs, cut]))
    return Layout(base, base + SPAN, draw(st.sampled_from([1, 2, PAGE])), tuple(chosen))


@NO_DEADLINE
@given(layout=layouts())
def test_layout_survives_save_and_load(layout):
    state = layout.encode()
    assert len(state) == 48 + 16 * len(layout.allocated)
    assert Layout.decode(state) == layout
    table = Owner(layout).table
    assert table.layout() == layout
    assert table.unclaimed() == layout.allocated
    assert table.remaining == SPAN - sum(length for _, length in layout.allocated)


STATE = Layout(0, SPAN, 4, ((0, 10), (10, 5), (90, 10))).encode()


@pytest.mark.parametrize("bit", range(8))
def test_load_notices_every_flipped_bit(bit):
    for at in range(len(STATE)):
        damaged = bytearray(STATE)
        damaged[at] ^= 1 << bit
        with pytest.raises(ValueError, match=r"is damaged|are not the saved state"):
            Layout.decode(bytes(damaged))


def test_load_notices_cut_or_longer_state():
    for length in range(len(STATE)):
        with pytest.raises(ValueError, match=r"is cut off|is damaged|are not the saved state"):
            Layout.decode(STATE[:length])
    for more in (b"\0", STATE):
        with pytest.raises(ValueError, match="is damaged"):
            Layout.decode(STATE + more)


def sealed(*, version=1, start=0, end=SPAN, alignment=1, count=None, pairs=()):
    """Make a state with a right checksum, whatever its fields; a second version of the format."""
    count = len(pairs) if count is None else count
    body = struct.pack("<8sIQQQQ", b"aioAlloc", version, start, end, alignment, count)
    body += b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    return body + struct.pack("<I", zlib.crc32(body))


def test_saved_form_is_stable():
    assert sealed(alignment=4, pairs=[(0, 10), (10, 5), (90, 10)]) == STATE


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        pytest.param({"version": 2}, "version 2, and only 1", id="version"),
        pytest.param({"alignment": 0}, "alignment is 0", id="no alignment"),
        pytest.param({"alignment": 3}, "alignment is 3", id="alignment"),
        pytest.param({"start": SPAN + 1}, "beyond its own end", id="turned round"),
        pytest.param({"count": 1}, "no room for the 1 ranges", id="count too high"),
        pytest.param({"count": 2**60}, "no room for the", id="count absurd"),
        pytest.param({"count": 0, "pairs": [(0, 1)]}, "no room for the 0", id="count too low"),
        pytest.param({"pairs": [(0, 0)]}, "impossible range at 0", id="empty range"),
        pytest.param({"start": 5, "pairs": [(4, 2)]}, "impossible range at 4", id="before start"),
        pytest.param({"pairs": [(0, 2), (1, 2)]}, "impossible range at 1", id="overlap"),
        pytest.param({"pairs": [(5, 2), (0, 2)]}, "impossible range at 0", id="order"),
        pytest.param({"pairs": [(99, 2)]}, "reaches to 101", id="behind end"),
        pytest.param({"pairs": [(0, 2**64 - 1)]}, "beyond its own end", id="wrap"),
    ],
)
def test_load_refuses_impossible_state(fields, match):
    with pytest.raises(ValueError, match=match):
        Layout.decode(sealed(**fields))
