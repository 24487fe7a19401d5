"""Fixtures for logs: a folder, and a check of each log by a reader in pure Python."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.support.logs import pure_records


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def in_memory():
    """A folder in memory, whose syncs take no time, for tests that open hundreds of logs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as home:
        yield Path(home) / "log"


@pytest.fixture(autouse=True)
def read_back_in_pure_python(tmp_path, request):
    """Read each log that a test left behind with the reader of the examples, too."""
    yield
    if request.node.get_closest_marker("damaged"):
        return
    for control in sorted(tmp_path.glob("*/control")):
        numbers = [sequence for sequence, _, _ in pure_records(control.parent)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
