"""A mark for tests that a sanitizer, preloaded by .ci/sanitize, leaves no room for."""

from __future__ import annotations

import os

import pytest

#: For tests in which mappings or address space are scarce.
without_asan = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer needs mappings, too"
)
