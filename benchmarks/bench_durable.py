"""How many durable 128-byte records a second, at 1, 64 and 256 tasks?"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from typing import Any

import aiofile
import aiofiles

import aiommap
from aiommap import FlushPolicy

from ._harness import MIB, Action, Report, compare, heartbeat, rate

RECORD = bytes(128)
#: How often each is required to be as fast as a peer, by number of tasks.
TARGETS = {64: (40, 2.5), 256: (60, 4)}


def slots(size: int) -> Callable[[int], int]:
    """Where record i goes: one after the other, round and round."""
    room = size // len(RECORD)
    return lambda i: i % room * len(RECORD)


async def run(report: Report, *, smoke: bool) -> None:
    """Compare with pwrite + fdatasync in a thread, aiofiles and aiofile (caio)."""
    size, count = (MIB, 64) if smoke else (16 * MIB, 4000)
    at = slots(size)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("ours", "thread", "aiofiles", "caio")]
        for path in paths:
            with open(path, "wb") as file:  # the same for all: written blocks, nothing dirty
                file.write(bytes(size))
                os.fsync(file.fileno())
        always = FlushPolicy.always()
        async with (
            aiommap.open(paths[0], "r+", flush=always) as mapped,
            aiofiles.open(paths[2], "r+b", buffering=0) as slow,
            aiofile.async_open(paths[3], "r+b") as caio,
        ):
            descriptor = os.open(paths[1], os.O_RDWR)

            peers = peer_actions(descriptor, slow, caio, at)
            for tasks in (1, 64, 256):
                # A single task is as slow with all of them; else the peers need much longer.
                few = max(tasks, count // 10)
                many = few if tasks == 1 else count * 10
                actions: dict[str, tuple[Action, int]] = {
                    "aiommap": (lambda i: mapped.write(at(i), RECORD), many),
                    **{name: (action, few) for name, action in peers.items()},
                }
                rounds = 20 if tasks == 1 else 9
                found = await compare(actions, tasks, 1 if smoke else rounds)
                tell(report, tasks, found)
                async with heartbeat() as stall:
                    await rate(actions["aiommap"][0], many, tasks)
                report.row(f"{tasks} tasks: worst stall", stall.worst, "ms", 10, most=True)
            os.close(descriptor)


def peer_actions(
    descriptor: int, slow: Any, caio: Any, at: Callable[[int], int]
) -> dict[str, Action]:
    """Say how others make record i durable: a thread, aiofiles, and aiofile."""

    def store(i: int) -> None:
        os.pwrite(descriptor, RECORD, at(i))
        os.fdatasync(descriptor)

    position = asyncio.Lock()  # the file has one, and others move it between two hops

    async def by_aiofiles(i: int) -> None:
        async with position:
            await slow.seek(at(i))
            await slow.write(RECORD)
        await asyncio.to_thread(os.fdatasync, slow.fileno())

    async def by_aiofile(i: int) -> None:
        await caio.file.write_bytes(RECORD, at(i))
        await caio.file.fdsync()

    return {
        "pwrite + fdatasync in a thread": lambda i: asyncio.to_thread(store, i),
        "aiofiles + fdatasync": by_aiofiles,
        "aiofile + fdsync": by_aiofile,
    }


def tell(report: Report, tasks: int, found: dict[str, float]) -> None:
    """Print rates and ratios with their targets."""
    for name, value in found.items():
        report.row(f"{tasks} tasks: {name}", value, "records/s")
    ours = found["aiommap"]
    slow, caio = TARGETS.get(tasks, (None, None))
    for peer, value, target in (
        ("thread", found["pwrite + fdatasync in a thread"], 1 if tasks == 1 else None),
        ("aiofiles", found["aiofiles + fdatasync"], slow),
        ("aiofile", found["aiofile + fdsync"], caio),
    ):
        report.row(f"{tasks} tasks: aiommap / {peer}", ours / value, "x", target)
