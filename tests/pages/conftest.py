"""What tests of pages in memory share."""

from __future__ import annotations

import pytest

from tests.support.pages import COLD_PAGES, make_cold


@pytest.fixture
def cold(tmp_path):
    """A file none of whose pages is in memory."""
    return make_cold(tmp_path / "cold", COLD_PAGES)
