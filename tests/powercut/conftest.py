"""Fixtures of the power cuts: the recorded disk, and what was acknowledged of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.powercut.mount import mounted
from tests.powercut.workload import acknowledging


@pytest.fixture
def anyio_backend():
    """A disk does not know which loop asks for it."""
    return "asyncio"


@pytest.fixture
def mount(tmp_path):
    with mounted(tmp_path) as mount:
        yield mount


@pytest.fixture
def said(mount):
    with acknowledging(mount.path) as said:
        yield said


@pytest.fixture
def cut_folder():
    """Where what a cut left is recovered: in memory, where a sync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder, "disk")
