"""For the reference: sections of our docstrings that Google's style lacks, and public names only.

Such sections become paragraphs, and arguments that share a line get a line each. Private bases are
left out, and a default that is a private constant is shown by its value.
"""

from __future__ import annotations

import re

import griffe

SECTION = re.compile(r"^(Cancellation|Durability|Concurrency|Source): ", re.MULTILINE)
#: Google's own sections; griffe takes them for text if there is no empty line above.
KNOWN = re.compile(r"(?<!\n)\n(?=(?:Args|Attributes|Raises|Returns|Yields):\n)")
SHARED = re.compile(
    r"^(?P<indent> +)(?P<names>[a-z_]+(?:, [a-z_]+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)$",
    re.MULTILINE,
)


def apart(found: re.Match[str]) -> str:
    """Repeat the text for each of the arguments."""
    names = found["names"].split(", ")
    return "\n".join(f"{found['indent']}{name}: {found['text']}" for name in names)


class Sections(griffe.Extension):
    """Rewrites docstrings, bases and defaults before they are shown."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = SHARED.sub(apart, KNOWN.sub("\n\n", obj.docstring.value))
            obj.docstring.value = SECTION.sub(r"\n**\1:** ", text)

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Rewrite bases and defaults, once all modules are known."""
        public = set(pkg.exports or ())
        for obj in everything(pkg):
            if isinstance(obj, griffe.Class):
                obj.bases = [base for base in obj.bases if is_public(base, public)]
            elif isinstance(obj, griffe.Function):
                for parameter in obj.parameters:
                    parameter.default = shown_default(pkg, parameter.default)


def everything(module: griffe.Module) -> list[griffe.Object]:
    """List all objects of a package, without imported ones."""
    found: list[griffe.Object] = []
    waiting: list[griffe.Object] = [module]
    while waiting:
        obj = waiting.pop()
        found.append(obj)
        waiting += [member for member in obj.members.values() if not member.is_alias]
    return found


def is_public(base: str | griffe.Expr, public: set[str]) -> bool:
    """Tell whether to show a base: one of our public names, or a name of another package."""
    path = base if isinstance(base, str) else base.canonical_path
    return not path.startswith("aiommap.") or path.rpartition(".")[2] in public


def shown_default(
    package: griffe.Module, default: str | griffe.Expr | None
) -> str | griffe.Expr | None:
    """Return the value of a private constant instead of its name."""
    if not isinstance(default, griffe.ExprName):
        return default
    path = default.canonical_path
    if not path.startswith("aiommap.") or not path.rpartition(".")[2].strip("_").isupper():
        return default
    constant = package[path.removeprefix("aiommap.")]
    return constant.value if isinstance(constant, griffe.Attribute) else default
