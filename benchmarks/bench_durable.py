"""How many durable 128-byte records a second do 1, 64 and 256 tasks write, by order of places?"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import aiofile
import aiofiles

import aiommap
from aiommap import FlushPolicy

from ._harness import MIB, Action, Report, awake, compare, heartbeat, rate

RECORD = bytes(128)
#: Two ways of ours: a receipt, as in README, and the policy that flushes each write.
OURS, ALWAYS = "aiommap", "aiommap, always()"
#: By number of tasks: the share of the policy's rate that the receipt's rate has to reach.
SHARES = {1: 0.85, 64: 0.75, 256: 0.75}
#: By way and number of tasks: how many times the rate of each peer it has to reach.
TARGETS: dict[tuple[str, int], dict[str, float]] = {
    (OURS, 1): {"thread": 1.1},
    (OURS, 64): {"aiofile": 1.2},
    (ALWAYS, 1): {"thread": 1},
    (ALWAYS, 64): {"aiofiles": 40, "aiofile": 2.5},
    (ALWAYS, 256): {"aiofiles": 60, "aiofile": 4},
}


def slots(size: int, *, ordered: bool) -> Callable[[int], int]:
    """Return the place of record i: in order, round and round; or at random."""
    room = size // len(RECORD)
    if ordered:
        return lambda i: i % room * len(RECORD)
    drawn = [n * len(RECORD) for n in random.Random(14).sample(range(room), room)]
    return lambda i: drawn[i % room]


async def run(report: Report, *, smoke: bool) -> None:
    """Compare with pwrite + fdatasync in a thread, aiofiles and aiofile (caio)."""
    size, count = (MIB, 64) if smoke else (16 * MIB, 4000)
    with tempfile.TemporaryDirectory() as folder:
        names = ("ours", "always", "thread", "aiofiles", "caio")
        paths = [os.path.join(folder, name) for name in names]
        for path in paths:
            with open(path, "wb") as file:  # for all alike: written blocks, no dirty pages
                file.write(bytes(size))
                os.fsync(file.fileno())
        async with (
            aiommap.open(paths[0], "r+") as mapped,
            aiommap.open(paths[1], "r+", flush=FlushPolicy.always()) as always,
            aiofiles.open(paths[3], "r+b", buffering=0) as slow,
            aiofile.async_open(paths[4], "r+b") as caio,
        ):
            descriptor = os.open(paths[2], os.O_RDWR)
            for ordered in (True, False):
                at = slots(size, ordered=ordered)
                peers = peer_actions(descriptor, slow, caio, at)
                ours = {OURS: by_receipt(mapped, at), ALWAYS: by_policy(always, at)}
                for tasks in (1, 64, 256):
                    # One task is about as slow in every way; with more tasks the peers take longer.
                    few = max(tasks, count // 10)
                    many = few if tasks == 1 else count * 10 if ordered else count
                    actions: dict[str, tuple[Action, int]] = {
                        **{name: (action, many) for name, action in ours.items()},
                        **{name: (action, few) for name, action in peers.items()},
                    }
                    rounds = 1 if smoke else 15 if tasks == 1 else 7
                    # Otherwise a processor that halts between records decides the rate of one task.
                    with awake() if tasks == 1 else nullcontext():
                        found = await compare(actions, tasks, rounds)
                    tell(report, tasks, found, ordered=ordered)
                    async with heartbeat() as stall:
                        await rate(ours[OURS], many, tasks)
                    name = label(tasks, "worst stall", ordered=ordered)
                    report.row(name, stall.worst, "ms", 10, most=True)
            os.close(descriptor)


def by_receipt(mapped: aiommap.MappedFile, at: Callable[[int], int]) -> Action:
    """Write record i and wait for its receipt, as README's first example does."""

    async def act(i: int) -> None:
        receipt = await mapped.write(at(i), RECORD)
        await receipt.wait_durable()

    return act


def by_policy(mapped: aiommap.MappedFile, at: Callable[[int], int]) -> Action:
    """Write record i under a policy that flushes each write."""
    return lambda i: mapped.write(at(i), RECORD)


def peer_actions(
    descriptor: int, slow: Any, caio: Any, at: Callable[[int], int]
) -> dict[str, Action]:
    """Return how peers make record i durable: in a thread, by aiofiles, and by aiofile."""

    def store(i: int) -> None:
        os.pwrite(descriptor, RECORD, at(i))
        os.fdatasync(descriptor)

    position = asyncio.Lock()  # the file has one position, which tasks share between two hops

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


def label(tasks: int, what: str, *, ordered: bool) -> str:
    """Name a figure."""
    return f"{tasks} tasks: {what}" if ordered else f"at random, {tasks} tasks: {what}"


def tell(report: Report, tasks: int, found: dict[str, float], *, ordered: bool) -> None:
    """Print rates and ratios with their targets."""
    for name, value in found.items():
        report.row(label(tasks, name, ordered=ordered), value, "records/s")
    share = found[OURS] / found[ALWAYS]
    report.row(label(tasks, f"{OURS} / always()", ordered=ordered), share, "x", SHARES[tasks])
    for form in (OURS, ALWAYS):
        targets = TARGETS.get((form, tasks), {}) if ordered else {}
        for peer, name in (
            ("thread", "pwrite + fdatasync in a thread"),
            ("aiofiles", "aiofiles + fdatasync"),
            ("aiofile", "aiofile + fdsync"),
        ):
            ratio = found[form] / found[name]
            report.row(
                label(tasks, f"{form} / {peer}", ordered=ordered), ratio, "x", targets.get(peer)
            )
