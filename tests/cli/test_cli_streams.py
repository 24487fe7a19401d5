"""The command line with standard streams that were closed before it began."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "closed", [*(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-")), ">&- 2>&-"]
)
@pytest.mark.parametrize(
    "arguments",
    [["residency"], pytest.param(["info", "--json"], marks=pytest.mark.slow)],
    ids=["residency", "info --json"],
)
def test_closed_streams_take_writes(path, arguments, closed):
    missing = path.with_name("missing")
    for name, code in ((path, 0), (missing, 1)):
        command = [sys.executable, "-m", "aiommap", *arguments, name]
        line = ["/bin/sh", "-c", f'"$@" {closed}', "sh", *command]
        result = subprocess.run(line, capture_output=True, check=False, text=True, timeout=150)
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
