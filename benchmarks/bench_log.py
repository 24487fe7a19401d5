"""How fast is a log, beside databases that people keep logs in, and beside batches by hand?"""

from __future__ import annotations

import asyncio
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

import aiommap
from aiommap import FlushPolicy, Log

from ._harness import MIB, Report, rate

RECORD = b"r" * 128
PLACE_BYTES = 152
LARGE = b"R" * 4096
#: Ratios to reach, by tasks: to aiosqlite with a commit each, batched by hand, lmdb, always().
TARGETS = {1: (1.5, 1.5, None, 1.5), 64: (12, 1.5, 10, 1.5), 256: (12, 1.5, 10, 1.5)}
DEVICE_TARGETS = {1: 4800, 64: 300}

Append = Callable[[int], Awaitable[object]]


@asynccontextmanager
async def by_log(folder: str) -> AsyncIterator[Append]:
    """Append to a log under ``always()``."""
    async with Log.open(f"{folder}/log", flush=FlushPolicy.always()) as log:
        yield lambda _: log.append(RECORD)


@asynccontextmanager
async def by_places(folder: str) -> AsyncIterator[Append]:
    """Write each record to its own place in a file, under ``always()``."""
    size = PLACE_BYTES << 18
    async with aiommap.open(f"{folder}/places", "w+", size=size, flush=FlushPolicy.always()) as f:
        yield lambda i: f.write(i * PLACE_BYTES % size, RECORD)


@asynccontextmanager
async def _sqlite(folder: str, name: str) -> AsyncIterator[object]:
    import aiosqlite

    async with aiosqlite.connect(f"{folder}/{name}") as db:
        await db.execute("PRAGMA journal_mode=WAL")
        await db.execute("PRAGMA synchronous=FULL")
        await db.execute("CREATE TABLE log (sequence INTEGER PRIMARY KEY, data BLOB)")
        await db.commit()
        yield db


@asynccontextmanager
async def by_sqlite(folder: str) -> AsyncIterator[Append]:
    """Insert by aiosqlite in WAL mode, synchronous=FULL, with a commit for each record."""
    turn = asyncio.Lock()
    async with _sqlite(folder, "each.db") as db:

        async def append(_: int) -> None:
            async with turn:
                await db.execute("INSERT INTO log (data) VALUES (?)", (RECORD,))  # type: ignore[attr-defined]
                await db.commit()  # type: ignore[attr-defined]

        yield append


@asynccontextmanager
async def _batched(store: Callable[[int], Awaitable[object]]) -> AsyncIterator[Append]:
    """Batch by hand: one task commits the records of all tasks that wait."""
    waiting: list[asyncio.Future[None]] = []
    wake = asyncio.Event()

    async def serve() -> None:
        while True:
            await wake.wait()
            wake.clear()
            batch = waiting[:]
            waiting.clear()
            if batch:
                await store(len(batch))
            for future in batch:
                future.set_result(None)

    async def append(_: int) -> None:
        future = asyncio.get_running_loop().create_future()
        waiting.append(future)
        wake.set()
        await future

    task = asyncio.create_task(serve())
    try:
        yield append
    finally:
        task.cancel()


@asynccontextmanager
async def by_sqlite_batched(folder: str) -> AsyncIterator[Append]:
    """Insert by aiosqlite, batched by hand."""
    async with _sqlite(folder, "batched.db") as db:

        async def store(count: int) -> None:
            rows = [(RECORD,)] * count
            await db.executemany("INSERT INTO log (data) VALUES (?)", rows)  # type: ignore[attr-defined]
            await db.commit()  # type: ignore[attr-defined]

        async with _batched(store) as append:
            yield append


@asynccontextmanager
async def by_calls(folder: str) -> AsyncIterator[Append]:
    """The calls alone, batched by hand: no frame, no checksum, no number, no reader told."""
    size = PLACE_BYTES << 18
    fd = os.open(f"{folder}/calls", os.O_RDWR | os.O_CREAT)
    at = 0

    def commit(count: int) -> None:
        nonlocal at
        at = 0 if at + PLACE_BYTES * count > size else at
        at += os.pwrite(fd, bytes(PLACE_BYTES * count), at)
        os.fdatasync(fd)

    async def store(count: int) -> None:
        await asyncio.get_running_loop().run_in_executor(None, commit, count)

    try:
        os.posix_fallocate(fd, 0, size)
        async with _batched(store) as append:
            yield append
    finally:
        os.close(fd)


@asynccontextmanager
async def by_lmdb(folder: str) -> AsyncIterator[Append]:
    """Put by py-lmdb in threads, with a transaction for each record."""
    import lmdb

    env = lmdb.open(f"{folder}/lmdb", map_size=1 << 30)
    number = 0

    def store() -> None:
        nonlocal number
        with env.begin(write=True) as transaction:
            number += 1
            transaction.put(number.to_bytes(8, "big"), RECORD, append=True)

    try:
        yield lambda _: asyncio.to_thread(store)
    finally:
        env.close()


