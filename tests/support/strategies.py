"""Hypothesis strategies that several tests share, biased to the edges where bounds go wrong."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from aiommap import PAGE_SIZE as PAGE

#: The largest offset that a file can have, and the number at which 64-bit sums wrap.
LARGEST, WRAP = 2**63 - 1, 2**64


def edges(limit):
    """Return the numbers at which a bounds check against a limit can go wrong."""
    around_page = (PAGE - 1, PAGE, PAGE + 1)
    around_limit = (limit - 1, limit, limit + 1)
    numbers = (-LARGEST - 1, -1, 0, 1, *around_page, *around_limit, LARGEST, LARGEST + 1, WRAP)
    return tuple(sorted(set(numbers)))


def numbers(limit):
    """Offsets and lengths, one half of them edges."""
    return st.one_of(st.sampled_from(edges(limit)), st.integers(0, 2 * limit))


@st.composite
def windows(draw, universe, *, shortest=0):
    """Half-open ranges ``(offset, end)`` within [0, universe)."""
    offset = draw(st.integers(0, universe - shortest))
    return offset, draw(st.integers(offset + shortest, universe))


@st.composite
def disjoint_windows(draw, universe):
    """Ranges within [0, universe) in ascending order, none empty and no two touching."""
    bounds = sorted(draw(st.sets(st.integers(0, universe), max_size=16)))
    return tuple(zip(bounds[0::2], bounds[1::2], strict=False))


def examples(count):
    """Scale a number of examples by the default number of this run, which is 100 in a whole run."""
    return max(1, count * settings().max_examples // 100)
