"""What tests of pages in memory share."""

from __future__ import annotations

import os

import pytest

from aiommap import PAGE_SIZE as PAGE
from tests.support.pages import COLD_PAGES, drop_pages, resident_pages


@pytest.fixture
def cold(tmp_path):
    """A file none of whose pages is in memory."""
    path = tmp_path / "cold"
    path.write_bytes(os.urandom(COLD_PAGES * PAGE))
    drop_pages(path)
    if resident_pages(path):
        pytest.skip("this file system keeps the pages of a file in memory")
    return path
