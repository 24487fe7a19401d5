"""Where the native module may be loaded: in the main interpreter, and only with a GIL."""

from __future__ import annotations

import subprocess
import sys
import sysconfig

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


needs_free_threads = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has a GIL"
)


@pytest.mark.slow
def test_subinterpreter_is_refused():
    run = "exec" if sys.version_info >= (3, 13) else "run_string"
    script = SCRIPT.replace("{run}", run)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    *refusals, last = done.stdout.splitlines()
    assert len(refusals) == 2
    assert all(line.startswith("refused:") for line in refusals), done.stdout
    assert last == "main: True"


@needs_free_threads
def test_free_threaded_python_gets_its_gil():
    """The GIL guards the module's objects, so the module does not declare that it needs none."""
    code = "import sys, aiommap; sys.exit(not sys._is_gil_enabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0
    assert "RuntimeWarning: The global interpreter lock (GIL) has been enabled" in done.stderr
