"""A file that is dropped releases everything, however its loop ended and whatever was under way."""

from __future__ import annotations

import os

import pytest

from tests.support.fork_server import run_code

SCRIPT = """
import asyncio, contextlib, gc, itertools, os, sys, time, warnings
import anyio, aiommap
from aiommap import FlushPolicy

warnings.simplefilter("ignore")
path, loop_name, way = sys.argv[1:]
POLICIES = [
    FlushPolicy.never(), FlushPolicy.manual(), FlushPolicy.always(), FlushPolicy.every_bytes(10),
    FlushPolicy.every_writes(2), FlushPolicy.every_interval(0.01),
]
closed = "closed" in loop_name
logging_off = __import__("logging").disable()

async def hang(*_):
    await anyio.sleep(1000)

async def wait_for_word(f):
    await f.atomic_u32(0).wait(f.atomic_u32(0).load())

async def wait_for_word_with_limit(f):
    await f.atomic_u32(0).wait(f.atomic_u32(0).load(), timeout=1000)

async def hold_lock(f):
    async with f.file_lock(0, 8):
        await hang()

async def wait_for_lock(f):
    async with f.file_lock(4, 8, timeout=1000):
        await hang()

async def pin(f):
    async with f.locked(0, 4096):
        await hang()

async def watch(f):
    async with f.watch() as changes:
        async for _ in changes:
            pass

async def watch_path(f):
    async with aiommap.Hub() as hub, hub.watch(f.path) as changes:
        async for _ in changes:
            pass

async def follow(f):
    kept.append(await aiommap.follow(f.path))
    await hang()

async def follow_in_a_block(f):
    async with aiommap.follow(f.path):
        await hang()

async def follow_in_a_trial(f):
    await aiommap.follow(f.path, validate=hang)

async def hold_async_lock(f):
    await aiommap.AsyncLock(f, 16).acquire()
    await hang()

async def wait_for_async_lock(f):
    await aiommap.AsyncLock(f, 16).acquire()

async def acquire(f):
    allocator = f.allocator(start=0)
    for _ in range(2):
        await allocator.acquire(f.size)

async def flush(f):
    await f.flush()

async def read_chunks(f):
    async for _ in f.chunks(4096):
        await hang()

async def write_at_the_end(f):
    try:
        await hang()
    finally:
        if not closed:
            await f.write(0, bytes(300_000))

WAYS = {
    "nothing": [],
    "waits": [wait_for_word, wait_for_word_with_limit, hold_lock, wait_for_lock, acquire],
    "async locks": [hold_async_lock, wait_for_async_lock],
    "watches": [watch, watch_path],
    "follows": [follow, follow_in_a_block, follow_in_a_trial],
    "watched waits": [watch, wait_for_word, wait_for_async_lock],
    "flushes": [flush, flush, write_at_the_end],
    "blocks": [pin, read_chunks],
}

async def main(policy, group):
    f = await aiommap.open(path, "r+", flush=policy)
    await f.write(0, bytes(200_000))
    if "watch" in way:
        f.on_change(hang)
    if way == "async locks":
        await aiommap.AsyncLock(f, 32).acquire()
    for function in WAYS[way]:
        group(function, f)
    await anyio.sleep(next(moments))
    raise ZeroDivisionError

tasks, kept = [], []
moments = itertools.cycle([0.03, 0.0, 0.001, 0.002, 0.005])

async def main_of_asyncio(policy):
    await main(policy, lambda *call: tasks.append(asyncio.create_task(call[0](call[1]))))

async def main_of_trio(policy):
    async with anyio.create_task_group() as group:
        await main(policy, group.start_soon)

def run(policy):
    if loop_name == "trio":
        anyio.run(main_of_trio, policy, backend="trio")
    elif closed:
        loop = __import__(loop_name.split()[0]).new_event_loop()
        try:
            loop.run_until_complete(main_of_asyncio(policy))
        finally:
            loop.close()
    else:
        __import__(loop_name).run(main_of_asyncio(policy))

def held():
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # threads that end close theirs meanwhile
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    names = [name for name in found if path in name or "inotify" in name]
    with open("/proc/self/maps") as maps:
        return names + [line for line in maps if path in line]

for policy in POLICIES:
    with contextlib.suppress(ZeroDivisionError, BaseExceptionGroup):
        run(policy)
    tasks.clear()
    kept.clear()
    deadline = time.monotonic() + 100  # threads that are being told to end take a moment
    while True:
        gc.collect()
        left = held()
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if left:
        print(policy, left)
print("done")
"""

LOOPS = ["asyncio", "uvloop", "trio", "asyncio closed", "uvloop closed"]
WAYS = [
    "nothing",
    "waits",
    "async locks",
    "watches",
    "follows",
    "watched waits",
    "flushes",
    "blocks",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loop", LOOPS)
def test_dropped_file_holds_nothing(path, loop, way):
    os.truncate(path, 1 << 20)
    ended = run_code(SCRIPT, path, loop, way)
    assert ended.stdout == "done\n", ended.stdout + ended.stderr
