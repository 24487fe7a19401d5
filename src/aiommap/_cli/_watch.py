"""``aiommap watch``: one line for each change of a file; on request, run a command for each."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import Process

import aiommap
from aiommap.remote import ObstoreSource, RemoteError, RemoteState

from ._arguments import UsageError, file_name, seconds
from ._remote import ObjectChange, check_engine, is_url, object_changes, state_of
from ._screen import Screen
from ._text import format_bytes, format_difference, format_seconds, plural, printable

_DESCRIPTION = """\
Show every change of files, one on a line: when it was found, its kind, by how many bytes
the file became longer or shorter, its size now, how long it took to find the change, and
the path. Runs until Ctrl-C or SIGTERM. A path need not exist yet. A folder is refused:
name the files in it.

The kinds: created, removed, replaced (the path names another file), truncated, grown,
modified, metadata, changed.

For an object, named by its URL, the store is asked for its state every --interval seconds."""

_EXEC_HELP = """\
run this shell command for each change, with AIOMMAP_PATH, AIOMMAP_KIND,
AIOMMAP_OLD_SIZE and AIOMMAP_NEW_SIZE (empty if there is no file) and AIOMMAP_MERGED in its
environment. Commands for one path run one after another, those for several paths run at once.
With --json their output goes to standard error"""

_EXIT_CODES = """\
exit codes:
  0    stopped by Ctrl-C or SIGTERM
  1    the same, and a command that was run for a change had failed
  2    the command line is wrong; nothing was done
  141  the reader of standard output went away (as in "| head")
