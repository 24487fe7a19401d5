"""Atomic words against Python integers, driven by Hypothesis; several objects for one word."""

from __future__ import annotations

import os
import tempfile

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import aiommap
from aiommap import PAGE_SIZE as PAGE

PAGES = 3
#: Where words of both widths overlap, and at the edges of pages.
PLACES = (0, 4, 8, PAGE - 8, PAGE - 4, PAGE, PAGES * PAGE - 8)
UPDATES = {
    "swap": lambda _old, value: value,
    "fetch_add": lambda old, value: old + value,
    "fetch_sub": lambda old, value: old - value,
    "fetch_and": lambda old, value: old & value,
    "fetch_or": lambda old, value: old | value,
    "fetch_xor": lambda old, value: old ^ value,
}
orders = st.sampled_from(["seq_cst", "acq_rel", "acquire", "release", "relaxed"])
widths = st.sampled_from([4, 8])
values = st.one_of(
    st.sampled_from([-1, 0, 1, 2**32 - 1, 2**32, 2**64 - 1, 2**64]), st.integers(0, 2**64)
)


class AtomicMachine(RuleBasedStateMachine):
    """The model is the bytes of the file, and the pages that a flush has to write."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "file")
        self.model = bytearray(PAGES * PAGE)
        self.dirty = set()
        with open(self.path, "wb") as file:
            file.write(self.model)
        self.manager = start_blocking_portal("asyncio")
        self.portal = self.manager.__enter__()

        async def start():
            return await aiommap.open(self.path, "r+")

        self.file = self.portal.call(start)

    def place(self, place, width, array):
        """Return the object, leading arguments and offset of an operation on a word or an array."""
        offset = place - place % width
        if array:
            words = self.file.atomic_u32_array if width == 4 else self.file.atomic_u64_array
            return words(0, PAGES * PAGE // width), (offset // width,), offset
        return (self.file.atomic_u32 if width == 4 else self.file.atomic_u64)(offset), (), offset

    def get(self, offset, width):
        return int.from_bytes(self.model[offset : offset + width], "little")

    def put(self, offset, width, value):
        self.model[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        self.dirty.add(offset // PAGE)

    @rule(
        name=st.sampled_from(sorted(UPDATES)),
        place=st.sampled_from(PLACES),
        width=widths,
        value=values,
        order=orders,
        array=st.booleans(),
    )
    def update(self, name, place, width, value, order, array):
        target, index, offset = self.place(place, width, array)
        act = getattr(target, name)
        if not 0 <= value < 1 << 8 * width:
            with pytest.raises(OverflowError, match="no unsigned integer"):
                act(*index, value, order=order)
            return
        old = self.get(offset, width)
        assert act(*index, value, order=order) == old
        self.put(offset, width, UPDATES[name](old, value))

    @rule(
        place=st.sampled_from(PLACES), width=widths, value=values, order=orders, array=st.booleans()
    )
    def store(self, place, width, value, order, array):
        target, index, offset = self.place(place, width, array)
        fits = 0 <= value < 1 << 8 * width
        if not fits or order in ("acquire", "acq_rel"):
            with pytest.raises((OverflowError, ValueError), match=r"no unsigned|means nothing"):
                target.store(*index, value, order=order)
            return
        assert target.store(*index, value, order=order) is None
        self.put(offset, width, value)

    @rule(place=st.sampled_from(PLACES), width=widths, new=values, hit=st.booleans(), order=orders)
    def compare(self, place, width, new, hit, order):
        target, index, offset = self.place(place, width, False)
        new %= 1 << 8 * width
        old = self.get(offset, width)
        expected = old if hit else (old + 1) % (1 << 8 * width)
        assert target.compare_exchange(*index, expected, new, order=order) == (hit, old)
        if hit:
            self.put(offset, width, new)

    @rule(place=st.sampled_from(PLACES), data=st.binary(min_size=1, max_size=8))
    def write(self, place, data):
        data = data[: PAGES * PAGE - place]
        self.portal.call(self.file.write, place, data)
        self.model[place : place + len(data)] = data
        self.dirty |= {place // PAGE, (place + len(data) - 1) // PAGE}

    @rule()
    def flush(self):
        self.portal.call(self.file.flush)
        self.dirty.clear()

    @rule(pages=st.integers(PAGES, 400))
    def grow(self, pages):
        """The mapping moves, and the words go on working."""
        self.portal.call(self.file.resize, pages * PAGE)
        self.portal.call(self.file.resize, PAGES * PAGE)

    @invariant()
    def the_file_is_the_model(self):
        with open(self.path, "rb") as file:
            assert file.read() == self.model

    @invariant()
    def what_was_changed_is_dirty(self):
        found = self.file._mapping.dirty_runs()
        pages = {page for start, end in found for page in range(start // PAGE, -(-end // PAGE))}
        assert pages == self.dirty

    def teardown(self):
        self.portal.call(self.file.aclose)
        self.manager.__exit__(None, None, None)
        self.folder.cleanup()


@pytest.mark.slow
def test_words_behave_like_integers():
    run_state_machine_as_test(
        AtomicMachine,
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True),
    )
