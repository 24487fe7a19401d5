"""How much of Python's memory an open file takes: ten thousand open files should be no problem."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import aiommap
from aiommap import FlushPolicy

FILES = 64
LIMIT = 8 << 10


def test_open_file_takes_little_memory(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(FILES)]
    for path in paths:
        path.write_bytes(b"x")
    policy = FlushPolicy.every_interval(60)

    async def main():
        async with aiommap.Hub() as hub:
            first = await hub.open(paths.pop(), "r+", flush=policy)  # makes what all files share
            tracemalloc.start()
            try:
                files = await asyncio.gather(*(hub.open(p, "r+", flush=policy) for p in paths))
                await asyncio.sleep(0)  # so that the tasks that opened them are gone
                gc.collect()
                taken = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            assert not first.closed
            return taken / len(files)

    assert asyncio.run(main()) < LIMIT
