"""Tests for code that builds on aiommap; needs pytest, and is not loaded by ``import aiommap``."""

from __future__ import annotations

import pytest

# Before it is loaded, so that a failing assertion shows its values in a user's project, too.
pytest.register_assert_rewrite("aiommap.testing._storage_backend")

from ._storage_backend import StorageBackendSuite as StorageBackendSuite  # noqa: E402

__all__ = ("StorageBackendSuite",)

StorageBackendSuite.__module__ = __name__
