"""The example of a shared metrics page, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.example_scripts import EXAMPLES

SCRIPT = EXAMPLES / "shared_counters.py"


@pytest.mark.slow
def test_count_requests_of_all_workers(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "metrics")]
    done = subprocess.run(
        [*command, "--workers", "3", "--requests", "2000"],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("requests", "6000"),
        *("errors", "60"),
        *("bytes", str(3 * 2 * sum(range(1000)))),
        *("busy", "0"),
        *("idle", "3"),
    ]
