"""The part of the demo in which other processes change the file under its reader."""

from __future__ import annotations

import signal
import sys

import anyio
import anyio.to_thread

import aiommap

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

# Its death is the point: no core file, and -I keeps PYTHONFAULTHANDLER from commenting on it.
_STDLIB_READER = """\
import mmap, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
path, size = sys.argv[1], int(sys.argv[2])
os.truncate(path, size)
with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
    os.truncate(path, size // 2)
    mapping[size - 1]
"""

_PATIENCE_SECONDS = 30.0


async def change_from_outside(stage: Stage) -> dict[str, object]:
    """Let another process write to the file, then cut it in half while a task reads it."""
    stage.screen.heading("Another process changes the file")
    async with aiommap.open(stage.path) as file:
        seen = await _see_write(stage, file)
        error = await _survive_truncation(stage, file)
    fate = await _stdlib_fate(stage)
    return {"write_seen": seen, "truncated_read_raised": error, "stdlib_mmap_process": fate}


async def _see_write(stage: Stage, file: aiommap.MappedFile) -> bool:
    await file.read(0, 32)
    await _python(_OVERWRITE, stage.path)
    text = (await file.read(0, 32)).partition(b"\n")[0].decode("ascii", "backslashreplace")
    seen = text.startswith("written by process")
    stage.screen.line(
        f"  it wrote, and the next read of the open file saw it: {text!r}"
        if seen
        else "  it wrote, and the next read of the open file did NOT see it"
    )
    return seen


async def _survive_truncation(stage: Stage, file: aiommap.MappedFile) -> str:
    """Read the upper half without pause until it is cut off; return the error's name."""
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
    stage.screen.line(
        f"  it cut the file to {format_bytes(stage.span // 2)} while a task was reading:"
    )
    stage.screen.line(
        "    ",
        (type(raised[0]).__name__, "red"),
        f"(offset={raised[0].offset}, copied={raised[0].copied})",
    )
    below = await file.read(0, stage.span // 2)
    stage.screen.line(
        f"  this process lives, and the {format_bytes(len(below))} that are left read as before"
    )
    return type(raised[0]).__name__


async def _stdlib_fate(stage: Stage) -> str:
    """Read a truncated file through stdlib mmap, in a process that can be spared."""
    result = await _python(_STDLIB_READER, stage.path, str(stage.span), check=False)
    fate = (
        f"killed by {signal.Signals(-result).name}" if result < 0 else f"ended with code {result}"
    )
    stage.screen.line(f"  a process that did the same through stdlib mmap was {fate}")
    return fate


async def _python(code: str, *arguments: str, check: bool = True) -> int:
    command = [sys.executable, "-I", "-c", code, *arguments]
    return (await anyio.run_process(command, check=check)).returncode
