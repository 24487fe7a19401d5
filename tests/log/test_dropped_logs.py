"""A log that is dropped releases its lock and its descriptors, however its loop ended."""

from __future__ import annotations

import pytest

from tests.support.fork_server import run_code

SCRIPT = """
import asyncio, contextlib, gc, os, sys, time, warnings
import anyio, aiommap
from aiommap import FlushPolicy, Log

folder, loop_name, way = sys.argv[1:]
POLICIES = [
    FlushPolicy.never(), FlushPolicy.manual(), FlushPolicy.always(), FlushPolicy.every_bytes(10),
    FlushPolicy.every_writes(2), FlushPolicy.every_interval(0.01),
]
closed = "closed" in loop_name
told = []

def tell(message, category, *_):
    if category is ResourceWarning:
        told.append(str(message))  # and not the coroutine that it may have as its source

warnings.simplefilter("always")
warnings.showwarning = tell
logging_off = __import__("logging").disable()

async def follow(log):
    async for _ in log.tail(1):
        pass

async def follow_in_another(log):
    follower = await Log.open(folder, "r")
    await follow(follower)

async def append(log):
    while True:
        await log.append(bytes(3000))

async def append_many(log):
    while True:
        await log.append_many([bytes(300)] * 30)

async def flush(log):
    while True:
        await log.append(b"x")
        await log.flush()

WAYS = {
    "nothing": [],
    "tails": [follow, follow, follow_in_another],
    "appends": [append, append_many, append, append],
    "flushes": [append, flush, flush],
}

async def main(policy, group):
    options = {"retain_bytes": 1 << 18, "inline_writes": way != "flushes"}
    log = await Log.open(folder, flush=policy, segment_size=1 << 16, **options)
    await log.append(bytes(40_000))  # more than half of the segment: it makes a standby
    for function in WAYS[way]:
        group(function, log)
    await anyio.sleep(0.01)
    raise ZeroDivisionError

tasks = []

async def main_of_asyncio(policy):
    await main(policy, lambda *call: tasks.append(asyncio.create_task(call[0](call[1]))))

async def main_of_trio(policy):
    async with anyio.create_task_group() as group:
        await main(policy, group.start_soon)

async def dropped_in_a_loop(policy):
    for _ in range(2):
        log = await Log.open(folder, flush=policy, segment_size=1 << 16)
        await log.append(bytes(40_000))
        del log
        await released()

def run(policy):
    if way == "goes on":
        backend, _, uvloop = loop_name.replace("uvloop", "asyncio uvloop").partition(" ")
        options = {"use_uvloop": True} if uvloop else {}
        anyio.run(dropped_in_a_loop, policy, backend=backend, backend_options=options)
    elif loop_name == "trio":
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
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    with open("/proc/self/maps") as maps:
        return [name for name in [*found, *maps] if folder in name]

async def released():
    deadline = time.monotonic() + 20  # a worker may have something to end
    while gc.collect() >= 0 and held() and time.monotonic() < deadline:
        await anyio.sleep(0.01)
    if held():
        print(policy, held())

for policy in POLICIES:
    told.clear()
    with contextlib.suppress(ZeroDivisionError, BaseExceptionGroup):
        run(policy)
    tasks.clear()
    anyio.run(released)
    said = [text for text in told if folder in text]
    begins = f"the log {folder} was never closed"
    lost = [text for text in said if f"{begins}; nothing was flushed: use async with" in text]
    if not lost or any(begins not in text for text in said):
        print(said)
    async def again():
        async with Log.open(folder) as log:
            await log.append(b"x")
    anyio.run(again)
print("done")
"""

# Each test runs six policies in a new interpreter, and the machine may be busy.
pytestmark = pytest.mark.timeout(200)
LOOPS = ["asyncio", "uvloop", "trio", "asyncio closed", "uvloop closed"]
WAYS = ["nothing", "tails", "appends", "flushes"]
CASES = [(loop, way) for loop in LOOPS for way in WAYS]
CASES += [(loop, "goes on") for loop in LOOPS[:3]]
QUICK = [("asyncio", "nothing"), ("asyncio closed", "tails"), ("trio", "appends")]


@pytest.mark.parametrize(
    ("loop", "way"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_dropped_log_holds_nothing(tmp_path, loop, way):
    ended = run_code(SCRIPT, tmp_path / "log", loop, way)
    assert (ended.stdout, ended.stderr) == ("done\n", "")


FORKED = """
import anyio, gc, os, sys, warnings, aiommap
warnings.simplefilter("error")
folder, other = sys.argv[1:]
kept = []

async def use(path):
    log = await aiommap.Log.open(path, segment_size=1 << 16)
    await log.append(bytes(40_000))
    return log

async def parent():
    kept.append(await use(folder))
    await kept[0].flush()
    return kept[0]

async def child():
    async with aiommap.Log.open(other) as log:  # its descriptors have the same numbers
        kept.clear()
        gc.collect()
        receipt = await log.append(b"x")
        await receipt.wait_durable()
        try:
            await aiommap.Log.open(other)
        except anyio.BusyResourceError:
            print("child", flush=True)

def fork():
    pid = os.fork()
    if not pid:
        try:
            anyio.run(child)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

async def main():
    await parent()
    import threading
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    try:
        await aiommap.Log.open(folder)
    except anyio.BusyResourceError:
        print("parent")
    await kept[0].aclose()

anyio.run(main)
"""


def test_copy_that_a_child_drops_closes_nothing(tmp_path):
    ended = run_code(FORKED, tmp_path / "log", tmp_path / "other")
    assert ended.stdout == "child\nparent\n", ended.stdout + ended.stderr
