"""The soak itself: it runs, and each of its oracles can fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def soak(*arguments, seconds=3.0):
    """Run the soak in another process, so that it counts no threads and objects of the tests."""
    command = [sys.executable, "-m", "benchmarks", "soak", "--minutes", str(seconds / 60)]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=170
    )


def test_soak_loses_and_leaks_nothing(tmp_path):
    done = soak("--seed", "11", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "soak: seed 11, 3 s, loops asyncio, uvloop, trio"
    assert lines[-1].split() == "0 failures, seed 11".split()
    assert os.listdir(tmp_path) == []


#: For each sabotage, a pattern of the failure that the soak prints.
BROKEN = {
    "lost-write": r"journal: journal: \d+ acknowledged bytes lost, the first at 9831\d",
    "lost-record": r"killed: of \d+ records .* some are lost",
    "late-write": r"storm: slot 0: changed after the verb ended",
    "mixed-table": r"replacements: .*file \d+ is mixed up with another",
    "mixed-folder": r"folders: .*a folder of several versions is served: \[-1, .*",
    "lost-change": r"watched: a change is missing between .*",
    "wrong-read": r"truncations: read \d+\+\d+ of a cut file is made up",
    "made-up": r"resizes: .* at \d+: kept bytes are made up",
    "miscount": r"counters: counted to 181 by fetch_add, not 180",
    "torn-record": r"logs: acknowledged records cannot be read: .* is damaged",
    "descriptor": r"leaked 1 descriptors: socket",
    "mapping": r"leaked the mapping .*hostage",
    "thread": r"leaked 1 threads",
    "object": r"leaked 1 objects: Hub",
}


def test_soak_finds_each_sabotage():
    """A soak whose oracles cannot fail proves nothing."""
    done = soak("--loop", "asyncio", *(f"--sabotage={name}" for name in BROKEN), seconds=3.0)
    assert done.returncode == 1, done.stdout + done.stderr
    missed = [
        name for name, told in BROKEN.items() if not re.search(f"FAILED .*{told}", done.stdout)
    ]
    assert not missed, done.stdout


def test_soak_tries_every_sabotage():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "soak", "--help"], cwd=ROOT, capture_output=True
    )
    choices = "{" + ",".join(BROKEN) + "}"
    assert f"--sabotage {choices}".encode() in done.stdout
