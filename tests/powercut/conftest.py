"""Fixtures of the power cuts: the recorded disk, and the acknowledgements."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.powercut.mount import mounted
from tests.powercut.workload import acknowledging


@pytest.fixture
def anyio_backend():
    """One loop is enough: a disk does not know which loop uses it."""
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
    """The folder where tests recover what a cut left: in memory, where a sync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder, "disk")
