"""Fixtures for followed paths: a good first file, and the errors reported about bad ones."""

from __future__ import annotations

import pytest

from tests.support.following import Errors


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "table"
    made.write_bytes(b"good 0")
    return made


@pytest.fixture
def errors():
    return Errors()
