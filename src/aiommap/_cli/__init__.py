"""The ``aiommap`` command: a thin user of the public API, and of nothing below it."""

from ._main import main as main

__all__ = ("main",)
