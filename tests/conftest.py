"""Fixtures that every test shares: the three event loops, files, and how to change them outside."""

from __future__ import annotations

import subprocess

import pytest

import aiommap

PAGE = aiommap.PAGE_SIZE


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    """A file of sixteen pages, each filled with its own letter."""
    made = tmp_path / "file"
    made.write_bytes(b"".join(bytes([65 + i]) * PAGE for i in range(16)))
    return made


@pytest.fixture
def outside():
    """Truncate a file from another process."""

    def truncate(path, size):
        subprocess.run(["truncate", "-s", str(size), str(path)], check=True)

    return truncate
