"""The tests: a folder for each wing, and helpers in ``support``."""

import os
import sys

# A test run starts hundreds of interpreters, and compiles all tests in several processes: where the
# environment forbids to keep what was compiled, that is a third of a quick run.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
