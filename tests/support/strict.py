"""How the scripts of tests run: warnings are errors, as they are in the tests themselves."""

from __future__ import annotations

import sys

#: A test run lets one warning pass, too: pyproject.toml has the same. Python warns of a fork in a
#: process with threads, and what becomes of such children is what those tests are about.
PYTHON = (sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning")
