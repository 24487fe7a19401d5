"""What does reading an object store through the cache cost, beside fsspec's caches and obstore?

nginx on this machine serves all objects, so the figures show the cost of the clients: trust the
ratios. Peers that are not installed are left out (fsspec with aiohttp: extra ``data``).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiommap
from aiommap.remote import ObstoreSource, RemoteCache
from tests.support.internals import Header, crc32c
from tests.support.remote_servers import Nginx
from tests.support.server_processes import find_tool

from ._harness import MIB, Action, Report, Stall, compare, heartbeat, make_cold
from ._remote_cold import TASKS, at_random
from ._remote_first import at_a_gateway, first_bytes, mounted
from ._remote_peers import BLOCK, CHUNK, READ, by_fsspec, has_fsspec, read_by_rclone
from ._remote_setting import Setting, timed, turns

CACHES = ("blockcache", "filecache")


def read_through(setting: Setting, kind: str) -> tuple[float, float]:
    """Read the object through fsspec; return seconds until the first bytes, and until the last."""
    with setting.fresh() as folder:
        start = time.perf_counter()
        with by_fsspec(setting.url, kind, folder) as file:
            file.read(READ)
            first = time.perf_counter() - start
            while file.read(CHUNK):
                pass
            return first, time.perf_counter() - start


async def read_ours(setting: Setting) -> tuple[float, float]:
    """Do the same through a cache of ours."""
    with setting.fresh() as folder:
        start = time.perf_counter()
        async with RemoteCache(folder) as cache, cache.open(setting.source()) as snapshot:
            await snapshot.read_exact(0, READ)
            first = time.perf_counter() - start
            async for _part in snapshot.chunks(CHUNK):
                pass
            return first, time.perf_counter() - start


async def scan(report: Report, setting: Setting) -> None:
    """Read the object once, with nothing cached."""
    firsts: defaultdict[str, list[float]] = defaultdict(list)
    seconds: defaultdict[str, list[float]] = defaultdict(list)

    async def step(name: str) -> None:
        first, whole = await readings[name]()
        firsts[name].append(first)
        seconds[name].append(whole)

    readings = readings_of_peers(setting)
    readings["aiommap"] = partial(read_ours, setting)
    for turn in turns(setting.rounds, [partial(step, name) for name in readings]):
        await turn()
    speed = {name: setting.size / MIB / statistics.median(t) for name, t in seconds.items()}
    for name, value in speed.items():
        report.row(f"scan: {name}", value, "MiB/s")
    targets = {"obstore": 0.7, "blockcache": 1.3, "filecache": 1.0, "rclone mount": 1.8}
    for name, target in targets.items():
        if name in speed:
            label = f"scan: aiommap / {name}"
            report.row(label, speed["aiommap"] / speed[name], "x", target)
    if "filecache" in firsts:
        ratio = statistics.median(firsts["aiommap"]) / statistics.median(firsts["filecache"])
        report.row("scan: first bytes, aiommap / filecache", ratio, "x", 0.02, most=True)


def readings_of_peers(setting: Setting) -> dict[str, Callable[[], Awaitable[tuple[float, float]]]]:
    """Name the other ways to read the object; each returns the same as ``read_through``."""
    import obstore

    def stream() -> tuple[float, float]:
        start = time.perf_counter()
        parts = iter(obstore.get(setting.store, "object").stream(min_chunk_size=CHUNK))
        next(parts)
        first = time.perf_counter() - start
        for _part in parts:
            pass
        return first, time.perf_counter() - start

    def mount() -> tuple[float, float]:
        with setting.fresh() as folder:
            _, first, whole = read_by_rclone(setting.url, folder, str(tool))
            return first, whole

    tool = find_tool("rclone")
    found: dict[str, Callable[[], tuple[float, float]]] = {"obstore": stream}
    if tool is not None:
        found["rclone mount"] = mount
    for kind in CACHES if has_fsspec() else ():
        found[kind] = partial(read_through, setting, kind)
    return {name: partial(asyncio.to_thread, reading) for name, reading in found.items()}


async def warm(report: Report, setting: Setting) -> None:
    """Measure cached reads of 4 KiB, beside a local snapshot and a file that threads read."""
    count = 200_000 if setting.rounds > 1 else 2000
    offsets = setting.offsets(count)
    fd = os.open(setting.path, os.O_RDONLY)
    async with (
        setting.opened(prewarm=True) as (_, remote),
        aiommap.Snapshot.open(setting.path, prewarm=True) as local,
    ):
        await remote.read_exact(0, setting.size)
        actions: dict[str, tuple[Action, int]] = {
            "aiommap": (lambda i: remote.read_exact(offsets[i], READ), count),
            "Snapshot": (lambda i: local.read_exact(offsets[i], READ), count),
            "to_thread": (lambda i: asyncio.to_thread(os.pread, fd, READ, offsets[i]), count // 20),
        }
        medians = await compare(actions, TASKS, setting.rounds)
    os.close(fd)
    for name, value in medians.items():
        report.row(f"warm 4 KiB, {TASKS} tasks: {name}", value, "reads/s")
    for name, target in (("Snapshot", 0.9), ("to_thread", 5.0)):
        label = f"warm 4 KiB, {TASKS} tasks: aiommap / {name}"
        report.row(label, medians["aiommap"] / medians[name], "x", target)


#: A process that reads all blocks, in an order of its own, once it gets a line.
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
    """Let two processes read the same blocks at once, and another one after them."""
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
            del snapshot  # now, and not while the next opening is timed
    report.row("opening what is cached", statistics.median(times) * 1e3, "ms", 5, most=True)


async def gaps(report: Report, setting: Setting) -> None:
    """Measure how long the loop stalls while blocks are fetched, stored and evicted.

    The controls take turns with it: obstore alone fetches as much in as many threads and stores
    nothing; or nobody does anything. How long the loop stalls then is not the cache's doing.
    """
    stalls: defaultdict[str, list[Stall]] = defaultdict(list)

    async def ours() -> None:
        with setting.fresh() as folder:
            async with RemoteCache(folder, max_bytes=setting.size + 8 * MIB) as cache:
                for key, name in (("object", "filled"), ("other", "filled and evicted")):
                    async with cache.open(ObstoreSource(setting.store, key)) as snapshot:
                        async with heartbeat() as stall:
                            await snapshot.prewarm()
                        stalls[name].append(stall)

    async def obstore_alone() -> None:
        async with heartbeat() as stall:
            await fetch_all(setting)
        stalls["fetched by obstore alone"].append(stall)

    async def nothing() -> None:
        async with heartbeat() as stall:
            await asyncio.sleep(setting.size / (1 << 30))
        stalls["not even fetched"].append(stall)

    for step in turns(setting.rounds, [ours, obstore_alone, nothing]):
        await step()
    amount = f"{setting.size // MIB} MiB"
    worst = {name: statistics.median(s.worst for s in found) for name, found in stalls.items()}
    for name, value in worst.items():
        target = 5 if name.startswith("filled") else None
        report.row(f"worst gap: {amount} {name}", value, "ms", target, most=True)
    label = "worst gap: filled / fetched by obstore alone"
    report.row(label, worst["filled"] / worst["fetched by obstore alone"], "x", 1, most=True)
    both = [s.worst_running for name in ("filled", "filled and evicted") for s in stalls[name]]
    label = "worst gap: of both, but for waiting for a processor"
    report.row(label, statistics.median(both), "ms", 5, most=True)


async def fetch_all(setting: Setting) -> None:
    """Fetch as ``prewarm`` does, by obstore alone: requests of 8 MiB, 4 at a time, in threads."""
    import obstore

    starts = iter(range(0, setting.size, CHUNK))

    def fetch_some() -> None:
        for start in starts:
            obstore.get_range(
                setting.store, "object", start=start, end=min(setting.size, start + CHUNK)
            )

    await asyncio.gather(*(asyncio.to_thread(fetch_some) for _ in range(4)))


async def checking(report: Report, setting: Setting) -> None:
    """Compare all blocks with their checksums, beside only reading the file.

    A cache has to do that after a reboot, when nothing is in memory: that is the cold case.
    """
    seconds: dict[str, list[float]] = {"verify": [], "file": [], "first pass": [], "cold file": []}

    def read_file(path: str) -> None:
        with open(path, "rb", buffering=0) as file:
            while file.read(MIB):
                pass

    with setting.fresh() as folder:
        for number in range(3 * setting.rounds):  # short ones, and a disk's speed changes
            async with RemoteCache(folder) as cache, cache.open(setting.source(), prewarm=True):
                with timed(seconds["verify"]):
                    await cache.verify()
            data = str(next(Path(folder).glob("*.data")))
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

            # They take turns in going first: a disk is faster at first than after a while.
            for step in (cold, first_pass) if number % 2 else (first_pass, cold):
                await step()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = medians["file"] / medians["verify"]
    report.row("verify / reading the file", ratio, "x", 0.9)
    report.row("reading the file, cold", setting.size / MIB / medians["cold file"], "MiB/s")
    ratio = medians["cold file"] / medians["first pass"]
    report.row("first pass after a reboot / reading the file, cold", ratio, "x", 0.9)


def be_of_another_boot(folder: str) -> None:
    """Make the cached blocks look as if they were cached before the machine was booted."""
    for path in Path(folder).glob("*.map"):
        with path.open("r+b") as file:
            header = Header.unpack(file.read(4096), crc32c)
            header.boot = bytes(16)
            file.seek(0)
            file.write(header.pack(crc32c))


async def run(report: Report, *, smoke: bool) -> None:
    """Put an object on a server, and measure everything with it."""
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
