"""docs/design.md says what is true: its table of modules, and where its invariants are kept.

``python tests/test_design.py`` writes the order and the imports of the table. What a module is for
is written by hand, and kept.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from test_layering import LAYERS, PACKAGE, rows_imported

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"

TABLE = re.compile(
    r"^\| `src/aiommap/` \| responsibility \| imports \|\n\|---\|---\|---\|\n(?P<rows>(?:\|.*\n)+)",
    re.MULTILINE,
)
ROW = re.compile(r"\| `(?P<name>[^`]+)`[^|]*\| (?P<duty>[^|]*?) \| ?(?P<imports>[^|]*?) ?\|")

INVARIANT = re.compile(
    r"^\| \*\*(?P<name>I\d+)\*\* \|[^|]*\|(?P<kept>[^|]*)\|(?P<tested>[^|]*)\|$", re.MULTILINE
)
QUOTED = re.compile(r"`([^`]+)`")

MISSING = "TODO: what is it for?"


def file_of(entry):
    """Say how the table names a row of the layers."""
    if (PACKAGE / entry).is_dir():
        return f"{entry}/"
    return f"{entry}.py" if (PACKAGE / f"{entry}.py").exists() else f"{entry}.pyi"


def imports_of(entry):
    found = rows_imported(entry)
    return " ".join(f"`{row}`" for row in LAYERS if row in found)


def table_of(text):
    """Read the table: rows of (file, responsibility, imports)."""
    found = TABLE.search(text)
    assert found, "docs/design.md has no table of modules"
    return [ROW.fullmatch(line).group("name", "duty", "imports") for line in rows_of(found)]


def rows_of(found):
    return found["rows"].splitlines()


def with_true_table(text):
    """Rewrite the table, with the responsibilities that it has."""
    duties = {name: duty for name, duty, _ in table_of(text)}
    rows = [
        f"| `{name}` | {duties.get(name, MISSING)} | {imports} |".replace("|  |", "| |")
        for name, imports in ((file_of(entry), imports_of(entry)) for entry in LAYERS)
    ]
    found = TABLE.search(text)
    return text[: found.start("rows")] + "\n".join(rows) + "\n" + text[found.end("rows") :]


def test_the_table_has_every_module_in_order_with_what_it_imports():
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_true_table(text), f"run `python tests/{Path(__file__).name}`"


def test_every_module_has_a_responsibility():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name, duty, _ in table_of(text) if duty in ("", MISSING)] == []


def test_every_c_source_is_in_the_other_table():
    text = PAGE.read_text(encoding="utf-8")
    sources = {path.name for path in (PACKAGE / "_csrc").iterdir()}
    start = text.index("| `src/aiommap/_csrc/` |")
    assert sources <= set(QUOTED.findall(text[start : text.index("\n\n", start)]))


INVARIANTS = {
    found["name"]: found for found in INVARIANT.finditer(PAGE.read_text(encoding="utf-8"))
}


def test_every_invariant_has_a_row():
    assert list(INVARIANTS) == [f"I{number}" for number in range(1, 13)]


@pytest.mark.parametrize("name", INVARIANTS)
def test_an_invariant_is_kept_by_modules_and_tested_by_files_that_exist(name):
    kept = QUOTED.findall(INVARIANTS[name]["kept"])
    tested = QUOTED.findall(INVARIANTS[name]["tested"])
    here = {path.name for path in PACKAGE.rglob("*.*")} | {path.stem for path in PACKAGE.rglob("*")}
    tests = {path.name for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*")}
    assert kept
    assert tested
    assert [module for module in kept if module.partition(".")[0] not in here] == []
    assert [file for file in tested if file not in tests] == []


if __name__ == "__main__":
    PAGE.write_text(with_true_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
