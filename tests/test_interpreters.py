"""Only the main interpreter may load the native module: it handles SIGBUS for the whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
try:
    import _interpreters as interpreters  # Python 3.13
except ImportError:
    import _xxsubinterpreters as interpreters
import aiommap  # the main interpreter may, and goes on to

code = '''
try:
    import aiommap
except ImportError as error:
    print("refused:", error)
'''
for shared_gil in (True, False):
    if sys.version_info >= (3, 13):
        made = interpreters.create("legacy" if shared_gil else "isolated")
    else:
        made = interpreters.create(isolated=not shared_gil)
    interpreters.{run}(made, code)
    interpreters.destroy(made)
print("main:", aiommap.PAGE_SIZE > 0)
"""


@pytest.mark.slow
def test_a_subinterpreter_is_refused_and_the_main_one_goes_on():
    run = "exec" if sys.version_info >= (3, 13) else "run_string"
    script = SCRIPT.replace("{run}", run)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    *refusals, last = done.stdout.splitlines()
    assert len(refusals) == 2
    assert all(line.startswith("refused:") for line in refusals), done.stdout
    assert last == "main: True"
