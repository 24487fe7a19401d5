"""``aiommap bench``: random reads of one file through aiommap and beside it through others."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread

import aiommap

from ._arguments import add_json_option, add_load_options, file_name, size, with_examples
from ._contenders import Contender, Reader, available_contenders
from ._measure import Measurement, Operation, measure_repeated
from ._remote import add_cache_option, is_url, open_url, prepare_url, url_contenders
from ._screen import Screen
from ._system import drop_pages, visible_residency
from ._text import format_bytes, format_seconds, format_share, plural, printable

_DESCRIPTION = """\
Read FILE at random offsets through aiommap, stdlib mmap in a thread, pread in a thread,
and aiofiles and aiofile if they are installed: one after the other, in this process, on
asyncio. FILE is only read. An object of a store, named by its URL, is read through the
cache of aiommap.remote, and by a GET for each read.

A heartbeat ticks every millisecond on the same loop. Its longest gap is the longest turn
of the loop, which all tasks share. "waited" is the longest time in one gap in which the
thread of the loop waited instead of running; an idle loop waits 1 to 3 ms."""

_EPILOG = with_examples(
    "aiommap bench model.bin", "aiommap bench model.bin --tasks 64 --block 64K --cold"
)


@dataclass(frozen=True, slots=True)
class _Plan:
    path: str
    span: int
    block: int
    tasks: int
    seconds: float
    cold: bool
    cache: str | None


@dataclass(frozen=True, slots=True)
class _Result:
    name: str
    measured: Measurement
    resident_share_before: float | None


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "file", type=file_name, metavar="FILE", help="a regular file, only read; or a URL"
    )
    add_load_options(parser, tasks=16, what="read", duration="each contender reads")
    parser.add_argument(
        "--block",
        type=size(1),
        default=4096,
        metavar="SIZE",
        help="bytes of one read, such as 4096 or 64K (default: 4096)",
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help="drop the file from memory (a URL from the cache) before each contender, instead "
        "of warming it",
    )
    add_cache_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, screen: Screen) -> None:
    """Measure every contender that is installed and show them side by side."""
    missing: list[str] = []
    if is_url(options.file):
        contenders = url_contenders(options.cache)
    else:
        contenders, missing = available_contenders()
    results = anyio.run(_compare, options, contenders, screen)
    for name in missing if results else ():
        screen.line(f"{name} is not installed: left out")


async def _compare(
    options: argparse.Namespace, contenders: dict[str, Contender], screen: Screen
) -> list[_Result]:
    span = await _size_of(options)
    if not span:
        screen.problem(options.file, ValueError("the file is empty: there is nothing to read"))
        return []
    block = min(options.block, span)
    load = (options.tasks, options.seconds, options.cold, options.cache)
    plan = _Plan(options.file, span, block, *load)
    _announce(plan, screen)
    results = [await _measure(name, contenders[name], plan) for name in contenders]
    _show(results, plan, screen)
    return results


async def _size_of(options: argparse.Namespace) -> int:
    if is_url(options.file):
        async with open_url(options.file, options.cache) as (_, snapshot):
            return snapshot.size
    async with aiommap.open(options.file) as file:
        return file.size


async def _measure(name: str, contender: Contender, plan: _Plan) -> _Result:
    share = await _prepare(plan)
    async with contender(plan.path, plan.tasks) as readers:
        # The first read of a contender starts its threads; do not measure that.
        await readers[0](0, 1)
        measured = await measure_repeated(
            [_block_reader(reader, plan.block) for reader in readers],
            span=plan.span,
            block=plan.block,
            seconds=plan.seconds,
        )
    return _Result(name, measured, share)


async def _prepare(plan: _Plan) -> float | None:
    """Bring the file into memory or drop it; return the share that is in memory, if visible."""
    if is_url(plan.path):
        return await prepare_url(plan.path, plan.cache, cold=plan.cold)
    if plan.cold:
        await anyio.to_thread.run_sync(drop_pages, plan.path)
    async with aiommap.open(plan.path) as file:
        if not plan.cold:
            await file.prewarm()
        residency = await visible_residency(file)
        return residency.fraction if residency else None


def _block_reader(reader: Reader, block: int) -> Operation:
    async def read(offset: int) -> None:
        data = await reader(offset, block)
        if len(data) != block:
            raise OSError(f"read {len(data)} of {block} bytes at {offset}: the file changed")

    return read


def _share(resident: float | None) -> str:
    return "hidden" if resident is None else format_share(resident, 1)


def _announce(plan: _Plan, screen: Screen) -> None:
    state = "dropped from memory before each" if plan.cold else "brought into memory before each"
    screen.line(
        (printable(plan.path), "bold"),
        f": {format_bytes(plan.span)}, {state}; {plural(plan.tasks, 'task')} reading "
        f"{format_bytes(plan.block)} at random offsets for {format_seconds(plan.seconds)}",
    )


def _show(results: list[_Result], plan: _Plan, screen: Screen) -> None:
    ours = results[0].measured.operations_per_second
    rows = [
        (
            result.name,
            f"{result.measured.operations_per_second:,.0f}",
            f"{ours / result.measured.operations_per_second:.1f}x",
            format_seconds(result.measured.percentile(0.5)),
            format_seconds(result.measured.percentile(0.99)),
            format_seconds(result.measured.worst_gap),
            format_seconds(result.measured.worst_wait),
            _share(result.resident_share_before),
        )
        for result in results
    ]
    headers = ("", "reads/s", "ours", "p50", "p99", "turn", "waited", "resident")
    screen.table(headers, rows)
    screen.document(
        "bench",
        path=plan.path,
        bytes=plan.span,
        block=plan.block,
        tasks=plan.tasks,
        cold=plan.cold,
        contenders=[
            {
                "name": result.name,
                "resident_share_before": result.resident_share_before,
                **result.measured.as_json(),
            }
            for result in results
        ],
    )
