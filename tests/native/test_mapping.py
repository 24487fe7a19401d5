"""The native module by itself: bounds, page sets, accounting, gathering, leases, time slices."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiommap import PAGE_SIZE, OutOfBoundsError
from tests.support.internals import Mapping, check_range, native
from tests.support.strategies import examples
from tests.support.waiting import spend_time_slice

NOWAIT, PRIVATE_COPY, RESIDENCY_VISIBLE, WRITABLE = (
    native.NOWAIT,
    native.PRIVATE_COPY,
    native.RESIDENCY_VISIBLE,
    native.WRITABLE,
)

PAGES = 16
SIZE = PAGES * PAGE_SIZE


def make_mapping(path, size=SIZE, *, capacity=None, writable=True, private=False):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.truncate(path, size)
    flags = NOWAIT | RESIDENCY_VISIBLE | WRITABLE * writable | PRIVATE_COPY * private
    return Mapping(fd, size, capacity or size, flags)


@pytest.fixture
def mapping(tmp_path):
    made = make_mapping(tmp_path / "file")
    made.attach(object(), native.Receipt)
    yield made
    made.close()


EDGES = (-(2**63), -1, 0, 1, PAGE_SIZE, SIZE - 1, SIZE, SIZE + 1, 2**62, 2**63 - 1)


@pytest.mark.parametrize("length", EDGES)
@pytest.mark.parametrize("offset", EDGES)
def test_bounds_agree_with_check_range(mapping, offset, length):
    try:
        check_range(offset, length, SIZE)
        inside = True
    except OutOfBoundsError:
        inside = False
    if inside:
        assert mapping.read(offset, length) == bytes(length)
        assert mapping.read_nowait(offset, length) in (bytes(length), None)
    else:
        with pytest.raises(OutOfBoundsError):
            mapping.read(offset, length)
        assert mapping.read_nowait(offset, length) is None
        assert mapping.read_inline(offset, length) is None


@pytest.mark.parametrize("argument", ["1", 1.0, None, 2**63, 2**100])
def test_inline_verbs_decline_odd_integers(mapping, argument):
    assert mapping.read_inline(argument, 1) is None
    assert mapping.read_inline(0, argument) is None
    assert mapping.read_into_inline(argument, bytearray(1)) is None
    assert mapping.write_inline(argument, b"x") is None
    assert mapping.write_now(0, argument) is None


@settings(deadline=None, max_examples=examples(60))
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["store", "flush", "fail"]),
            st.integers(0, PAGES * 40 - 1),
            st.integers(1, 200),
        ),
        max_size=30,
    )
)
def test_dirty_runs_match_a_set_of_pages(tmp_path_factory, steps):
    """Stores mark pages, a flush takes them, and a failed flush puts them back."""
    size = PAGES * 40 * PAGE_SIZE
    mapping = make_mapping(tmp_path_factory.mktemp("dirty") / "file", size)
    mapping.attach(object(), native.Receipt)
    dirty: set[int] = set()
    for kind, first, count in steps:
        end = min(first + count, PAGES * 40)
        offset, length = first * PAGE_SIZE, (end - first) * PAGE_SIZE
        if kind == "store":
            mapping.write_many([(offset, memoryview(bytes(length)))])
            dirty.update(range(first, end))
        else:
            runs = mapping.begin_writeback(offset, length)
            taken = {page for a, b in runs for page in range(a // PAGE_SIZE, b // PAGE_SIZE)}
            assert taken == dirty & set(range(first, end))
            mapping.end_writeback(runs if kind == "fail" else [])
            if kind == "flush":
                dirty -= taken
        assert mapping.dirty_bytes() == len(dirty) * PAGE_SIZE
    runs = mapping.dirty_runs()
    assert all(a < b for a, b in runs)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(runs))
    mapping.close()


def test_page_sets_are_exact_between_words(tmp_path):
    edges = (0, 1, 62, 63, 64, 65, 127, 128, 129, 200)
    mapping = make_mapping(tmp_path / "file", 200 * PAGE_SIZE)
    mapping.attach(object(), native.Receipt)
    whole = memoryview(bytes(200 * PAGE_SIZE))
    for first, end in itertools.combinations(edges, 2):
        offset, stop = first * PAGE_SIZE, end * PAGE_SIZE
        mapping.write_many([(offset, whole[offset:stop])])
        assert mapping.dirty_runs() == [(offset, stop)]
        assert mapping.dirty_bytes() == stop - offset
        mapping.write_many([(0, whole)])
        assert mapping.begin_writeback(offset, stop - offset) == [(offset, stop)]
        left = [(a, b) for a, b in ((0, offset), (stop, len(whole))) if a < b]
        assert mapping.dirty_runs() == left
        mapping.begin_writeback(0, len(whole))
        mapping.end_writeback([])
    mapping.close()


def sequences(receipts):
    return [receipt.sequence for receipt in receipts]


def test_store_under_a_flush_is_queued(mapping):
    assert mapping.write_now(0, b"no") is None  # a hole: not in memory yet
    assert sequences(mapping.write_many([(0, memoryview(b"x"))])) == [1]
    assert mapping.write_now(0, b"resident") is not None
    mapping.begin_writeback(0, PAGE_SIZE)
    assert mapping.write_now(0, b"no") is None
    assert sequences(mapping.write_many([(5 * PAGE_SIZE, memoryview(b"x"))])) == [3]
    assert mapping.write_now(5 * PAGE_SIZE, b"elsewhere") is not None
    mapping.begin_writeback(5 * PAGE_SIZE, PAGE_SIZE)  # more of the same flush
    assert mapping.write_now(0, b"no") is None
    assert mapping.write_now(5 * PAGE_SIZE, b"no") is None
    mapping.end_writeback([])
    assert mapping.write_now(0, b"yes") is not None


def test_store_that_would_pass_one_is_declined(mapping):
    mapping.populate(0, SIZE, True)
    mapping.set_queued(100, 200)
    assert mapping.write_now(199, b"x") is None
    assert mapping.write_now(200, b"x") is not None
    mapping.set_queued(0, 0)
    assert mapping.write_now(199, b"x") is not None


@pytest.fixture
def gathering(tmp_path):
    """A mapping whose tasks have just woken together, after stores that adjoin, up to offset 80."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, SIZE)
    made = Mapping(fd, SIZE, SIZE, NOWAIT | RESIDENCY_VISIBLE | WRITABLE | native.LOCAL)
    made.attach(object(), native.Receipt)
    for at in range(0, 80, 10):
        assert made.write_now(at, b"s" * 10) is not None
    made.expect_stores(8)
    yield made
    made.close()