PEERS = {
    "aiommap": by_log,
    "always() at places": by_places,
    "aiosqlite, a commit each": by_sqlite,
    "aiosqlite, batched by hand": by_sqlite_batched,
    "pwrite and fdatasync alone, batched by hand": by_calls,
    "lmdb, a transaction each": by_lmdb,
}
#: The share of aiommap's appends that a slow peer makes in a round.
SHARE = {"aiosqlite, a commit each": 0.1, "lmdb, a transaction each": 0.05}


async def durable(report: Report, folder: str, *, smoke: bool) -> None:
    """Measure durable records a second, all peers in turn."""
    rounds = 1 if smoke else 5
    for tasks, whole in ((1, 3000), (64, 64_000), (256, 128_000)):
        count = whole // 50 if smoke else whole
        found: dict[str, list[float]] = {name: [] for name in PEERS}
        for _ in range(rounds):
            for name, make in PEERS.items():
                operations = max(int(count * (1 if tasks == 1 else SHARE.get(name, 1))), tasks)
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    async with make(own) as append:
                        found[name].append(await rate(append, operations, tasks))
        medians = {name: statistics.median(rates) for name, rates in found.items()}
        for name, value in medians.items():
            report.row(f"{tasks} tasks: {name}", value, "records/s")
        sqlite, batched, lmdb, places = TARGETS[tasks]
        for name, target in (
            ("aiosqlite, a commit each", sqlite),
            ("aiosqlite, batched by hand", batched),
            ("lmdb, a transaction each", lmdb),
            ("always() at places", places),
        ):
            label = f"{tasks} tasks: aiommap / {name}"
            report.row(label, medians["aiommap"] / medians[name], "x", target)


@contextmanager
def own_device() -> Iterator[tuple[str, str]]:
    """Mount an ext4 on a new loop device; yield its folder, and the path of its statistics."""
    with ExitStack() as stack:
        store = stack.enter_context(tempfile.TemporaryDirectory())
        image, folder = f"{store}/image", f"{store}/disk"
        with open(image, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 512 * MIB)
        os.mkdir(folder)
        command = ["losetup", "--find", "--show", "--direct-io=on", image]
        loop = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
        stack.callback(subprocess.run, ["losetup", "--detach", loop], check=True)
        subprocess.run(
            ["mkfs.ext4", "-qF", "-O", "^has_journal", "-E", "lazy_itable_init=0", loop], check=True
        )
        subprocess.run(["mount", loop, folder], check=True)
        stack.callback(subprocess.run, ["umount", folder], check=True)
        yield folder, f"/sys/block/{os.path.basename(loop)}/stat"


def written(stat: str) -> int:
    """Return how many bytes were written to a device so far."""
    with open(stat) as file:
        return int(file.read().split()[6]) * 512


