"""The house: which wings there are, and that imports run down only.

A new module of the package, or a new folder, gets an entry in ``FLOORS``. Imports under
``TYPE_CHECKING`` and inside functions count like all others.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "aiommap"

#: Five features. Each knows what is below it and nothing of the other four.
FEATURES = ("_watch", "_flush", "_pages", "_ipc", "_allocation")

#: From the roof down. An entry imports from lower floors only, never from its own.
FLOORS = (
    ("__main__",),
    ("_cli",),
    ("testing", "numpy", "prometheus", "opentelemetry", "asgi", "remote"),
    ("__init__",),
    ("_remote",),
    ("_log",),
    ("_storage",),
    ("_snapshot",),
    ("_hub",),
    ("_file",),
    FEATURES,
    ("_core",),
    ("_runtime",),
    ("_advice",),
    ("_native", "_logs", "_flush_policy"),
    ("_native_log", "_native_blocks"),
    ("_native_pool",),
    ("_arguments",),
    ("_ranges",),
    ("_errors", "_typing"),
)
ENTRIES = [entry for floor in FLOORS for entry in floor]

#: Modules that need no loop, file or clock, and are tested without them.
PURE = (
    "_errors.py",
    "_ranges.py",
    "_arguments.py",
    "_flush_policy.py",
    "_typing.py",
    "_allocation/table.py",
    "_core/file_state.py",
    "_core/kernel.py",
    "_core/own_activity.py",
    "_core/unsynced.py",
    "_flush/flush_queue.py",
    "_flush/histogram.py",
    "_flush/trigger.py",
    "_log/format.py",
    "_log/recovery.py",
    "_ipc/turns.py",
    "_pages/residency.py",
    "_remote/fetching.py",
    "_remote/layout.py",
    "_remote/source.py",
    "_remote/statistics.py",
    "_watch/attribution.py",
    "_watch/changes.py",
    "asgi/_requests.py",
)
IMPURE = {"anyio", "asyncio", "io", "mmap", "os", "pathlib", "socket", "threading", "time", "trio"}

#: Every way into another thread that Python and the event loops offer.
THREAD_DOORS = {"to_thread", "from_thread", "run_in_executor", "threading", "concurrent", "Thread"}


def sources(entry):
    """Find the files of one entry: a module, a stub, or all modules of a folder."""
    folder = PACKAGE / entry
    if folder.is_dir():
        return sorted(folder.rglob("*.py"))
    return [path for path in (PACKAGE / f"{entry}.py", PACKAGE / f"{entry}.pyi") if path.exists()]


@functools.cache
def nodes_of(path):
    """Return the nodes of a file's syntax tree that import something or name an attribute."""
    kinds = ast.Import | ast.ImportFrom | ast.Attribute
    return [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, kinds)]


def imported(path):
    """Yield the full name of every module, or name in a module, that a file imports."""
    package = ["aiommap", *path.relative_to(PACKAGE).parent.parts]
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def entry_of(name):
    """Return the entry that an imported name belongs to; None for names of other packages."""
    top, _, rest = name.partition(".")
    if top != "aiommap":
        return None
    first = rest.partition(".")[0]
    return first if first in ENTRIES else "__init__"


def entries_imported(entry):
    found = {entry_of(name) for path in sources(entry) for name in imported(path)}
    return found - {None, entry}


def own_module(name):
    """Return the file that an imported name is, or is in; None for names of other packages."""
    parts = name.split(".")
    if parts[0] != "aiommap":
        return None
    for end in (len(parts), len(parts) - 1):
        path = PACKAGE.joinpath(*parts[1:end])
        for file in (*map(path.with_suffix, (".py", ".pyi")), path / "__init__.py"):
            if file.exists():
                return file
    return None


def test_every_entry_has_a_floor():
    modules = {path.stem for pattern in ("*.py", "*.pyi") for path in PACKAGE.glob(pattern)}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(ENTRIES) == sorted(modules | folders)


@pytest.mark.parametrize("floor", range(len(FLOORS)), ids=lambda floor: FLOORS[floor][0])
def test_imports_run_down_only(floor):
    below = {entry for lower in FLOORS[floor + 1 :] for entry in lower}
    for entry in FLOORS[floor]:
        assert entries_imported(entry) <= below


@pytest.mark.parametrize("feature", FEATURES)
def test_no_feature_imports_another(feature):
    assert not entries_imported(feature) & set(FEATURES)


def test_native_names_are_imported_one_by_one():
    """So a file names what it uses, and does not import its own package."""
    paths = [path for entry in ENTRIES for path in sources(entry)]
    assert [path for path in paths if "aiommap._native" in imported(path)] == []


def test_no_modules_import_in_a_circle():
    imports = {
        path: {own_module(name) for name in imported(path)} - {None, path}
        for path in PACKAGE.rglob("*.py*")
        if path.suffix in (".py", ".pyi")
    }
    left = dict(imports)
    while ready := [path for path, needs in left.items() if not needs & left.keys()]:
        for path in ready:
            del left[path]
    assert [str(path.relative_to(PACKAGE)) for path in left] == []


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_touch_nothing_impure(module):
    names = set(imported(PACKAGE / module))
    assert not {name.partition(".")[0] for name in names} & IMPURE
    own = {own_module(name) for name in names} - {None}
    assert {str(path.relative_to(PACKAGE)) for path in own} <= set(PURE)


def test_one_wing_enters_threads():
    """The command line is left out: it is an application, and measures threads of its own."""
    found = set()
    for entry in set(ENTRIES) - {"_cli"}:
        for path in sources(entry):
            names = {part for name in imported(path) for part in name.split(".")}
            names |= {node.attr for node in nodes_of(path) if isinstance(node, ast.Attribute)}
            if names & THREAD_DOORS:
                found.add(entry)
    assert found == {"_runtime"}


def test_command_line_uses_public_names():
    assert entries_imported("_cli") == {"__init__", "remote"}


def writes_elsewhere(path):
    """Yield the attributes of other objects that a module assigns to."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Assign(targets=targets):
                pass
            case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
                targets = [target]
            case _:
                continue
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                match each:
                    case ast.Attribute(value=ast.Name(id="self" | "cls")):
                        pass
                    case ast.Attribute():
                        yield f"{path.name}:{each.lineno} {ast.unparse(each)}"


def test_state_has_one_writer():
    """Nearly all that are left are fields of native objects, or attributes that Python asks for."""
    found = [name for path in sorted(PACKAGE.rglob("*.py")) for name in writes_elsewhere(path)]
    assert len(found) <= 45, found
