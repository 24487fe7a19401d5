"""The ``aiommap`` command: a thin layer over the public API; it uses nothing private."""

from ._main import main as main

__all__ = ("main",)
