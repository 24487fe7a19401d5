"""The part of the demo in which other processes change the file under its reader."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

import anyio

import aiommap

from .._stdlib import in_thread
from .._text import format_bytes
from .stage import Stage

_OVERWRITE = """\
import os, sys
with open(sys.argv[1], "r+b") as file:
    file.write(b"written by process %d\\n" % os.getpid())
"""

_TRUNCATE = """\
import os, sys
os.truncate(sys.argv[1], int(sys.argv[2]))
"""

# This process is meant to be killed by SIGBUS. It writes no core file, and -I keeps
# PYTHONFAULTHANDLER from printing a traceback.
_STDLIB_READER = """\
import mmap, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
path, size = sys.argv[1], int(sys.argv[2])
os.truncate(path, size)
with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
    os.truncate(path, size // 2)
    mapping[size - 1]
"""

# Stores at the end of the file, truncates the file before that, and flushes.
_STDLIB_WRITER = """\
import mmap, os, sys
path, size = sys.argv[1], int(sys.argv[2])
with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
    mapping[size - 6 : size] = b"record"
    os.truncate(path, size // 2)
    mapping.flush()
"""

_PATIENCE_SECONDS = 30.0


async def change_from_outside(stage: Stage) -> dict[str, object]:
    """Have another process write to the file, and truncate it while it is read and written."""
    stage.screen.heading("Another process changes the file")
    async with aiommap.open(stage.path) as file:
        seen = await _see_write(stage, file)
        error = await _survive_truncation(stage, file)
    fate = await _stdlib_fate(stage)
    flush = await _flush_what_is_lost(stage)
    flushed = await _stdlib_flush(stage)
    stage.promise("truncated while it is read", error, fate)
    stage.promise("flush of data that was cut off", flush, flushed)
    return {
        "write_seen": seen,
        "truncated_read_raised": error,
        "stdlib_mmap_process": fate,
        "lost_flush_raised": flush,
        "stdlib_mmap_flush": flushed,
    }


async def _see_write(stage: Stage, file: aiommap.MappedFile) -> bool:
    await file.read(0, 32)
    await _python(_OVERWRITE, stage.path)
    text = (await file.read(0, 32)).partition(b"\n")[0].decode("ascii", "backslashreplace")
    seen = text.startswith("written by process")
    stage.tell(
        f"It wrote, and the next read of the open file saw it: {text!r}."
        if seen
        else "It wrote, and the next read of the open file did NOT see it."
    )
    return seen


async def _survive_truncation(stage: Stage, file: aiommap.MappedFile) -> str:
    """Read the second half without pause until it is cut off; return the name of the error."""
    raised: list[aiommap.MappingFaultError] = []

    async def read_on() -> None:
        try:
            while True:
                for offset in range(stage.span // 2, stage.span, aiommap.PAGE_SIZE):
                    await file.read(offset, min(aiommap.PAGE_SIZE, stage.span - offset))
        except aiommap.MappingFaultError as error:
            raised.append(error)

    with anyio.fail_after(_PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_on)
            await _python(_TRUNCATE, stage.path, str(stage.span // 2))
    below = await file.read(0, stage.span // 2)
    stage.tell(
        f"It cut the file to {format_bytes(stage.span // 2)} while a task was reading: the read "
        f"raised {_name(raised[0])} (offset={raised[0].offset}, copied={raised[0].copied}). This "
        f"process lives, and the {format_bytes(len(below))} that are left read as before."
    )
    return _name(raised[0])


async def _stdlib_fate(stage: Stage) -> str:
    """Read a truncated file through stdlib mmap, in a process of its own, which may be killed."""
    result = await _python(_STDLIB_READER, stage.path, str(stage.span), check=False)
    fate = _fate(result, "read on")
    stage.tell(f"A process that did the same through stdlib mmap: {fate}.")
    return fate


async def _flush_what_is_lost(stage: Stage) -> str:
    """Write at the end of the file, have that cut off, and flush; return the name of the error."""
    file = await aiommap.open(stage.path, "r+")
    try:
        await file.write(file.size - 6, b"record")
        await _python(_TRUNCATE, stage.path, str(file.size // 2))
        await file.flush()
    except aiommap.FlushError as error:
        outcome = _name(error)
    else:
        outcome = "reported as done"
    with suppress(aiommap.FlushError):  # closing raises it, too
        await file.aclose()
    stage.tell(f"It cut off a record that was not flushed yet. The flush: {outcome}.")
    return outcome


async def _stdlib_flush(stage: Stage) -> str:
    """Do the same through stdlib mmap."""
    size = await in_thread(lambda: os.stat(stage.path).st_size)
    result = await _python(_STDLIB_WRITER, stage.path, str(size), check=False)
    outcome = _fate(result, "reported as done")
    stage.tell(f"The same flush of stdlib mmap: {outcome}.")
    return outcome


def _fate(code: int, success: str) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with code {code}" if code else success


def _name(error: Exception) -> str:
    return type(error).__name__


async def _python(code: str, *arguments: str, check: bool = True) -> int:
    command = [sys.executable, "-I", "-c", code, *arguments]
    return (await anyio.run_process(command, check=check)).returncode
