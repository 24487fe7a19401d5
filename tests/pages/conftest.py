"""Fixtures for the tests of pages in memory."""

from __future__ import annotations

import pytest

from tests.support.pages import COLD_PAGES, make_cold


@pytest.fixture
def cold(tmp_path):
    """A file with no page in memory."""
    return make_cold(tmp_path / "cold", COLD_PAGES)
