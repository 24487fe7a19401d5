"""Quantiles of a histogram compared with a sorted list."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.internals import RATIO, Histogram

values = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=60)


@settings(deadline=None)
@given(values=values, share=st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_quantile_is_within_one_bucket(values, share):
    found = Histogram()
    for value in values:
        found.record(value)
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert exact / RATIO <= found.quantile(share) <= exact * RATIO
    assert found.maximum == max(values)
    assert found.count == len(values)
    assert found.total == pytest.approx(sum(values))  # sum() rounds less since Python 3.12


def test_quantile_of_nothing_is_zero():
    assert Histogram().quantile(0.5) == 0.0
    assert Histogram().maximum == 0.0
