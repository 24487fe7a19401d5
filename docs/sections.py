"""For the site: sections of our docstrings that Google's style does not know stand out."""

from __future__ import annotations

import re

import griffe

SECTION = re.compile(r"^(Cancellation|Durability|Concurrency|Source): ", re.MULTILINE)


class Sections(griffe.Extension):
    """Gives each of these sections a paragraph of its own."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(r"\n**\1:** ", obj.docstring.value)
