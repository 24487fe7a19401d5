"""C code that tests load into a process, to cause moments that are rare by themselves."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def compile_shim(folder, source):
    """Compile C source into a shared object; skip the test without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "shim.c").write_text("#define _GNU_SOURCE\n" + source, "utf-8")
    made = folder / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", folder / "shim.c", "-o", made, "-ldl"]
    subprocess.run(command, check=True, timeout=150)
    return made


def preloaded(shim):
    """Return the environment of a process whose calls go through the shim first."""
    others = os.environ.get("LD_PRELOAD")
    # A sanitizer must come first; it passes calls on to the next library, which is the shim.
    return os.environ | {"LD_PRELOAD": f"{others}:{shim}" if others else str(shim)}
