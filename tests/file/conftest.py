"""What tests of files share."""

from __future__ import annotations

import gc

import pytest

from tests.support.pages import pinned


@pytest.fixture
def nothing_pinned():
    """Let go of what tests before have left to the garbage collector."""
    if pinned() != "0":
        gc.collect()
