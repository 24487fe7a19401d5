"""Choose how a command writes to standard output."""

from __future__ import annotations

import os
import sys

from ._screen import JsonScreen, Screen


def choose_screen(*, as_json: bool) -> Screen:
    """Return the screen for standard output: JSON if asked for, rich on a terminal, else plain."""
    if as_json:
        return JsonScreen(sys.stdout)
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        try:
            # Imported here: rich is an extra, and its import takes longer than a short command.
            from ._terminal import TerminalScreen  # noqa: PLC0415
        except ImportError:
            return Screen(sys.stdout)
        return TerminalScreen(sys.stdout)
    return Screen(sys.stdout)
