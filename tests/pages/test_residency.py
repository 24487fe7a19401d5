"""The arithmetic of residency: totals, cells and charts compared with a count byte by byte."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiommap import Residency
from tests.support.strategies import LARGEST, disjoint_windows

UNIVERSE = 60
#: An odd number, so that no division comes out even by accident.
ODD = 7 * 1021
NO_DEADLINE = settings(deadline=None)


def residency(runs, length, offset=0):
    """Make a residency as if a page had one byte."""
    placed = tuple((offset + start, offset + end) for start, end in runs)
    resident = sum(end - start for start, end in runs)
    return Residency(resident, length, placed, offset, length)


def shares(runs, length, width):
    """Compute the shares by counting ``width`` equal parts of each byte, one by one."""
    resident = {byte for start, end in runs for byte in range(start, end)}
    parts = [byte in resident for byte in range(length) for _ in range(width)]
    return tuple(sum(parts[i * length : (i + 1) * length]) / length for i in range(width))


def test_bytes_and_fraction_count_the_runs():
    found = residency([(10, 20), (30, 35)], length=60)
    assert found.resident_bytes == 15
    assert found.fraction == 0.25


def test_empty_range_counts_as_resident():
    found = residency([], length=0)
    assert (found.resident_bytes, found.fraction) == (0, 1.0)
    assert found.cells(3) == (1.0, 1.0, 1.0)
    assert found.chart(3) == "███"


@NO_DEADLINE
@given(
    runs=disjoint_windows(UNIVERSE),
    width=st.integers(1, UNIVERSE),
    offset=st.sampled_from([0, 1, ODD, LARGEST - UNIVERSE]),
)
def test_cells_agree_with_a_count(runs, width, offset):
    cells = residency(runs, UNIVERSE, offset).cells(width)
    assert cells == shares(runs, UNIVERSE, width)


@NO_DEADLINE
@given(runs=disjoint_windows(7), width=st.integers(8, 40))
def test_cells_outnumber_bytes(runs, width):
    assert residency(runs, length=7).cells(width) == shares(runs, 7, width)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 60])
@pytest.mark.parametrize("length", [1, 2, 60, ODD])
def test_chart_of_nothing_is_blank(width, length):
    found = residency([], length)
    assert found.chart(width) == " " * width


@pytest.mark.parametrize("width", [1, 2, 3, 7, 60])
@pytest.mark.parametrize("length", [1, 2, 60, ODD])
def test_chart_of_everything_is_full(width, length):
    found = residency([(0, length)], length)
    assert found.fraction == 1.0
    assert found.chart(width) == "█" * width


def test_chart_cells_blank_or_full_exactly():
    one_byte = residency([(0, 1)], length=1 << 20)
    all_but_one = residency([(1, 1 << 20)], length=1 << 20)
    assert one_byte.chart(1) == "▁"
    assert all_but_one.chart(1) == "▇"


def test_chart_steps_rise_with_the_share():
    charts = [residency([(0, n)], length=64).chart(1) for n in range(65)]
    assert charts == sorted(charts)
    assert set(charts) == set(" ▁▂▃▄▅▆▇█")


def test_chart_is_sixty_cells_wide():
    assert len(residency([(0, 30)], length=60).chart()) == 60


@pytest.mark.parametrize("width", [0, -1])
def test_chart_needs_a_cell(width):
    with pytest.raises(ValueError, match=rf"{width} cells: it needs at least 1"):
        residency([], length=60).chart(width)


def test_residency_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError, match="resident"):
        residency([], length=60).resident = 1