def test_gathered_stores_are_applied_together(gathering, tmp_path):
    receipts = [gathering.gather(80 + i * 10, bytes([65 + i]) * 10) for i in range(7)]
    assert gathering.gathered == 7
    assert (tmp_path / "file").read_bytes()[80:] == bytes(SIZE - 80)
    assert [receipt.sequence for receipt in receipts] == [0] * 7
    assert gathering.write_inline(0, b"x") is None  # gather.2
    assert gathering.write_now(0, b"x") is None
    assert gathering.gathers(149, 200)
    assert not gathering.gathers(150, 200)
    assert gathering.withdraw(receipts[3])
    assert not gathering.withdraw(receipts[3])
    assert gathering.store_gathered() == []
    assert [receipt.sequence for receipt in receipts] == [9, 10, 11, 0, 12, 13, 14]
    content = b"A" * 10 + b"B" * 10 + b"C" * 10 + bytes(10) + b"E" * 10 + b"F" * 10 + b"G" * 10
    assert (tmp_path / "file").read_bytes()[80:150] == content
    assert gathering.dirty_runs() == [(0, PAGE_SIZE)]
    assert gathering.gather(150, b"x") is None  # not before tasks wake together again
    assert gathering.write_now(150, b"x").sequence == 15
    assert not gathering.withdraw(receipts[0])


def test_gathered_stores_that_have_to_wait_are_given_back(gathering, tmp_path):
    data = bytearray(b"d" * 10)
    first = gathering.gather(80, data)
    second = gathering.gather(SIZE - 10, b"e" * 10)
    with pytest.raises(BufferError):
        data.append(0)
    os.truncate(tmp_path / "file", SIZE - 1)
    left = gathering.store_gathered()
    assert [(receipt, offset, bytes(view)) for receipt, offset, view in left] == [
        (first, 80, b"d" * 10),
        (second, SIZE - 10, b"e" * 10),
    ]
    assert (first.sequence, gathering.sequence) == (0, 8)
    assert os.stat(tmp_path / "file").st_size == SIZE - 1
    del left
    data.append(0)


