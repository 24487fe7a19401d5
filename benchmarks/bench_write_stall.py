"""How long do writes stop the loop, with flushes all the time, on slow or busy disks?

A foreign writer takes one processor, and the kernel's own threads take another. Loops that make no
call to the file, beside the same writer, show which part of the stall no library can avoid: one
alone, one beside a bare process that only flushes as often, and one beside a process that stores as
often, too.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiommap

from ._devices import MIB, Device, mounted
from ._harness import Report, heartbeat

TASKS, PAUSE = 8, 0.01
RECORD = bytes(128)
SMALL_JOURNAL = ("-J", "size=4")
#: Bytes a second that a slow device takes.
SLOW = 20_000_000
#: Writes 8 MiB at a time over a file, again and again.
FOREIGN = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
while True:
    for at in range(0, size, 8 << 20):
        os.pwrite(fd, b"f" * (8 << 20), at)
"""
#: Flushes a file every 10 ms, and beside that makes up to so many stores a second at random by
#: pwrite. Prints how many it made before somebody ended it.
BARE = """
import os, random, signal, sys, threading, time
fd, rate, count = os.open(sys.argv[1], os.O_RDWR), float(sys.argv[2]), 0
room, record, drawn = os.fstat(fd).st_size // 128, bytes(128), random.Random(1)

def store():
    global count
    due, last = 0.0, time.monotonic()
    while True:
        time.sleep(0.0005)
        now = time.monotonic()
        due, last = min(due + (now - last) * rate, rate / 100), now
        while due >= 1:
            os.pwrite(fd, record, drawn.randrange(room) * 128)
            due, count = due - 1, count + 1

def end(*_):
    print(count, flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, end)
if rate:
    threading.Thread(target=store, daemon=True).start()
while True:
    time.sleep(0.01)
    os.fdatasync(fd)
"""


@dataclass(frozen=True, slots=True)
class Found:
    """The worst delay of a heartbeat, how long of it the loop waited for a processor, in
    milliseconds, and writes a second."""

    worst: float
    queued: float
    writes: float


async def run(report: Report, *, smoke: bool) -> None:
    """Eight tasks write at random, and a flush begins every 10 ms."""
    size, seconds, rounds = (16 * MIB, 0.2, 1) if smoke else (64 * MIB, 2.0, 5)
    try:
        with mounted("ext4", *SMALL_JOURNAL) as device:
            await _ask(report, "a journal of 4 MiB", device, size, seconds, rounds)
            await _ask_foreign(report, device, size, seconds, rounds)
            with _stable_pages(device):
                await _ask(report, "stable pages", device, size, seconds, rounds)
            with _slow(device):
                await _ask(report, "20 MB/s", device, size, seconds, rounds)
    except OSError as error:
        print(f"{report.question:<11} not measured here: {error}")


async def _ask(
    report: Report, name: str, device: Device, size: int, seconds: float, rounds: int
) -> None:
    path, found = _make_file(device, size), []
    for _ in range(rounds):
        found.append(await _ours(path, size, seconds))
        device.sync()
    os.unlink(path)
    _tell(report, name, found)


async def _ask_foreign(
    report: Report, device: Device, size: int, seconds: float, rounds: int
) -> None:
    """Put the load beside a foreign writer, in turns with loops that make no call to the file."""
    path = _make_file(device, size)
    ours: list[Found] = []
    alone: list[Found] = []
    flushing: list[Found] = []
    storing: list[Found] = []
    for _ in range(rounds):
        with _foreign(path):
            ours.append(await _ours(path, size, seconds))
        device.sync()
        turns = [(alone, None), (flushing, 0.0), (storing, ours[-1].writes)]
        for found, rate in random.sample(turns, len(turns)):
            with _foreign(path):
                found.append(await _copies(path, size, seconds, rate))
            device.sync()
    os.unlink(path)
    name = "a foreign writer"
    _tell(report, name, ours)
    report.row(f"{name}: of it waiting for a processor", _median(ours, "queued"), "ms")
    copies = f"{name}: worst stall of a loop that only copies"
    report.row(copies, _median(alone, "worst"), "ms")
    report.row(f"{copies}, beside a process that flushes", _median(flushing, "worst"), "ms")
    report.row(f"{copies}, beside one that stores, too", _median(storing, "worst"), "ms")
    report.row(f"{name}: writes of that process", _median(storing, "writes"), "writes/s")
    least = _median(ours, "worst") / _median(flushing, "worst")
    report.row(f"{name}: ours, relative to beside one that flushes", least, "x")
    same = _median(ours, "worst") / _median(storing, "worst")
    report.row(f"{name}: ours, relative to beside one that stores, too", same, "x", 1, most=True)


