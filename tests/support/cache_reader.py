"""Reads an object through a shared cache, compares every byte, and prints statistics.

``python -m tests.support.cache_reader FOLDER OBJECT SEED READS MAX_BLOCKS [BACKEND]``; it prints
"ready", waits for a line, reads, and prints the statistics. It exits with 1 if a byte is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
from pathlib import Path

import anyio
import anyio.to_thread

from aiommap.remote import RemoteCache, RemoteState

BLOCK = 4096


class SlowFile:
    """A file as an object of a store; its state never changes."""

    def __init__(self, path):
        self._path = Path(path)
        self.url = f"test://{path}"

    def stat(self, known):
        state = RemoteState(self._path.stat().st_size, '"1"')
        return None if state == known else state

    def fetch(self, start, end, state):
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start), state


async def read_all(folder, path, seed, reads, max_blocks):
    data = Path(path).read_bytes()
    draw = random.Random(seed)
    limiter = anyio.CapacityLimiter(16)
    cache = RemoteCache(
        folder,
        block_size=BLOCK,
        request_size=4 * BLOCK,
        max_bytes=max_blocks * BLOCK,
        min_free=0.0,
    )

    async def read(s, start, length):
        async with limiter:
            found = await s.read_exact(start, length)
        if found != data[start : start + length]:
            print("wrong bytes", start, length, flush=True)
            os._exit(1)

    async with cache, cache.open(SlowFile(path), read_ahead=False) as s:
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        async with anyio.create_task_group() as group:
            if reads:
                for _ in range(reads):
                    start = draw.randrange(len(data))
                    length = min(draw.randrange(1, 2 * BLOCK), len(data) - start)
                    group.start_soon(read, s, start, length)
            else:  # every block, in an order drawn from the seed
                blocks = [*range(-(-len(data) // BLOCK))]
                draw.shuffle(blocks)
                for block in blocks:
                    group.start_soon(read, s, block * BLOCK, 100)
        print(json.dumps(dataclasses.asdict(cache.statistics())), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder, path, seed, reads, max_blocks = sys.argv[1:6]
    backend = sys.argv[6] if len(sys.argv) > 6 else "asyncio"
    anyio.run(read_all, folder, path, int(seed), int(reads), int(max_blocks), backend=backend)