def test_gathered_stores_go_with_their_mapping(gathering):
    data = bytearray(b"d")
    receipt = gathering.gather(80, data)
    gathering.close()
    assert [item[0] for item in gathering.store_gathered()] == [receipt]
    data.append(0)


@pytest.mark.parametrize("what", ["few", "apart", "limited", "long", "not_expected"])
def test_stores_are_not_gathered_without_need(gathering, what):
    if what == "few":
        gathering.expect_stores(3)
    elif what == "apart":
        for at in range(PAGE_SIZE, 12 * PAGE_SIZE, PAGE_SIZE):
            gathering.write_now(at, b"s")
        gathering.expect_stores(8)
    elif what == "limited":
        gathering.set_inline_limits(native.NO_LIMIT, 1 << 40, native.NO_LIMIT)
    elif what == "not_expected":
        gathering.expect_stores(0)
    data = bytes(9 * PAGE_SIZE) * 8 if what == "long" else b"x"
    assert gathering.gather(80, data) is None
    assert gathering.gathered == 0


def inline(mapping, offset, data):
    """Store inline; a time slice may end before the store begins, so this asks for several."""
    for _ in range(100):
        native.time_slice_renew(native.time_slice_yield())
        receipt = mapping.write_inline(offset, data)
        if receipt is not None:
            return receipt
    return None


def test_inline_stores_stop_at_the_policy(mapping):
    mapping.populate(0, SIZE, True)
    mapping.begin_writeback(0, SIZE)
    mapping.end_writeback([])
    mapping.set_inline_limits(100, native.NO_LIMIT, native.NO_LIMIT)
    assert inline(mapping, 0, b"x" * 99) is not None
    assert inline(mapping, 0, b"x") is None
    mapping.set_inline_limits(native.NO_LIMIT, mapping.sequence + 2, native.NO_LIMIT)
    assert inline(mapping, 0, b"x") is not None
    assert inline(mapping, 0, b"x") is None
    mapping.set_inline_limits(native.NO_LIMIT, native.NO_LIMIT, 2 * PAGE_SIZE)
    assert inline(mapping, PAGE_SIZE, b"x") is not None
    assert inline(mapping, 2 * PAGE_SIZE, b"x") is None
    mapping.begin_writeback(0, PAGE_SIZE)  # pages in writeback count as well
    assert inline(mapping, 2 * PAGE_SIZE, b"x") is None
    mapping.end_writeback([])
    assert inline(mapping, 2 * PAGE_SIZE, b"x") is not None


def test_page_cut_off_is_not_present(mapping):
    mapping.populate(0, SIZE, True)
    mapping.truncate(4 * PAGE_SIZE)
    assert mapping.dirty_runs() == [(0, 4 * PAGE_SIZE)]
    mapping.extend(SIZE, SIZE, 0, SIZE)
    assert mapping.write_now(8 * PAGE_SIZE, b"no") is None  # a hole: the store would wait
    assert mapping.write_now(0, b"yes") is not None


