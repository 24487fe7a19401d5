"""``aiommap demo``: the library's main job on a real file, measured beside stdlib mmap."""

from __future__ import annotations

import argparse
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

import aiommap

from .._arguments import (
    UsageError,
    add_json_option,
    add_load_options,
    file_name,
    size,
    with_examples,
)
from .._heartbeat import Heartbeat
from .._screen import Screen
from .._text import MIB, format_bytes, format_seconds, printable
from .outside import change_from_outside
from .reading import draw_residency, prewarm, read_cold, read_warm
from .stage import Comparison, Stage
from .writing import count_durable, create, flush_much, write_durably

_DESCRIPTION = """\
Show on a real file what the library does, compared with stdlib mmap in a thread: which
promises it keeps when something fails, how long the event loop waits, and how much work
gets done.

Without FILE, the demo works in a temporary folder, which it removes at the end: durable
writers, a large flush, cold and warm reads, prewarm, and another process that writes to
the file and truncates it. With FILE it only reads and prewarms that file."""

_EPILOG = with_examples("aiommap demo", "aiommap demo --dir . --size 1G", "aiommap demo model.bin")

_IDLE_SECONDS = 0.3

_WHAT_IT_IS = "aiommap: memory-mapped files for asyncio that keep the disk off the event loop."

_NEXT = (
    ("aiommap demo FILE", "the reads again, on a file of yours"),
    ("aiommap --help", "what else this command does"),
    ("docs/tutorial.md", "in the sources: from a new file to a service, in 15 minutes"),
)


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "file", nargs="?", type=file_name, metavar="FILE", help="a file of yours; only read"
    )
    parser.add_argument(
        "--size",
        type=size(MIB),
        default=256 * MIB,
        metavar="SIZE",
        help="size of the temporary file, or how much of FILE to use (default: 256M)",
    )
    add_load_options(parser, tasks=64, what="write or read", duration="each timed part runs")
    parser.add_argument(
        "--dir",
        metavar="DIR",
        help="where to make the temporary folder (default: the system's; pick a real disk)",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, screen: Screen) -> None:
    """Run the whole demo, or only its reads on the user's file."""
    with _terminate_like_interrupt():
        if options.file is not None:
            if options.dir is not None:
                raise UsageError(
                    "--dir says where to make a temporary file: leave it out with FILE"
                )
            anyio.run(_on_users_file, options, screen)
            return
        if options.dir is not None and not Path(options.dir).is_dir():
            raise UsageError(f"--dir {printable(options.dir)}: there is no such folder")
        with tempfile.TemporaryDirectory(prefix="aiommap-demo-", dir=options.dir) as folder:
            anyio.run(_on_own_file, str(Path(folder, "demo.bin")), options, screen)


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, which cleans up; only the main thread can arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


async def _on_own_file(path: str, options: argparse.Namespace, screen: Screen) -> None:
    stage = Stage(screen, path, options.size, options.tasks, options.seconds)
    _introduce(screen, f"on a file of {format_bytes(options.size)} in a temporary folder")
    idle = await _listen_to_idle_loop(screen)
    created = await create(stage)
    counted = await count_durable(stage)
    groups = await write_durably(stage)
    await flush_much(stage)
    await _read_half(stage)
    outside = await change_from_outside(stage)
    _close(
        stage,
        idle,
        created=created.as_json(),
        durability=counted,
        durable_writes=groups,
        other_processes=outside,
    )


async def _on_users_file(options: argparse.Namespace, screen: Screen) -> None:
    async with aiommap.open(options.file) as file:
        span = min(file.size, options.size)
        part = "" if span == file.size else f", the first {format_bytes(span)} of it"
        name = f"{printable(options.file)} ({format_bytes(file.size)}{part}; only read)"
    if not span:
        screen.problem(options.file, ValueError("the file is empty: there is nothing to read"))
        return
    _introduce(screen, f"on {name}")
    stage = Stage(screen, options.file, span, options.tasks, options.seconds)
    idle = await _listen_to_idle_loop(screen)
    await _read_half(stage)
    _close(stage, idle)


async def _read_half(stage: Stage) -> None:
    await read_cold(stage)
    await draw_residency(stage)
    await prewarm(stage)
    await read_warm(stage)


def _introduce(screen: Screen, where: str) -> None:
    screen.say(_WHAT_IT_IS, "bold")
    screen.line()
    screen.say(
        f"This demo works {where}, and does each job twice: through aiommap, and through stdlib "
        "mmap in a thread. Beside it a heartbeat ticks on the event loop each millisecond. "
        '"Loop waited" is the longest time in which the loop\'s thread could not go on, for want '
        "of the disk or of the interpreter lock: in a service, every request waits as long."
    )


async def _listen_to_idle_loop(screen: Screen) -> Heartbeat:
    async with Heartbeat() as beat:
        await anyio.sleep(_IDLE_SECONDS)
    screen.say(f"A loop with nothing to do waits {format_seconds(beat.worst_wait)} for its tick.")
    return beat


def _close(stage: Stage, idle: Heartbeat, **content: object) -> None:
    """Show the closing table, a conclusion, and what to try next."""
    stage.close()
    stage.screen.line()
    stage.screen.say(f"So: {_conclusion(stage.comparisons, idle)}", "bold")
    stage.screen.line("Next:")
    stage.screen.facts(_NEXT)
    stage.screen.document(
        "demo",
        path=stage.path,
        bytes=stage.span,
        tasks=stage.tasks,
        idle_gap_seconds=idle.worst_gap,
        idle_wait_seconds=idle.worst_wait,
        pages_could_be_dropped=not stage.never_cold,
        comparisons=[comparison.as_json() for comparison in stage.comparisons],
        **content,
    )


def _conclusion(comparisons: Sequence[Comparison], idle: Heartbeat) -> str:
    waits = [found for found in comparisons if found.waits]
    ours = format_seconds(max(found.ours.worst_wait for found in waits))
    theirs = format_seconds(max(found.theirs.worst_wait for found in waits))
    return (
        f"while the disk worked, the loop waited {ours} at most; with stdlib mmap in a thread "
        f"{theirs}; with nothing to do {format_seconds(idle.worst_wait)}."
    )
