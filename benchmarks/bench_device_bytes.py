"""How many bytes does the device write for a durable record, by way to flush and file system?"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import aiommap
from aiommap import FlushPolicy, MappedFile

from ._devices import MIB, Device, mounted
from ._harness import Report

#: How many times the bytes of pwrite and fdatasync a durable record may cost (I13).
MOST = 1.2
#: How many records a case writes, and how many of them between two flushes.
RECORDS, GROUP = 128, 8
COUNTERS = 64

Write = Callable[[MappedFile, Sequence[int], bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Form:
    """One way to make records durable; ``each`` says whether each record is flushed by itself."""

    policy: FlushPolicy
    write: Write
    each: bool = True


async def _wait_durable(f: MappedFile, group: Sequence[int], record: bytes) -> None:
    for at in group:
        await (await f.write(at, record)).wait_durable()


async def _flush(f: MappedFile, group: Sequence[int], record: bytes) -> None:
    for at in group:
        await f.write(at, record)
    await f.flush()


async def _flush_range(f: MappedFile, group: Sequence[int], record: bytes) -> None:
    for at in group:
        await f.write(at, record)
        await f.flush_range(at, len(record))


async def _background(f: MappedFile, group: Sequence[int], record: bytes) -> None:
    for at in group:
        await f.write(at, record)
    while f.statistics().oldest_dirty_seconds is not None:
        await asyncio.sleep(0.001)


def forms(length: int) -> dict[str, Form]:
    """Return all ways in which users make a record durable."""
    manual = FlushPolicy.manual()
    return {
        "write + wait_durable": Form(manual, _wait_durable),
        "write + flush": Form(manual, _flush, each=False),
        "write + flush_range": Form(manual, _flush_range),
        "every_interval": Form(FlushPolicy.every_interval(0.02), _background, each=False),
        "every_writes": Form(FlushPolicy.every_writes(GROUP), _background, each=False),
        "every_bytes": Form(FlushPolicy.every_bytes(GROUP * length), _background, each=False),
        "always": Form(FlushPolicy.always(), _flush),
    }


def in_large_pieces(path: str, size: int) -> None:
    """Make a file that is cached in large folios."""
    with open(path, "wb", buffering=0) as file:
        file.writelines(bytes(2 * MIB) for _ in range(0, size, 2 * MIB))
        os.fsync(file.fileno())


def reserved(path: str, size: int) -> None:
    """Make a file of blocks that were reserved and never written."""
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        os.fsync(file.fileno())


def sparse(path: str, size: int) -> None:
    """Make a file that is one hole."""
    with open(path, "wb") as file:
        file.truncate(size)
        os.fsync(file.fileno())


LAYOUTS = {"large pieces": in_large_pieces, "reserved": reserved, "sparse": sparse}


def by_pwrite(path: str, groups: Sequence[Sequence[int]], record: bytes, *, each: bool) -> None:
    """Write the records, and sync after each record or after each group."""
    fd = os.open(path, os.O_RDWR)
    for group in groups:
        for at in group:
            os.pwrite(fd, record, at)
            if each:
                os.fdatasync(fd)
        if not each:
            os.fdatasync(fd)
    os.close(fd)


async def run(report: Report, *, smoke: bool) -> None:
    """Compare each form with pwrite and fdatasync of the same records on the same device."""
    size, records = (8 * MIB, 16) if smoke else (32 * MIB, RECORDS)
    for kind in ("ext4", "xfs", "btrfs"):
        try:
            with mounted(kind) as device:
                await _ask(report, kind, device, size, records, smoke=smoke)
        except OSError as error:
            print(f"{report.question:<11} {kind}: not measured here: {error}")


async def _ask(
    report: Report, kind: str, device: Device, size: int, records: int, *, smoke: bool
) -> None:
    worst: dict[str, float] = {}
    for length in (128,) if smoke else (128, 4096):
        for layout in ("large pieces",) if smoke else LAYOUTS:
            for order in ("at random", "in sequence"):
                groups = _places(order, length, size, records)
                for name, form in forms(length).items():
                    theirs = _count_pwrite(device, layout, size, groups, length, each=form.each)
                    ours = await _count(device, layout, size, groups, length, form)
                    worst[name] = max(worst.get(name, 0), ours / theirs)
                    if (length, layout, order) == (128, "large pieces", "at random"):
                        label = f"{kind}, 128 B at random: {name}"
                        report.row(label, ours / records / 1024, "KiB a record")
                        label = f"{kind}, 128 B at random: pwrite + fdatasync"
                        if name == "write + wait_durable":
                            report.row(label, theirs / records / 1024, "KiB a record")
    for name, value in worst.items():
        report.row(f"{kind}: {name} / pwrite + fdatasync", value, "x", MOST, most=True)
    await _ask_counters(report, kind, device, size, rounds=3 if smoke else 50)


async def _ask_counters(
    report: Report, kind: str, device: Device, size: int, *, rounds: int
) -> None:
    """Compare a flush of counters with the same stored by pwrite, and through a mapping.

    btrfs keeps files in single pages, so there a mapping costs no more than pwrite; the rest of the
    bytes are its trees.
    """
    ours = await _count_counters(device, size, rounds)
    by_pwrite = _count_their_counters(device, size, rounds, mapped=False)
    by_mmap = _count_their_counters(device, size, rounds, mapped=True)
    what = f"{kind}: {COUNTERS} hot counters"
    report.row(f"{what}, a flush", ours / 1024, "KiB")
    report.row(f"{what}, pwrite + fdatasync", by_pwrite / 1024, "KiB")
    report.row(f"{what}, mmap + fdatasync", by_mmap / 1024, "KiB")
    report.row(f"{what}, a flush / pwrite", ours / by_pwrite, "x", MOST, most=True)
    report.row(f"{what}, mmap / a flush", by_mmap / ours, "x", None if kind == "btrfs" else 40)


def _places(order: str, length: int, size: int, records: int) -> list[list[int]]:
    room, drawn = size // length, random.Random(14)
    at = [drawn.randrange(room) if order == "at random" else i for i in range(records)]
    return [[n * length for n in at[i : i + GROUP]] for i in range(0, records, GROUP)]


def _count_pwrite(
    device: Device,
    layout: str,
    size: int,
    groups: Sequence[Sequence[int]],
    length: int,
    *,
    each: bool,
) -> int:
    path = os.path.join(device.folder, "theirs")
    LAYOUTS[layout](path, size)
    device.sync()
    before = device.written()
    by_pwrite(path, groups, b"r" * length, each=each)
    written = device.written() - before
    os.unlink(path)
    return written


async def _count(
    device: Device,
    layout: str,
    size: int,
    groups: Sequence[Sequence[int]],
    length: int,
    form: Form,
) -> int:
    path = os.path.join(device.folder, "ours")
    LAYOUTS[layout](path, size)
    async with aiommap.open(path, "r+", flush=form.policy) as f:
        device.sync()
        before = device.written()
        for group in groups:
            await form.write(f, group, b"r" * length)
        written = device.written() - before
    os.unlink(path)
    return written


def _places_of_counters(size: int, seconds: float) -> Iterator[tuple[int, bytes]]:
    """Yield offset and value of stores for some seconds: to counters far apart, each in turn."""
    end, i = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        yield i % COUNTERS * (size // COUNTERS), i.to_bytes(8, "little")
        i += 1


async def _count_counters(device: Device, size: int, rounds: int) -> float:
    """Return the bytes of each flush while counters change all the time, flushed every 10 ms."""
    path = os.path.join(device.folder, "counters")
    in_large_pieces(path, size)
    async with aiommap.open(path, "r+") as f:
        await f.prewarm()
        device.sync()
        before = device.written()
        for _ in range(rounds):
            for at, value in _places_of_counters(size, 0.01):
                await f.write(at, value)
            await f.flush()
        written = device.written() - before
    os.unlink(path)
    return written / rounds


def _count_their_counters(device: Device, size: int, rounds: int, *, mapped: bool) -> float:
    path = os.path.join(device.folder, "counters")
    in_large_pieces(path, size)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, size) as memory:
        device.sync()
        before = device.written()
        for _ in range(rounds):
            for at, value in _places_of_counters(size, 0.01):
                if mapped:
                    memory[at : at + len(value)] = value
                else:
                    os.pwrite(fd, value, at)
            os.fdatasync(fd)
        written = device.written() - before
    os.close(fd)
    os.unlink(path)
    return written / rounds