def test_read_outside_locked_pages(mapping, tmp_path):
    mapping.populate(0, PAGE_SIZE, True)
    mapping.set_locked(0, PAGE_SIZE, True)
    os.truncate(tmp_path / "file", PAGE_SIZE)
    assert mapping.read_nowait(0, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert mapping.read_nowait(0, PAGE_SIZE + 1) is None
    assert mapping.faults == 0


def test_slice_is_spent_and_renewed(mapping):
    mapping.populate(0, SIZE, True)
    native.time_slice_renew(native.time_slice_yield())
    spend_time_slice()
    assert mapping.read_inline(0, 1) is None
    assert mapping.write_inline(0, b"x") is None
    native.time_slice_renew(native.time_slice_yield())
    assert mapping.read_inline(0, 1) == b"\0"


def test_lease_keeps_pages_after_close(mapping, tmp_path):
    def mapped():
        with open("/proc/self/maps") as maps:
            return sum(str(tmp_path / "file") in line for line in maps)

    mapping.write_many([(PAGE_SIZE, memoryview(b"kept"))])
    memory = memoryview(mapping.lease(PAGE_SIZE, 4, True))
    assert mapping.oldest_leases(9) == [(PAGE_SIZE, PAGE_SIZE + 4, None)]
    mapping.close()
    assert bytes(memory) == b"kept"
    assert mapped() == 1
    part = memory[1:3]
    del memory
    assert bytes(part) == b"ep"
    assert mapped() == 1
    del part
    assert mapped() == 0
    assert mapping.oldest_leases(9) == []


def test_lease_is_dirty_while_writable(mapping):
    lease = mapping.lease(0, PAGE_SIZE, True)
    assert mapping.begin_writeback(0, SIZE) == [(0, PAGE_SIZE)]
    mapping.end_writeback([])
    assert mapping.dirty_runs() == [(0, PAGE_SIZE)]
    del lease
    assert mapping.begin_writeback(0, SIZE) == [(0, PAGE_SIZE)]
    mapping.end_writeback([])
    assert mapping.dirty_runs() == []


def test_lease_read_only_is_not_dirty(mapping):
    lease = mapping.lease(0, PAGE_SIZE, False)
    assert mapping.dirty_runs() == []
    assert memoryview(lease).readonly


def test_lease_says_where_it_was_taken(mapping):
    place = "app.py:12 in main " * 2
    before = sys.getrefcount(place)
    leases = [mapping.lease(0, 4, False, place) for _ in range(100)]
    for _ in range(100):
        assert mapping.oldest_leases(1000) == [(0, 4, place)] * 100
    assert sys.getrefcount(place) == before + 100
    del leases
    assert sys.getrefcount(place) == before


def test_rebase_keeps_dirty_pages_and_leases(mapping):
    mapping.write_many([(0, memoryview(b"first")), (3 * PAGE_SIZE, memoryview(b"more"))])
    memory = memoryview(mapping.lease(0, 5, True))
    mapping.rebase(300 * PAGE_SIZE)
    assert mapping.size == SIZE
    mapping.extend(300 * PAGE_SIZE, 300 * PAGE_SIZE, SIZE, 0)
    mapping.write_many([(299 * PAGE_SIZE, memoryview(b"last"))])
    memory[:5] = b"FIRST"
    assert mapping.read(0, 5) == b"FIRST"
    assert mapping.dirty_runs() == [
        (0, PAGE_SIZE),
        (3 * PAGE_SIZE, 4 * PAGE_SIZE),
        (299 * PAGE_SIZE, 300 * PAGE_SIZE),
    ]


def test_truncate_fences_and_extend_unfences(mapping, tmp_path):
    mapping.write_many([(4 * PAGE_SIZE, memoryview(b"tail"))])
    memory = memoryview(mapping.lease(0, SIZE, True))
    tail = slice(4 * PAGE_SIZE, 4 * PAGE_SIZE + 4)
    mapping.truncate(4 * PAGE_SIZE)
    assert mapping.fenced
    assert bytes(memory[tail]) == bytes(4)
    memory[tail] = b"lost"
    mapping.extend(SIZE, SIZE, 0, SIZE)
    assert not mapping.fenced
    assert bytes(memory[tail]) == bytes(4)
    memory[tail] = b"tail"
    assert (tmp_path / "file").read_bytes()[tail] == b"tail"


def test_adopt_takes_over_cuts_and_appends(mapping, tmp_path):
    memory = memoryview(mapping.lease(0, SIZE, True))
    os.truncate(tmp_path / "file", PAGE_SIZE)
    mapping.adopt(PAGE_SIZE, PAGE_SIZE, True)
    assert mapping.size == mapping.file_end == PAGE_SIZE
    assert bytes(memory) == bytes(SIZE)
    os.truncate(tmp_path / "file", SIZE)
    mapping.adopt(SIZE, SIZE, True)
    memory[-1] = 1
    assert (tmp_path / "file").read_bytes()[-1] == 1
    assert mapping.first_bad is None


@pytest.mark.parametrize("change", ["truncate", "extend", "adopt", "rebase"])
def test_change_begins_and_ends_a_generation(mapping, change):
    before = mapping.generation
    arguments = {"extend": (SIZE, SIZE, SIZE, SIZE), "adopt": (SIZE, SIZE, True)}
    getattr(mapping, change)(*arguments.get(change, (SIZE,)))
    assert mapping.generation == before + 2


def test_private_stores_never_reach_the_file(tmp_path):
    mapping = make_mapping(tmp_path / "file", private=True)
    mapping.attach(object(), native.Receipt)
    mapping.write_many([(10, memoryview(b"mine"))])
    assert mapping.read(8, 8) == b"\0\0mine\0\0"
    assert mapping.read_nowait(8, 8) == b"\0\0mine\0\0"
    assert (tmp_path / "file").read_bytes() == bytes(SIZE)
    mapping.close()


@pytest.mark.parametrize("verb", ["read", "populate", "lock", "sync_range", "residency"])
def test_closed_mapping_raises(mapping, verb):
    mapping.close()
    mapping.close()
    arguments = (0, 1, True) if verb == "populate" else (0, 1)
    with pytest.raises(ValueError, match="closed"):
        getattr(mapping, verb)(*arguments)
    assert mapping.read_nowait(0, 1) is None


def test_read_into_releases_on_failure(mapping):
    target = bytearray(10)
    with pytest.raises(OutOfBoundsError):
        mapping.read_into(SIZE, target)
    target.extend(b"still resizable")
    data = bytearray(10)
    stores = [(0, memoryview(b"a")), (SIZE, memoryview(data)), (1, memoryview(b"b"))]
    first, outside, last = mapping.write_many(stores)
    assert sequences([first, last]) == [1, 2]
    assert outside == (0, 0)
    del stores
    gc.collect()
    data.extend(b"still resizable")


def test_residency_agrees_with_mmap(mapping, tmp_path):
    """All pages that another mapping touched are resident here, as one run."""
    with open(tmp_path / "file", "rb") as file, mmap.mmap(file.fileno(), 0, prot=1) as other:
        assert other[:] == bytes(SIZE)
        resident, total, runs = mapping.residency(1, SIZE - 2)
    assert (resident, total) == (PAGES, PAGES)
    assert runs == [(1, SIZE - 1)]


def test_staged_store_is_bytes_or_pinned_view(mapping):
    data, buffer = b"never changes", bytearray(b"may change")
    assert mapping.stage(3, data) == (3, data)
    assert mapping.stage(3, data)[1] is data
    offset, view = mapping.stage(SIZE - len(buffer), buffer)
    assert (offset, bytes(view)) == (SIZE - len(buffer), bytes(buffer))
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    assert mapping.stage(0, memoryview(buffer)[2:5])[1] == buffer[2:5]
    words = memoryview(bytes(range(16))).cast("Q", (1, 2))
    assert mapping.stage(0, words)[1] == bytes(range(16))


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (SIZE, b"x"),
        (-1, b"x"),
        (1 << 63, b"x"),
        ("0", b"x"),
        (0, "x"),
        (0, memoryview(b"strided")[::2]),
    ],
    ids=["end", "before", "overflow", "text", "no buffer", "strided"],
)
def test_stage_declines_unstable_buffers(mapping, offset, data):
    assert mapping.stage(offset, data) is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ came with Python 3.12")
@pytest.mark.parametrize("verb", ["write_inline", "write_now", "stage", "read_into_inline"])
def test_stage_declines_a_buffer_that_closes(mapping, verb):
    class Closing:
        def __buffer__(self, flags):
            mapping.close()
            return memoryview(bytearray(8))

    assert getattr(mapping, verb)(0, Closing()) is None


def test_stage_declines_while_closing(mapping):
    mapping.declining = True
    assert mapping.stage(0, b"x") is None


def test_stat_tells_size_and_names(mapping, tmp_path):
    (name,) = tmp_path.iterdir()
    assert mapping.stat() == (SIZE, 1)
    (tmp_path / "other").hardlink_to(name)
    os.truncate(name, SIZE - 1)
    assert mapping.stat() == (SIZE - 1, 2)
    name.unlink()
    (tmp_path / "other").unlink()
    assert mapping.stat() == (SIZE - 1, 0)
