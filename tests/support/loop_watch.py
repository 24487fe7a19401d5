"""A detector for calls of ours on the loop thread that may wait (I1), for every event loop.

blockbuster knows only asyncio and does not see calls of the native module. So this detector uses
the interpreter's profile hook, which hears of every C function that Python code of this thread
calls. ``loop_watch.c`` drops calls with harmless names, because a hook in Python would make the
code under test three times as slow. Without a compiler a hook in Python is used all the same.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from pathlib import Path
from typing import Self

import anyio

from tests.support.internals import LogCursor, LogWriter, Mapping, PoolCommit

PACKAGE = "aiommap"

#: Verbs of the native module for worker threads: they may wait for a disk.
NATIVE = frozenset(
    "adopt advise cachestat close extend filesystem_type lock look populate punch_hole read "
    "read_ahead read_into rebase residency start_writeback sync sync_range truncate unlock "
    "write_many find_record mark search_frames seek store wait".split()
)

#: System calls of the standard library that touch a file, and sleeping.
STANDARD = {
    "posix": frozenset(
        "access close fdatasync fstat fsync ftruncate link listdir lstat mkdir open "
        "posix_fadvise posix_fallocate pread preadv pwrite pwritev read readlink remove rename "
        "replace rmdir scandir stat statvfs symlink sync truncate unlink write".split()
    ),
    "io": frozenset({"open", "open_code"}),
    "_io": frozenset({"open", "open_code"}),  # their name since Python 3.12
    "time": frozenset({"sleep"}),
}


def may_wait(function: object) -> bool:
    """Tell whether a C function is one that the loop thread must not call."""
    name = getattr(function, "__name__", "")
    owner = getattr(function, "__self__", None)
    of_ours = isinstance(owner, Mapping | LogCursor | LogWriter | PoolCommit)
    if of_ours or getattr(function, "__module__", "") == "aiommap._native":
        return name in NATIVE
    return name in STANDARD.get(getattr(function, "__module__", None) or "", ())


def in_event_loop() -> bool:
    """Tell whether this thread is running a task of an event loop."""
    try:
        anyio.get_current_task()
    except Exception:
        return False
    return True


def called_by_us(frame) -> bool:
    """Tell whether the innermost caller that is not a library is our package, and not a test."""
    while frame is not None:
        if "/tests/" in frame.f_code.co_filename:
            return False
        module = frame.f_globals.get("__name__", "")
        if module == "logging":  # handlers are the application's
            return False
        if module.partition(".")[0] == PACKAGE:
            return not module.startswith((PACKAGE + "._cli", PACKAGE + ".testing"))
        frame = frame.f_back
    return False


@functools.cache
def native_hook():
    """Return ``watch_calls`` of loop_watch.c, or ``sys.setprofile`` without a compiler."""
    compiler = shutil.which("cc")
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "loop_watch.so")
        include = f"-I{sysconfig.get_path('include')}"
        command = [compiler, "-shared", "-fPIC", "-O2", include, source, "-o", made]
        if compiler is None or subprocess.run(command, capture_output=True).returncode:
            return sys.setprofile
        library = ctypes.PyDLL(str(made))
    library.watch_calls.argtypes = [ctypes.py_object]
    library.watch_calls.restype = None
    for name in NATIVE.union(*STANDARD.values()):
        assert library.watch_name(name.encode()), name
    return library.watch_calls


class LoopWatch:
    """Collects forbidden calls of this thread while the block runs."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> Self:
        self._outer = sys.getprofile()
        native_hook()(self._look)
        return self

    def __exit__(self, *_) -> None:
        of_another_watch = isinstance(getattr(self._outer, "__self__", None), LoopWatch)
        (native_hook() if of_another_watch else sys.setprofile)(self._outer)

    def _look(self, frame, event, function) -> None:
        if event == "c_call" and may_wait(function) and called_by_us(frame) and in_event_loop():
            stack = "".join(traceback.format_stack(frame, limit=6))
            self.found.append(f"{function!r} on the loop thread:\n{stack}")