async def device_bytes(report: Report, *, smoke: bool) -> None:
    """Measure how many bytes the device writes for a durable record."""
    try:
        with own_device() as (folder, stat):
            for tasks, whole in ((1, 3000), (64, 64_000), (256, 128_000)):
                count = max(whole // 50 if smoke else whole, tasks)
                for name in ("aiommap", "always() at places"):
                    with tempfile.TemporaryDirectory(dir=folder) as own:
                        async with PEERS[name](own) as append:
                            await rate(append, max(count // 4, tasks), tasks)
                            before = written(stat)
                            await rate(append, count, tasks)
                            found = (written(stat) - before) / count
                    target = DEVICE_TARGETS.get(tasks) if name == "aiommap" and not smoke else None
                    label = f"{tasks} tasks: device bytes a record, {name}"
                    report.row(label, found, "B", target, most=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no loop device to count on: {error}")


async def unwaited(report: Report, folder: str, *, smoke: bool) -> None:
    """Measure appends that nobody waits for, and reading them back."""
    count = 2000 if smoke else 200_000
    rates: dict[str, list[float]] = {"append": [], "append_many of 64": [], "read": []}
    for _ in range(1 if smoke else 3):
        with tempfile.TemporaryDirectory(dir=folder) as own:
            async with Log.open(own) as log:
                start = time.perf_counter()
                for _ in range(count):
                    await log.append(RECORD)
                rates["append"].append(count / (time.perf_counter() - start))
                batch = [RECORD] * 64
                start = time.perf_counter()
                for _ in range(count // 64):
                    await log.append_many(batch)
                rates["append_many of 64"].append(count / (time.perf_counter() - start))
                start = time.perf_counter()
                async for _ in log.read():
                    pass
                rates["read"].append(log.last / (time.perf_counter() - start))
    median = {name: statistics.median(found) for name, found in rates.items()}
    report.row("not waited for: append", median["append"], "records/s", 300_000)
    report.row("not waited for: append_many of 64", median["append_many of 64"], "records/s")
    report.row("read 128 bytes", median["read"], "records/s", 2_000_000)


async def large(report: Report, folder: str, *, smoke: bool) -> None:
    """Compare reading 4 KiB records with a loop of slices of the same file."""
    count = 200 if smoke else 12_000
    ratios, alone = [], []
    window = bytearray(2 << 20)  # the quickest size
    with tempfile.TemporaryDirectory(dir=folder) as own, ExitStack() as own_file:
        async with Log.open(own) as log:
            for _ in range(count // 100):
                await log.append_many([LARGE] * 100)
            (path,) = (entry.path for entry in os.scandir(own) if entry.name.endswith(".log"))
            file = own_file.enter_context(open(path, "rb"))
            memory = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            step = 4096 + 24
            for _ in range(1 if smoke else 9):
                start = time.perf_counter()
                for at in range(4096 + 24, 4096 + count * step, step):
                    bytes(memory[at : at + 4096])
                middle = time.perf_counter()
                async for _ in log.read():
                    pass
                end = time.perf_counter()
                for at in range(4096, 4096 + count * step, len(window)):
                    os.preadv(file.fileno(), [window], at)
                ratios.append((middle - start) / (end - middle))
                alone.append((middle - start) / (time.perf_counter() - end))
    report.row("read 4 KiB / a loop of slices", statistics.median(ratios), "x", 0.7)
    report.row("its preadv alone / a loop of slices", statistics.median(alone), "x")


TAIL = """
import asyncio, sys, time, aiommap
async def main():
    async with aiommap.Log.open(sys.argv[1], "r") as log:
        print("ready", flush=True)
        found = []
        async for record in log.tail():
            sent = int.from_bytes(record.data, "little")
            if not sent:
                break
            found.append(time.monotonic_ns() - sent)
    print(*found)
asyncio.run(main())
"""


async def to_a_tail(report: Report, folder: str, *, smoke: bool) -> None:
    """How long after an append does a tail in another process have the record?"""
    count = 50 if smoke else 2000
    with tempfile.TemporaryDirectory(dir=folder) as own:
        async with Log.open(own) as log:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", TAIL, own, stdout=asyncio.subprocess.PIPE, limit=1 << 20
            )
            assert child.stdout is not None
            await child.stdout.readline()
            for _ in range(count):
                await asyncio.sleep(0.002)  # the reader is asleep by then
                await log.append(time.monotonic_ns().to_bytes(8, "little"))
            await log.append(b"")
            line = await child.stdout.read()
            await child.wait()
    found = sorted(int(word) / 1e6 for word in line.split())
    report.row(
        "writer to tail in another process, p50", found[len(found) // 2], "ms", 0.2, most=True
    )
    report.row("writer to tail in another process, p99", found[int(len(found) * 0.99)], "ms")


CRASH = """
import os, sys, asyncio, aiommap
async def main():
    log = await aiommap.Log.open(sys.argv[1])
    for _ in range(int(sys.argv[2])):
        await log.append_many([b"r" * 128] * 64)
    await log.flush()
    await log.append(b"last")
    os._exit(0)
asyncio.run(main())
"""


async def opening(report: Report, folder: str, *, smoke: bool) -> None:
    """Measure opening a log with a full segment after a crash."""
    batches = 100 if smoke else 6_800
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as own:
        command = [sys.executable, "-c", CRASH, own, str(batches)]
        await asyncio.to_thread(subprocess.run, command, check=True)
        for turn in range(1 if smoke else 5):
            start = time.perf_counter()
            log = await Log.open(own)
            found.append((time.perf_counter() - start) * 1e3)
            assert turn or log.recovered is not None
            await log.aclose()
    label = "opening after a crash, 64 MiB"
    report.row(label, statistics.median(found), "ms", None if smoke else 50, most=True)


async def through_rolls(report: Report, folder: str, *, smoke: bool) -> None:
    """Measure the latency of durable appends of 64 tasks, with a roll now and then."""
    count = 2000 if smoke else 100_000
    found: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as own:
        async with Log.open(own, flush=FlushPolicy.always(), segment_size=4 * MIB) as log:

            async def append(_: int) -> None:
                start = time.perf_counter()
                await log.append(RECORD)
                found.append((time.perf_counter() - start) * 1e3)

            await rate(append, count, 64)
            rolls = log.statistics().rolls
            slowest = log.statistics().slowest_roll_seconds
    found.sort()
    report.row(f"durable append, 64 tasks, {rolls} rolls: p50", found[len(found) // 2], "ms")
    report.row(
        "durable append through rolls, 64 tasks: p99.9",
        found[int(len(found) * 0.999)],
        "ms",
        None if smoke else 5,
        most=True,
    )
    report.row("slowest roll", slowest * 1e3, "ms")


async def run(report: Report, *, smoke: bool) -> None:
    """Answer all parts of the question in one run."""
    with tempfile.TemporaryDirectory() as folder:
        await durable(report, folder, smoke=smoke)
        await unwaited(report, folder, smoke=smoke)
        await large(report, folder, smoke=smoke)
        await to_a_tail(report, folder, smoke=smoke)
        await opening(report, folder, smoke=smoke)
        await through_rolls(report, folder, smoke=smoke)
    await device_bytes(report, smoke=smoke)
