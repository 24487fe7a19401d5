"""Fixtures for the tests of files."""

from __future__ import annotations

import gc

import pytest

from tests.support.pages import pinned


@pytest.fixture
def nothing_pinned():
    """Collect garbage of earlier tests if it still keeps pages locked."""
    if pinned() != "0":
        gc.collect()
