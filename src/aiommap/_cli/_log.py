"""``aiommap log``: look at a log, print its records, follow it, check every byte of it."""

from __future__ import annotations

import argparse
import base64
import errno
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import anyio

import aiommap

from ._arguments import (
    EXIT_CODES,
    UsageError,
    add_json_option,
    count,
    file_name,
    with_examples,
)
from ._screen import Screen
from ._text import format_bytes, plural, printable

_DESCRIPTION = """\
Inspect a log that aiommap.Log wrote. No command writes to it, and none disturbs its writer.

commands:
  info FOLDER    what the log holds, segment by segment
  cat FOLDER     print the records
  tail FOLDER    print new records as they come
  verify FOLDER  check every record, and report each one that is damaged"""

_INFO = """\
Tell what a log holds: its first, last and last durable record, and its segments."""
_CAT = """\
Print the data of the records, one on a line. Characters that are not printable are
escaped. With --json the bytes are unchanged, in base64."""
_TAIL = """\
Print new records as they come, in the same form as "cat". Runs until Ctrl-C or SIGTERM."""
_VERIFY = """\
Read every record and check it. Each damaged or missing record is reported, and the check
goes on behind it. To repair a log, copy its good records into a new one."""

_TAIL_EXIT_CODES = """\
exit codes:
  0    stopped by Ctrl-C or SIGTERM
  1    the log could not be read
  2    the command line is wrong; nothing was done
  141  the reader of standard output went away (as in "| head")
"""

Run = Callable[[argparse.Namespace, Screen], Awaitable[None]]


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "log", description=_DESCRIPTION, epilog=EXIT_CODES
    )
    verbs = parser.add_subparsers(
        metavar="COMMAND", dest="verb", required=True, help="one of the above"
    )
    _add(verbs, "info", _INFO, _info, with_examples("aiommap log info events"))
    _add(verbs, "cat", _CAT, _cat, with_examples("aiommap log cat events --start 1000"), start=True)
    _add(verbs, "tail", _TAIL, _tail, _TAIL_EXIT_CODES, start=True, durable=True)
    _add(verbs, "verify", _VERIFY, _verify, with_examples("aiommap log verify events"))


def _add(
    verbs: Any,
    name: str,
    description: str,
    run: Run,
    epilog: str,
    *,
    start: bool = False,
    durable: bool = False,
) -> None:
    parser = verbs.add_parser(name, description=description, epilog=epilog)
    parser.add_argument("file", type=file_name, metavar="FOLDER", help="the folder of the log")
    if start:
        parser.add_argument(
            "--start",
            type=count(1, (1 << 63) - 1),
            metavar="N",
            help="sequence of the first record to print",
        )
    if durable:
        parser.add_argument(
            "--durable", action="store_true", help="only records that are on stable storage"
        )
    if start:
        parser.add_argument(
            "--json", action="store_true", help="print JSON instead: one document a line"
        )
    else:
        add_json_option(parser)
    parser.set_defaults(run=partial(_run, run))


def _run(run: Run, options: argparse.Namespace, screen: Screen) -> None:
    anyio.run(run, options, screen)


async def _info(options: argparse.Namespace, screen: Screen) -> None:
    async with aiommap.Log.open(options.file, "r") as log:
        segments = await log.segments()
        held = sum(segment.size for segment in segments)
        screen.line((printable(options.file), "bold"))
        records = log.last - log.first + 1
        numbers = f", {log.first} to {log.last}" if records else f"; the next one is {log.last + 1}"
        screen.facts(
            [
                ("id", log.log_id.hex() if log.log_id else "none yet: no writer has opened it"),
                ("records", f"{records:,}{numbers}"),
                ("durable", f"up to {log.durable}" if log.durable else "none that is known"),
                ("segments", f"{plural(len(segments), 'file')}, {format_bytes(held)}"),
            ]
        )
        if segments:
            screen.table(
                ("first record", "size", "life", "durable before"),
                [
                    (
                        str(each.base),
                        format_bytes(each.size),
                        str(each.life),
                        str(each.durable_below),
                    )
                    for each in segments
                ],
            )
        screen.document(
            "log info",
            path=options.file,
            id=log.log_id.hex() if log.log_id else None,
            first=log.first,
            last=log.last,
            durable=log.durable,
            segments=[asdict(segment) for segment in segments],
        )


async def _cat(options: argparse.Namespace, screen: Screen) -> None:
    async with aiommap.Log.open(options.file, "r") as log:
        _check_log(log)
        await _print(log.read(_start(options, log)), screen)


async def _tail(options: argparse.Namespace, screen: Screen) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            aiommap.Log.open(options.file, "r") as log,
            anyio.create_task_group() as group,
        ):
            start = _start(options, log) or log.last + 1
            group.start_soon(_print, log.tail(start, durable=options.durable), screen)
            async for _ in signals:
                break
            group.cancel_scope.cancel()


def _check_log(log: aiommap.Log) -> None:
    if log.log_id is None:
        raise FileNotFoundError(errno.ENOENT, "no writer has opened a log there", log.folder)


def _start(options: argparse.Namespace, log: aiommap.Log) -> int | None:
    """Return the record to start with, if the command line names one."""
    start: int | None = options.start
    if start is not None and start > log.last + 1:
        raise UsageError(
            f"--start {start}: the last record of {printable(options.file)} is {log.last}, so give "
            f"at most {log.last + 1}"
        )
    return start


async def _print(records: AsyncIterator[aiommap.LogRecord], screen: Screen) -> None:
    async for record in records:
        screen.line(printable(record.data.decode("utf-8", "surrogateescape")))
        data = base64.b64encode(record.data).decode()
        screen.record(sequence=record.sequence, life=record.life, data=data)


async def _verify(options: argparse.Namespace, screen: Screen) -> None:
    good = damaged = missing = 0
    async with aiommap.Log.open(options.file, "r") as log:
        _check_log(log)
        start, last = log.first, log.last
        while start <= last:
            begun = start
            try:
                async for record in log.read(start):
                    good, start = good + 1, record.sequence + 1
                break
            except aiommap.CorruptRecordError as error:
                screen.problem(options.file, error)
                damaged, start = damaged + 1, error.sequence + 1
            except aiommap.CorruptLogError as error:
                screen.problem(options.file, error)
                bases = [each.base for each in await log.segments()]
                # A segment that cannot be entered from the one before may still be whole.
                later = [base for base in bases if base > start or base == start > begun]
                missing += min(later, default=last + 1) - start
                start = min(later, default=last + 1)
            except aiommap.RecordsDiscardedError as error:
                start = error.first  # the writer has discarded records meanwhile
    gone = f", {missing:,} missing" if missing else ""
    screen.line(f"{plural(good, 'good record')}, {damaged:,} damaged{gone}")
    screen.document("log verify", path=options.file, good=good, damaged=damaged, missing=missing)
