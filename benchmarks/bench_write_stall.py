"""How long do writes stop the loop, with flushes all the time, on slow or busy disks?

A foreign writer takes one processor, and the kernel's own threads take another. A loop that only
copies memory, as often, beside the same writer shows which part of the stall is not ours.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
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


async def run(report: Report, *, smoke: bool) -> None:
    """Eight tasks write at random, and a flush begins every 10 ms."""
    size, seconds, rounds = (16 * MIB, 0.2, 1) if smoke else (64 * MIB, 2.0, 5)
    try:
        with mounted("ext4", *SMALL_JOURNAL) as device:
            await _ask(report, "a journal of 4 MiB", device, size, seconds, rounds)
            await _ask(report, "a foreign writer", device, size, seconds, rounds, foreign=True)
            await _ask_machine(report, device, size, seconds, rounds)
            with _stable_pages(device):
                await _ask(report, "stable pages", device, size, seconds, rounds)
            with _slow(device):
                await _ask(report, "20 MB/s", device, size, seconds, rounds)
    except OSError as error:
        print(f"{report.question:<11} not measured here: {error}")


async def _ask(
    report: Report,
    name: str,
    device: Device,
    size: int,
    seconds: float,
    rounds: int,
    *,
    foreign: bool = False,
) -> None:
    path = _make_file(device, size)
    found, rates = [], []
    for _ in range(rounds):
        async with (
            aiommap.open(path, "r+") as f,
            _beside(path) if foreign else nullcontext(),
            heartbeat() as stall,
        ):
            await f.prewarm()
            stall.worst = 0.0
            rates.append(await _load(f.write, f.flush, size, seconds))
            found.append(stall.worst)
        device.sync()
    os.unlink(path)
    report.row(f"{name}: worst stall, median", statistics.median(found), "ms", 5, most=True)
    report.row(f"{name}: writes", statistics.median(rates), "writes/s")


async def _ask_machine(
    report: Report, device: Device, size: int, seconds: float, rounds: int
) -> None:
    """Put the same load, beside the same writer, on a loop that makes no call to the file."""
    path, memory = _make_file(device, size), bytearray(size)
    found = []

    async def write(offset: int, record: bytes) -> None:
        memory[offset : offset + len(record)] = record

    async def flush() -> None:
        await asyncio.sleep(0)

    for _ in range(rounds):
        async with _beside(path), heartbeat() as stall:
            await _load(write, flush, size, seconds)
            found.append(stall.worst)
        device.sync()
    os.unlink(path)
    label = "a foreign writer: worst stall of a loop that only copies, median"
    report.row(label, statistics.median(found), "ms")


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


@asynccontextmanager
async def _beside(path: str) -> AsyncIterator[None]:
    other = subprocess.Popen([sys.executable, "-c", FOREIGN, path])
    try:
        await asyncio.sleep(0.2)
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
