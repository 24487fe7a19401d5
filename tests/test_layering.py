"""A module imports only from rows above its own; this table is the order of the layers.

A new module gets a row here, as high as what it imports allows. Imports under ``TYPE_CHECKING``
and inside functions count like all others.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "aiommap"

LAYERS = (
    "_errors",
    "_typing",
    "_ranges",
    "_arguments",
    "_ledger",
    "_policy",
    "_residency",
    "_change",
    "_change_buffer",
    "_own_changes",
    "_histogram",
    "_schedule",
    "_statistics",
    "_mapping_limit",
    "_native",
    "_receipt",
    "_advice",
    "_logs",
    "_observing",
    "_paths",
    "_kinds",
    "_leases",
    "_routes",
    "_blocks",
    "_threads",
    "_kept_threads",
    "_watch_set",
    "_looking",
    "_scanner",
    "_workers",
    "_lane",
    "_listeners",
    "_subscribers",
    "_watching",
    "_scheduler",
    "_opening",
    "_core",
    "_futex",
    "_atomics",
    "_file_locks",
    "_shared_verbs",
    "_async_lock",
    "_allocating",
    "_range_verbs",
    "_holes",
    "_read_ahead",
    "_chunks",
    "_reading",
    "_snapshot_file",
    "_paging",
    "_huge_pages",
    "_page_verbs",
    "_requests",
    "_flush",
    "_autoflush",
    "_writing",
    "_resizing",
    "_size_verbs",
    "_typed",
    "_reopening",
    "_closing",
    "_view",
    "_watch_verbs",
    "_file",
    "_hub",
    "_snapshot",
    "_following",
    "_follow",
    "_backend",
    "__init__",
    "opentelemetry",
    "prometheus",
    "testing",
    "_cli",
    "__main__",
)

#: Decided without a loop, a file or a clock, so that they are tested without them.
PURE = (
    "_errors",
    "_ranges",
    "_arguments",
    "_ledger",
    "_policy",
    "_residency",
    "_change",
    "_change_buffer",
    "_own_changes",
    "_histogram",
    "_schedule",
)
IMPURE = {"anyio", "asyncio", "io", "mmap", "os", "pathlib", "socket", "threading", "time", "trio"}

#: Every door into another thread that Python and the event loops offer.
THREAD_DOORS = {"to_thread", "from_thread", "run_in_executor", "threading", "concurrent", "Thread"}


def sources(entry):
    """Find the files of one row: a module, a stub, or all modules of a folder."""
    folder = PACKAGE / entry
    if folder.is_dir():
        return sorted(folder.rglob("*.py"))
    return [path for path in (PACKAGE / f"{entry}.py", PACKAGE / f"{entry}.pyi") if path.exists()]


def imported(path):
    """Yield the full name of every module, or name in a module, that a file imports."""
    package = ["aiommap", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def row_of(name):
    """Say which row an imported name belongs to; None for what is not of this package."""
    top, _, rest = name.partition(".")
    if top != "aiommap":
        return None
    first = rest.partition(".")[0]
    return first if first in LAYERS else "__init__"


def rows_imported(entry):
    return {row for path in sources(entry) for row in map(row_of, imported(path)) if row} - {entry}


def test_the_table_lists_every_module_once():
    modules = {path.stem for pattern in ("*.py", "*.pyi") for path in PACKAGE.glob(pattern)}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(LAYERS) == sorted(modules | folders)


@pytest.mark.parametrize("entry", LAYERS)
def test_a_module_imports_only_from_rows_above(entry):
    above = set(LAYERS[: LAYERS.index(entry)])
    assert rows_imported(entry) <= above


@pytest.mark.parametrize("entry", PURE)
def test_a_pure_module_touches_neither_loop_nor_file_nor_clock(entry):
    outside = {name.partition(".")[0] for path in sources(entry) for name in imported(path)}
    assert not outside & IMPURE
    assert rows_imported(entry) <= set(PURE)


def test_only_one_module_of_the_library_enters_threads():
    """The command line is an application on top: it measures against threads of its own."""
    found = set()
    for entry in set(LAYERS) - {"_cli"}:
        for path in sources(entry):
            names = {part for name in imported(path) for part in name.split(".")}
            nodes = ast.walk(ast.parse(path.read_bytes()))
            names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            if names & THREAD_DOORS:
                found.add(entry)
    assert found == {"_threads", "_workers"}


def test_the_command_line_uses_the_public_package_only():
    assert rows_imported("_cli") == {"__init__"}
