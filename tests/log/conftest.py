"""Fixtures of the logs: a folder, and the pure reader over whatever a test wrote."""

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
    """A folder whose syncs take no time, for tests that make hundreds."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as home:
        yield Path(home) / "log"


@pytest.fixture(autouse=True)
def read_back_in_pure_python(tmp_path, request):
    """Read every log that the test left behind with the reader of the examples, too."""
    yield
    if request.node.get_closest_marker("damaged"):
        return
    for control in sorted(tmp_path.glob("*/control")):
        numbers = [sequence for sequence, _, _ in pure_records(control.parent)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
