"""Fixtures of real disks that fail or fill up."""

from __future__ import annotations

import pytest

from tests.support.devices import DEVICE_BYTES, make_disk


@pytest.fixture
def disk(tmp_path):
    yield from make_disk(tmp_path, DEVICE_BYTES)


@pytest.fixture
def small_disk(tmp_path):
    yield from make_disk(tmp_path, 4 << 20)
