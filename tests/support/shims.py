"""C code that tests load into a process, to make a moment come that the kernel seldom gives."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def compile_shim(folder, source):
    """Return a shared object made of C source; skip where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "shim.c").write_text("#define _GNU_SOURCE\n" + source, "utf-8")
    made = folder / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", folder / "shim.c", "-o", made, "-ldl"]
    subprocess.run(command, check=True, timeout=50)
    return made


def preloaded(shim):
    """Return the environment of a process whose calls go through the shim first."""
    others = os.environ.get("LD_PRELOAD")
    # A sanitizer must come first; what it does not do itself it asks of the next, the shim.
    return os.environ | {"LD_PRELOAD": f"{others}:{shim}" if others else str(shim)}
