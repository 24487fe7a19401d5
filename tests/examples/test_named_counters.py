"""The example of counters by name, run as a user runs it, and with workers that die."""

from __future__ import annotations

import subprocess
import sys

import pytest

import aiommap
from tests.support.example_scripts import EXAMPLES, load

SCRIPT = EXAMPLES / "named_counters.py"
pytestmark = pytest.mark.anyio


@pytest.mark.slow
def test_counters_of_all_workers(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "counters"), "--workers", "3"]
    done = subprocess.run(
        [*command, "--rounds", "2000"], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "requests: 6000",
        "worker 0: 2000",
        "worker 1: 2000",
        "worker 2: 2000",
        "workers done: 3",
    ]


async def test_names_are_found_again(tmp_path):
    named_counters = load(SCRIPT)
    path = tmp_path / "counters"
    async with aiommap.open(path, "w+", size=64 + 3 * 64) as file:
        first, second = (named_counters.NamedCounters(file) for _ in range(2))
        (await first.get("a")).fetch_add(5)
        (await second.get("b")).fetch_add(7)
        (await second.get("a")).fetch_add(1)
        assert await first.get("a") is await first.get("a")
        assert dict(await first.items()) == {"a": 6, "b": 7}
        await first.get("µ")
        for name in ("full", "", "x" * 56):
            with pytest.raises(ValueError, match="no room for"):
                await first.get(name)
    async with aiommap.open(path, "r+") as file:
        assert dict(await named_counters.NamedCounters(file).items()) == {"a": 6, "b": 7, "µ": 0}


async def test_slot_half_made_is_made_again(tmp_path):
    """The file is as a process leaves it that dies between its two stores."""
    named_counters = load(SCRIPT)
    async with aiommap.open(tmp_path / "counters", "w+", size=64 + 3 * 64) as file:
        await file.write(64, b"\xff" * 64)
        counters = named_counters.NamedCounters(file)
        assert dict(await counters.items()) == {}
        (await counters.get("a")).fetch_add(1)
        assert dict(await counters.items()) == {"a": 1}
