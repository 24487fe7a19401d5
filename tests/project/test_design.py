"""docs/design.md is true: its tables of modules, and the places where its invariants are kept.

``python -m tests.project.test_design`` writes three tables: the wings, from the roof down, with
their imports; the modules of each wing; and the C sources with their includes. It keeps the column
of responsibilities, which is written by hand.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.project.test_layering import ENTRIES, PACKAGE, entries_imported

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "design.md"

WINGS = "| `src/aiommap/` | responsibility | imports |\n|---|---|---|\n"
MODULES = "| module | responsibility |\n|---|---|\n"
C_SOURCES = "| `src/aiommap/_csrc/` | responsibility | includes |\n|---|---|---|\n"
INVARIANT = re.compile(
    r"^\| \*\*(?P<name>I\d+)\*\* \|[^|]*\|(?P<kept>[^|]*)\|(?P<tested>[^|]*)\|$", re.MULTILINE
)
QUOTED = re.compile(r"`([^`]+)`")
#: How a module's head numbers an invariant of its own, and how one is cited: ``flusher.3``.
OWN_INVARIANT = re.compile(r"^(?:  | \*   )(\d+)  ", re.MULTILINE)
CITED = re.compile(r"(?<![\w./\"-])(?P<name>[a-z][a-z_]+)\.(?P<number>\d+)(?![\w\"])")
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)

MISSING = "TODO: what is it for?"


def read():
    return PAGE.read_text(encoding="utf-8")


def lines_of(text, head):
    """Return the rows below the head of a table."""
    start = text.index(head) + len(head)
    return text[start : text.index("\n\n", start)].splitlines()


def rows_of(text, head):
    """Return the rows as (names of files, responsibility)."""
    cells = [[cell.strip() for cell in line.split("|")] for line in lines_of(text, head)]
    return [(tuple(QUOTED.findall(files)), duty) for _, files, duty, *_ in cells]


def line_of(files, duty, column):
    cells = [", ".join(f"`{name}`" for name in files), duty, " ".join(f"`{x}`" for x in column)]
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def replace(text, head, lines):
    return text.replace("\n".join([head[:-1], *lines_of(text, head)]), head + "\n".join(lines))


def file_of(entry):
    """Return the name of an entry in the table."""
    if (PACKAGE / entry).is_dir():
        return f"{entry}/"
    return f"{entry}.py" if (PACKAGE / f"{entry}.py").exists() else f"{entry}.pyi"


def with_true_wings(text):
    duties = dict(rows_of(text, WINGS))
    lines = []
    for entry in ENTRIES:
        found, files = entries_imported(entry), (file_of(entry),)
        column = [other for other in ENTRIES if other in found]
        lines.append(line_of(files, duties.get(files, MISSING), column))
    return replace(text, WINGS, lines)


def with_true_modules(text):
    """List the modules of the private wings, a wing after the other, by name."""
    duties = dict(rows_of(text, MODULES))
    wings = [entry for entry in ENTRIES if (PACKAGE / entry).is_dir() and entry[0] == "_"]
    wings.remove("_cli")  # its modules are its commands
    paths = [path for wing in wings for path in sorted((PACKAGE / wing).rglob("*.py"))]
    names = [str(path.relative_to(PACKAGE)) for path in paths if path.name != "__init__.py"]
    lines = [f"| `{name}` | {duties.get((name,), MISSING)} |" for name in names]
    return replace(text, MODULES, lines)


def included(file):
    """Yield the headers that a C source includes, by their names in the table."""
    path = PACKAGE / "_csrc" / file
    for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
        yield os.path.relpath(path.parent / name, PACKAGE / "_csrc")


def with_true_includes(text):
    rows = rows_of(text, C_SOURCES)
    order = [name for files, _ in rows for name in files]
    lines = []
    for files, duty in rows:
        found = {name for file in files for name in included(file)} - set(files)
        lines.append(line_of(files, duty, sorted(found, key=order.index)))
    return replace(text, C_SOURCES, lines)


def test_wings_are_listed_with_imports():
    assert read() == with_true_wings(read()), "run `python -m tests.project.test_design`"


def test_modules_of_each_wing_are_listed():
    assert read() == with_true_modules(read()), "run `python -m tests.project.test_design`"


def test_c_sources_are_listed_with_includes():
    listed = [name for files, _ in rows_of(read(), C_SOURCES) for name in files]
    assert sorted(listed) == sorted(
        str(path.relative_to(PACKAGE / "_csrc")) for path in (PACKAGE / "_csrc").rglob("*.[ch]")
    )
    assert read() == with_true_includes(read()), "run `python -m tests.project.test_design`"


@pytest.mark.parametrize("head", [WINGS, MODULES, C_SOURCES], ids=["wings", "modules", "c"])
def test_modules_have_a_responsibility(head):
    assert [files for files, duty in rows_of(read(), head) if duty in ("", MISSING)] == []


def own_invariants():
    """Return (name, numbers) of each file that numbers invariants of its own."""
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".h"):
            _, _, rest = path.read_text(encoding="utf-8").partition("Invariants.\n")
            if numbers := OWN_INVARIANT.findall(rest):
                yield path.stem.lstrip("_"), [int(number) for number in numbers]


def texts_that_cite():
    """Yield all texts that may cite an invariant of a module: sources, tests and the page."""
    for folder in (PACKAGE, ROOT / "tests"):
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".pyi", ".c", ".h") and path != Path(__file__):
                yield path, path.read_text(encoding="utf-8")
    yield PAGE, read()


def test_own_invariants_are_numbered_from_one():
    assert [
        (name, found) for name, found in own_invariants() if found != [*range(1, len(found) + 1)]
    ] == []


def test_own_invariants_have_one_file_a_name():
    names = [name for name, _ in own_invariants()]
    assert sorted(names) == sorted({*names})


def test_cited_invariants_exist():
    owned = {name: len(numbers) for name, numbers in own_invariants()}
    cited = [
        (str(path.relative_to(ROOT)), found[0])
        for path, text in texts_that_cite()
        for found in CITED.finditer(text)
        if not 1 <= int(found["number"]) <= owned.get(found["name"], 0)
    ]
    assert cited == []


INVARIANTS = {found["name"]: found for found in INVARIANT.finditer(read())}


def test_every_invariant_has_a_row():
    assert list(INVARIANTS) == [f"I{number}" for number in (*range(1, 13), 14, 15, 16)]


@pytest.mark.parametrize("name", INVARIANTS)
def test_invariants_name_files_that_exist(name):
    kept = QUOTED.findall(INVARIANTS[name]["kept"])
    tested = QUOTED.findall(INVARIANTS[name]["tested"])
    sources = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".c", ".h")]
    paths = [path.relative_to(PACKAGE) for path in sources]
    here = {
        str(name).removeprefix("_csrc/") for path in paths for name in (path, path.with_suffix(""))
    }
    tests = {path.name for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*")}
    assert kept
    assert tested
    assert [module for module in kept if module not in here] == []
    assert [file for file in tested if file not in tests] == []


if __name__ == "__main__":
    PAGE.write_text(
        with_true_includes(with_true_modules(with_true_wings(read()))), encoding="utf-8"
    )