"""

#: How long a command may take to end after SIGTERM, before it is killed.
_GRACE_SECONDS = 5.0


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "watch", description=_DESCRIPTION, epilog=_EXIT_CODES
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=file_name,
        metavar="PATH",
        help="a file, which need not exist yet, or a URL",
    )
    parser.add_argument(
        "--interval",
        type=seconds,
        default=10.0,
        metavar="S",
        help="how often to ask for the state of URLs (default: 10)",
    )
    parser.add_argument("--exec", metavar="CMD", dest="command", help=_EXEC_HELP)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON instead: one document a line, the first when watching has begun",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, screen: Screen) -> None:
    """Watch until SIGINT or SIGTERM comes."""
    paths = [*dict.fromkeys(options.paths)]
    for path in paths:
        if os.path.isdir(path):
            name = printable(path)
            raise UsageError(
                f"{name} is a folder, of which changes of files do not show: name the files in it, "
                f"as in: aiommap watch {os.path.join(name, '*')}"
            )
    missing = [path for path in paths if not is_url(path) and not os.path.exists(path)]
    anyio.run(_watch_all, options, paths, missing, screen)


async def _watch_all(
    options: argparse.Namespace, paths: list[str], missing: list[str], screen: Screen
) -> None:
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM))
        hub = await stack.enter_async_context(aiommap.Hub())
        group = await stack.enter_async_context(anyio.create_task_group())
        files = [path for path in paths if not is_url(path)]
        told = await _begin(stack, hub, files)
        ran = await _begin(stack, hub, files if options.command else [])
        objects = [await _object(path, screen) for path in paths if is_url(path)]
        absent = f"; not there yet: {', '.join(map(printable, missing))}" if missing else ""
        screen.line(f"watching {plural(len(paths), 'path')}{absent}")
        screen.record(command="watch", paths=paths)
        for path, changes in told.items():
            group.start_soon(_tell, path, changes, screen)
        for path, changes in ran.items():
            group.start_soon(_run_for_each, path, changes, options, screen)
        for source, state in objects:
            group.start_soon(_watch_object, source, state, options, screen)
        async for _ in signals:
            break
        group.cancel_scope.cancel()


async def _begin(
    stack: AsyncExitStack, hub: aiommap.Hub, paths: list[str]
) -> dict[str, aiommap.Changes]:
    """Begin to watch all paths concurrently: each takes some milliseconds."""
    watched = {path: hub.watch(path) for path in paths}
    async with anyio.create_task_group() as group:
        for changes in watched.values():
            group.start_soon(stack.enter_async_context, changes)
    return watched


async def _object(
    url: str, screen: Screen
) -> tuple[ObstoreSource, RemoteState | RemoteError | None]:
    """Find the first state of an object, before the command says that it is watched."""
    check_engine()
    source = await anyio.to_thread.run_sync(ObstoreSource.from_url, url)
    state = await anyio.to_thread.run_sync(state_of, source, None)
    if isinstance(state, RemoteError):
        screen.problem(source.url, state)
    return source, state


async def _watch_object(
    source: ObstoreSource,
    state: RemoteState | RemoteError | None,
    options: argparse.Namespace,
    screen: Screen,
) -> None:
    """Show the changes of an object; while a command runs for one, the store is not polled."""
    async for change in object_changes(source, state, options.interval):
        if isinstance(change, RemoteError):
            screen.problem(source.url, change)
            continue
        _show(source.url, change, None, screen)
        if options.command:
            await _run_for(source.url, change, options, screen)


async def _tell(path: str, changes: aiommap.Changes, screen: Screen) -> None:
    async for change in changes:
        _show(path, change, _latency(change), screen)


def _show(
    path: str, change: aiommap.Change | ObjectChange, latency: float | None, screen: Screen
) -> None:
    found = time.strftime("%H:%M:%S", time.localtime(change.detected_ns // 10**9))
    screen.line(
        f"{found}.{change.detected_ns // 10**6 % 1000:03}  ",
        (f"{change.kind.value:<9}", "bold"),
        f"  {_difference(change):>11}  {_size(change):>10}",
        f"  {'-' if latency is None else format_seconds(latency):>7}",
        f"  {printable(path)}",
        f"  (and {change.merged:,} more)" if change.merged else "",
    )
    screen.record(
        path=path,
        kind=change.kind.value,
        old=change.old and asdict(change.old),
        new=change.new and asdict(change.new),
        latency_seconds=latency,
        merged=change.merged,
        source=change.source,
        detected_ns=change.detected_ns,
    )


def _size(change: aiommap.Change | ObjectChange) -> str:
    return "-" if change.new is None else format_bytes(change.new.size)


def _difference(change: aiommap.Change | ObjectChange) -> str:
    """Write by how much the file became longer or shorter; without a sign if its size stayed."""
    return format_difference(
        (change.new.size if change.new else 0) - (change.old.size if change.old else 0)
    )


def _latency(change: aiommap.Change) -> float | None:
    """Return how many seconds before it was found a change had happened; None if not known.

    The time of change of a file tells when it was written to or renamed. It does not tell when the
    file was removed, nor when a symbolic link was made to lead to it.
    """
    moved = change.kind in (aiommap.ChangeKind.CREATED, aiommap.ChangeKind.REPLACED)
    if change.new is None or (moved and os.path.realpath(change.path) != change.path):
        return None
    return max(change.detected_ns - change.new.ctime_ns, 0) / 10**9


# Commands.


async def _run_for_each(
    path: str, changes: aiommap.Changes, options: argparse.Namespace, screen: Screen
) -> None:
    """Run the command for one change after another; later changes wait in their buffer."""
    async for change in changes:
        await _run_for(path, change, options, screen)


async def _run_for(
    path: str,
    change: aiommap.Change | ObjectChange,
    options: argparse.Namespace,
    screen: Screen,
) -> None:
    process = await anyio.open_process(
        ["/bin/sh", "-c", options.command],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if options.json else None,
        stderr=None,
        env=_environment(change),
        start_new_session=True,  # so that we get Ctrl-C, and end all that the command started
    )
    code = await _end_of(process)
    if code:
        screen.problem(path, ChildProcessError(_ending(code)))


async def _end_of(process: Process) -> int:
    """Wait until a command ends; on a cancellation, end it and all that it started."""
    async with process:
        try:
            return await process.wait()
        except BaseException:
            _send(process, signal.SIGTERM)
            with anyio.move_on_after(_GRACE_SECONDS, shield=True):
                await process.wait()
            if process.returncode is None:
                _send(process, signal.SIGKILL)
            raise


def _send(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _environment(change: aiommap.Change | ObjectChange) -> dict[str, str]:
    return {
        **os.environ,
        "AIOMMAP_PATH": change.path,
        "AIOMMAP_KIND": change.kind.value,
        "AIOMMAP_OLD_SIZE": str(change.old.size) if change.old else "",
        "AIOMMAP_NEW_SIZE": str(change.new.size) if change.new else "",
        "AIOMMAP_MERGED": str(change.merged),
    }


def _ending(code: int) -> str:
    if code < 0:
        return f"the command was killed by {signal.Signals(-code).name}"
    return f"the command ended with code {code}"
