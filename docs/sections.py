"""For the site: what our docstrings have and Google's style does not know.

Some sections stand out as paragraphs, and arguments that share a line get one each.
"""

from __future__ import annotations

import re

import griffe

SECTION = re.compile(r"^(Cancellation|Durability|Concurrency|Source): ", re.MULTILINE)
SHARED = re.compile(
    r"^(?P<indent> +)(?P<names>[a-z_]+(?:, [a-z_]+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)$",
    re.MULTILINE,
)


def apart(found: re.Match[str]) -> str:
    """Repeat the text for each of the arguments."""
    names = found["names"].split(", ")
    return "\n".join(f"{found['indent']}{name}: {found['text']}" for name in names)


class Sections(griffe.Extension):
    """Rewrites docstrings before they are read."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = SHARED.sub(apart, obj.docstring.value)
            obj.docstring.value = SECTION.sub(r"\n**\1:** ", text)
