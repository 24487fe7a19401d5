"""Rules of tests: short names that begin with the operation, and one place for private names."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
SEAM = TESTS / "support" / "internals.py"
HERE = Path(__file__)
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("*.py"))}
FILES = [path for path in SOURCES if path.name.startswith("test_")]

#: Also in scripts, which tests run in other processes.
PRIVATE_IMPORT = re.compile(
    r"\bfrom aiommap\._\w|\bimport aiommap\._\w|\bfrom aiommap import [^\n]*(?<!\w)_\w"
)
TEST = re.compile(r"^(?:    )?(?:async )?def (test_\w+)\(", re.MULTILINE)

MOST_PRIVATE_IMPORTS = 23
LONGEST_MEDIAN = 35


def test_files_stand_in_folders():
    assert [path.name for path in FILES if path.parent == TESTS] == []


def test_files_have_names_of_their_own():
    assert [name for name, count in Counter(p.name for p in FILES).items() if count > 1] == []


def test_names_are_short():
    names = [name for path in FILES for name in TEST.findall(SOURCES[path])]
    assert len(names) > 1000
    assert statistics.median(map(len, names)) <= LONGEST_MEDIAN


def test_private_imports_are_few():
    found = {
        str(path.relative_to(TESTS)): count
        for path, text in SOURCES.items()
        if path != HERE and (count := len(PRIVATE_IMPORT.findall(text)))
    }
    assert found.pop("support/internals.py") > 0
    # These two have to run without the modules that the helpers load.
    assert set(found) <= {"cli/test_cli.py", "cli/test_completion.py"}
    assert len(PRIVATE_IMPORT.findall(SOURCES[SEAM])) + sum(found.values()) <= MOST_PRIVATE_IMPORTS


def test_no_test_syncs_the_machine():
    """It would make other tests' files durable, and their file systems write."""
    found = [p for p, text in SOURCES.items() if p != HERE and "os.sync" in text]
    assert found == []


def test_core_is_reached_at_one_place():
    core = re.compile(r"(?<!aiommap)\._core\b")
    assert [p for p, text in SOURCES.items() if p not in (SEAM, HERE) and core.search(text)] == []
