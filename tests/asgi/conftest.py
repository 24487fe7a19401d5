"""The folder that most tests serve."""

from __future__ import annotations

import pytest

from tests.support.asgi import CONTENT


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "www"
    made.mkdir()
    (made / "data.bin").write_bytes(CONTENT)
    return made
