"""mypy, strict, infers the types of the public API that users should get."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aiommap

ROOT = Path(__file__).parents[2]
CHECKED = ROOT / "tests" / "typing" / "check_public.py"

needs_mypy = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed (extra: lint)"
)


@pytest.mark.slow
@needs_mypy
def test_types_of_the_public_api(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(CHECKED)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_is_checked():
    """Errors are left out: they differ in little but their names."""
    words = set(re.findall(r"\w+", CHECKED.read_text(encoding="utf-8")))
    left_out = [getattr(aiommap, name) for name in set(aiommap.__all__) - words]
    assert [value for value in left_out if not issubclass(value, aiommap.MappedFileError)] == []
