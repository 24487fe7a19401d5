"""``import aiommap`` offers exactly ``__all__``, under public names, and documented."""

from __future__ import annotations
import __future__

import ast
import dataclasses
import inspect
import pickle
import types
from pathlib import Path

import pytest

import aiommap
import aiommap.remote

PUBLIC = {name: getattr(aiommap, name) for name in aiommap.__all__}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
COMMANDS = Path(aiommap.__file__).parent / "_cli"
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


def kind_and_name(name):
    """Order constants before classes before functions, and each kind by name."""
    kind = 0 if name.isupper() else 1 if inspect.isclass(PUBLIC[name]) else 2
    return kind, name


def members():
    """Yield each public class with the public members that it and its private bases define."""
    for name, cls in CLASSES.items():
        ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "aiommap"]
        for member in sorted({key for base in ours for key in vars(base)}):
            if not member.startswith("_"):
                yield pytest.param(cls, member, id=f"{name}.{member}")


def test_help_begins_with_what_is_needed_first():
    listed = [line.split()[0] for line in aiommap.__doc__.splitlines() if line.startswith("    ")]
    names = listed[listed.index("open") :]
    assert names[:4] == ["open", "MappedFile", "View", "follow"]
    assert sorted(set(names) - set(aiommap.__all__)) == []


def test_all_is_a_sorted_tuple():
    assert isinstance(aiommap.__all__, tuple)
    assert list(aiommap.__all__) == sorted(set(aiommap.__all__), key=kind_and_name)


def test_all_has_every_public_name():
    bound = {
        name
        for name, value in vars(aiommap).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType | __future__._Feature)
    }
    assert bound == set(aiommap.__all__)


def test_package_only_renames_definitions():
    tree = ast.parse(Path(aiommap.__file__).read_bytes())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    assert {alias.name for node in imports for alias in node.names} == set(aiommap.__all__)


@pytest.mark.parametrize("name", {**CLASSES, **FUNCTIONS})
def test_names_say_they_come_from_the_package(name):
    assert PUBLIC[name].__module__ == "aiommap"
    assert PUBLIC[name].__qualname__ == name
    assert pickle.loads(pickle.dumps(PUBLIC[name])) is PUBLIC[name]


@pytest.mark.parametrize("name", CLASSES)
def test_bases_say_they_come_from_the_package(name):
    """Also bases in C: ``help`` names them, and so do the reprs of inherited members."""
    modules = {base.__module__ for base in CLASSES[name].__mro__}
    assert {module for module in modules if module.startswith("aiommap")} == {"aiommap"}


@pytest.mark.parametrize("name", {**CLASSES, **FUNCTIONS})
def test_classes_and_functions_have_docstrings(name):
    # Not inspect.getdoc, which would also accept the docstring of a base class.
    assert (PUBLIC[name].__doc__ or "").strip()


@pytest.mark.parametrize(("cls", "member"), [*members()])
def test_members_are_documented(cls, member):
    """Methods and properties have docstrings; plain attributes are in the one of the class."""
    value = inspect.getattr_static(cls, member)
    if inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod):
        assert (inspect.getdoc(value) or "").strip()
    elif not hasattr(cls, "__members__"):
        assert f"    {member}: " in inspect.getdoc(cls)


@pytest.mark.parametrize("name", [n for n, cls in CLASSES.items() if dataclasses.is_dataclass(cls)])
def test_dataclass_fields_are_documented(name):
    text = inspect.getdoc(CLASSES[name])
    for field in dataclasses.fields(CLASSES[name]):
        assert f"    {field.name}: " in text


def test_commands_use_public_names_only():
    """The commands are examples of the library's use, so users can do all that they do."""
    for source in COMMANDS.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "aiommap":
                assert node.attr in PUBLIC, f"{source.name}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom) and not node.level:
                below = (node.module or "").startswith("aiommap.")
                assert not below or node.module == "aiommap.remote", source.name
                if below:
                    assert {alias.name for alias in node.names} <= {*aiommap.remote.__all__}
                if node.module == "aiommap":
                    assert {alias.name for alias in node.names} <= PUBLIC.keys(), source.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, f"{source.name}:{node.lineno}"