def _tell(report: Report, name: str, found: list[Found]) -> None:
    worst = _median(found, "worst")
    report.row(f"{name}: worst stall, median", worst, "ms", 5, most=True)
    report.row(f"{name}: writes", _median(found, "writes"), "writes/s")


def _median(found: list[Found], name: str) -> float:
    return statistics.median(float(getattr(each, name)) for each in found)


async def _ours(path: str, size: int, seconds: float) -> Found:
    async with aiommap.open(path, "r+") as f, heartbeat() as stall:
        await f.prewarm()
        stall.clear()
        writes = await _load(f.write, f.flush, size, seconds)
        return Found(stall.worst, stall.worst_queued, writes)


async def _copies(path: str, size: int, seconds: float, rate: float | None) -> Found:
    """Put the load on memory, beside a bare process if a rate of its stores is given."""
    memory = bytearray(b"x") * size

    async def write(offset: int, record: bytes) -> None:
        memory[offset : offset + len(record)] = record

    async def flush() -> None:
        await asyncio.sleep(0)

    command = [sys.executable, "-c", BARE, path, str(rate)]
    bare = None if rate is None else subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    begun = time.monotonic()
    try:
        await asyncio.sleep(0.2)
        async with heartbeat() as stall:
            await _load(write, flush, size, seconds)
    finally:
        if bare is not None:
            bare.terminate()
            made = float(bare.communicate()[0] or 0) / (time.monotonic() - begun)
    return Found(stall.worst, stall.worst_queued, 0.0 if bare is None else made)


def _make_file(device: Device, size: int) -> str:
    path = os.path.join(device.folder, "file")
    with open(path, "wb", buffering=0) as file:
        file.writelines(bytes(2 * MIB) for _ in range(0, size, 2 * MIB))
        os.fsync(file.fileno())
    return path


async def _load(
    write_record: Callable[[int, bytes], Awaitable[object]],
    flush_all: Callable[[], Awaitable[object]],
    size: int,
    seconds: float,
) -> float:
    """Write and flush for some seconds; return writes a second."""
    end, count, room = time.monotonic() + seconds, 0, size // len(RECORD)

    async def write(seed: int) -> None:
        nonlocal count
        drawn = random.Random(seed)
        while time.monotonic() < end:
            await write_record(drawn.randrange(room) * len(RECORD), RECORD)
            count += 1
            if not count % 16:
                await asyncio.sleep(0.0005)

    async def flush() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(PAUSE)
            await flush_all()

    await asyncio.gather(flush(), *map(write, range(TASKS)))
    return count / seconds


@contextmanager
def _foreign(path: str) -> Iterator[None]:
    other = subprocess.Popen([sys.executable, "-c", FOREIGN, path])
    try:
        time.sleep(0.2)
        yield
    finally:
        other.kill()
        other.wait()


@contextmanager
def _stable_pages(device: Device) -> Iterator[None]:
    """Let the kernel keep pages stable while the device writes them, as for RAID and iSCSI."""
    switch = Path("/sys/block", device.name, "queue", "stable_writes")
    switch.write_text("1")
    try:
        yield
    finally:
        switch.write_text("0")


@contextmanager
def _slow(device: Device) -> Iterator[None]:
    """Limit the bytes that the device takes a second, where cgroups can do that."""
    limit = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
    number = Path("/sys/block", device.name, "dev").read_text().strip()
    if not limit.exists():
        raise OSError("cgroups have no limit for devices here")
    limit.write_text(f"{number} {SLOW}")
    try:
        yield
    finally:
        with suppress(OSError):
            limit.write_text(f"{number} 0")
