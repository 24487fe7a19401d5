"""The command line for scripts of tests: warnings are errors, as in the tests themselves."""

from __future__ import annotations

import sys

#: One warning is ignored, as in pyproject.toml: Python warns of a fork in a process with threads,
#: and some tests are about such children.
PYTHON = (sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning")
