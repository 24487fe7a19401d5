"""Fixtures for the tests of files."""

from __future__ import annotations

import gc

import pytest

from tests.support.pages import locked_memory


@pytest.fixture
def nothing_locked():
    """Collect garbage of earlier tests if it still keeps pages locked."""
    if locked_memory() != "0":
        gc.collect()
