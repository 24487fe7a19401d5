"""The public names and their signatures are those of ``public_api.txt``.

``python -m tests.project.test_public_api`` writes the page anew. A line that disappears or changes
breaks programs of users: write it into the changelog first.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
from pathlib import Path

PAGE = Path(__file__).with_name("public_api.txt")
MODULES = (
    "aiommap",
    "aiommap.testing",
    "aiommap.numpy",
    "aiommap.prometheus",
    "aiommap.opentelemetry",
    "aiommap.remote",
    "aiommap.asgi",
)


def signature(thing):
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return "(...)"


def parameters(cls):
    """Render a constructor without its annotations, some of which name private classes."""
    if issubclass(cls, enum.Enum):  # its signature differs between Pythons
        return "(value)"
    try:
        found = inspect.signature(cls)
    except (TypeError, ValueError):
        return "(...)"
    bare = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return str(inspect.Signature(bare))


def kind_of(member):
    if isinstance(member, (property, inspect.types.GetSetDescriptorType)):
        return "property"
    if isinstance(member, inspect.types.MemberDescriptorType):
        return "attribute"
    function = getattr(member, "__func__", member)
    if not callable(function):
        return "attribute"
    prefix = "async " if inspect.iscoroutinefunction(function) else ""
    decorator = (
        f"{type(member).__name__} " if isinstance(member, (classmethod, staticmethod)) else ""
    )
    return f"{decorator}{prefix}def{signature(function)}"


def members(cls):
    """Yield the public members of a class, also what private bases of the library give it."""
    names = {
        name
        for base in cls.__mro__
        if base.__module__.startswith("aiommap")
        for name in vars(base)
        if not name.startswith("_")
    }
    if dataclasses.is_dataclass(cls):
        names |= {field.name for field in dataclasses.fields(cls)}
    for name in sorted(names):
        try:
            member = inspect.getattr_static(cls, name)
        except AttributeError:
            yield f"{name}: field"
            continue
        if isinstance(member, enum.Enum):
            yield f"{name} = {member.value!r}"
        else:
            yield f"{name}: {kind_of(member)}"


def lines():
    for module in MODULES:
        found = importlib.import_module(module)
        for name in sorted(found.__all__):
            thing = getattr(found, name)
            if inspect.isclass(thing):
                bases = [b.__name__ for b in thing.__mro__[1:] if not b.__name__.startswith("_")]
                yield f"{module}.{name}: class{parameters(thing)}: {', '.join(bases)}"
                yield from (f"{module}.{name}.{line}" for line in members(thing))
            elif callable(thing):
                yield f"{module}.{name}: {kind_of(thing)}"
            else:
                yield f"{module}.{name}: {type(thing).__name__}"


def test_public_names_and_signatures():
    assert list(lines()) == PAGE.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    PAGE.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
