"""The end of an event loop, and use in another one: no verb hangs, and no written byte is lost."""

from __future__ import annotations

import pytest

from tests.support.fork_server import run_code

PRELUDE = """
import asyncio, sys, aiommap, trio, uvloop
from aiommap import PAGE_SIZE as PAGE, FlushPolicy
path, loop = sys.argv[1:]
def run(main):
    if loop == "trio":
        trio.run(lambda: main)
    else:
        (uvloop.run if loop == "uvloop" else asyncio.run)(main)
"""

TEARDOWN = {
    "aclose": "[asyncio.create_task(f.aclose())]",
    "writes": "[asyncio.create_task(f.write(0, b'x' * (8 << 20))) for _ in range(12)]",
    "flushes": "[asyncio.create_task(f.flush()) for _ in range(12)]",
    "locked": "[asyncio.create_task(pin(f)) for _ in range(12)]",
    "resize": "[asyncio.create_task(f.resize((9 + i) << 20)) for i in range(12)]",
    "opens": "[asyncio.create_task(again(f)) for i in range(12)]",
    "reads": "[asyncio.create_task(f.read(0, 8 << 20)) for i in range(40)]",
}

TEARDOWN_SCRIPT = """
async def pin(f):
    async with f.locked(0, PAGE): await asyncio.sleep(30)

async def again(f):
    async with aiommap.open(f.path, "r+", prewarm=True) as g: await g.write(0, b"y")

async def main():
    f = await aiommap.open(path, "r+")
    await f.resize(16 << 20)
    await f.write(0, b"x" * (8 << 20))
    keep = {tasks}
    await asyncio.sleep({turns})

run(main())
print("ended")
"""


def run(script, *arguments):
    done = run_code(PRELUDE + script, *arguments, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", ["0", "0.001"])
@pytest.mark.parametrize("name", TEARDOWN)
def test_loop_ends_with_verbs_under_way(path, name, turns, loop):
    script = TEARDOWN_SCRIPT.format(tasks=TEARDOWN[name], turns=turns)
    assert run(script, path, loop) == ["ended"]


@pytest.mark.slow
def test_loop_end_during_close_still_flushes(path):
    """``asyncio.run`` cancels the task, which waits for the close, which waits for the flush."""
    script = """
async def main():
    f = await aiommap.open(path, "r+")
    receipts = [await f.write(i * PAGE, b"x") for i in range(16)]
    flushing = asyncio.create_task(f.flush())
    await asyncio.sleep(0)
    receipts.append(await f.write(0, b"last"))
    main.receipts, main.task = receipts, asyncio.create_task(f.aclose())
    await asyncio.sleep(0)

run(main())
print(all(receipt.durable for receipt in main.receipts))
"""
    assert run(script, path, "asyncio") == ["True"]


USES = {
    "aclose": "f.aclose()",
    "flush": "f.flush()",
    "residency": "f.residency()",
    "large-write": "f.write(0, b'x' * (4 * PAGE))",
    "hub": "hub.open(path).__aenter__()",
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_second_loop_is_refused(path, use):
    script = f"""
async def first():
    global f, hub
    hub = aiommap.Hub()
    f = await hub.open(path, "r+", flush=FlushPolicy.always())

async def second():
    try:
        await {use}
    except RuntimeError as error:
        assert "open it again in this one" in str(error)
        print("refused")

run(first())
run(second())
"""
    assert run(script, path, "asyncio") == ["refused"]


WARM_USES = {
    "read": "f.read(0, 8)",
    "read_into": "f.read_into(0, bytearray(8))",
    "read_many": "f.read_many([(0, 8)])",
    "write": "f.write(0, b'x')",
    "write_many": "f.write_many([(0, b'x')])",
    "view": "f.view(0, PAGE).write(0, b'x')",
    "snapshot": "s.read_exact(0, 8)",
}

ELSEWHERE = """
import threading

async def first():
    global f, s
    f = await aiommap.open(path, "r+", flush=FlushPolicy.every_interval(30))
    s = await aiommap.Snapshot.open(path)
    await f.write(0, b"A")  # from here on, writes of this page go inline
    await f.read(0, 8)
    await asyncio.to_thread(run, elsewhere())
    print((await f.read(0, 1)).decode(), f.statistics().dirty_bytes == PAGE)
    await s.aclose()
    await f.aclose()
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("use", WARM_USES.values(), ids=WARM_USES)
def test_second_loop_refused_in_other_thread(path, use, loop):
    """Otherwise a write would be stored in the wrong loop, which cannot flush it."""
    script = f"""
async def elsewhere():
    async with aiommap.open(path) as own:  # so that this thread has a time slice, too
        await own.read(0, 1)
        try:
            await {use}
        except RuntimeError as error:
            assert str(error).startswith(path + " is used in another event loop"), error
            print("refused")

run(first())
"""
    assert run(ELSEWHERE + script, path, loop) == ["refused", "A", "True"]


def test_closed_objects_say_so_in_any_loop(path):
    script = """
import anyio
async def elsewhere():
    try:
        await f.read(0, 1)
    except anyio.ClosedResourceError:
        print("closed")

async def closed():
    global f
    async with aiommap.open(path) as f:
        pass
    await asyncio.to_thread(run, elsewhere())

run(closed())
"""
    assert run(script, path, "asyncio") == ["closed"]


def test_loop_moved_to_a_thread_keeps_files(path):
    script = """
import threading
loop = asyncio.new_event_loop()
f = loop.run_until_complete(aiommap.open(path, "r+").__aenter__())

async def use():
    for _ in range(2000):
        await f.read(0, 8)
        await f.write(0, b"x")

def go_on():
    loop.run_until_complete(use())
    found = f.statistics()
    # Only a spent time slice may still end the inline way.
    print(found.offloaded_reads + found.offloaded_writes < 10)

thread = threading.Thread(target=go_on)
thread.start()
thread.join()
loop.run_until_complete(f.aclose())
loop.close()
"""
    assert run(script, path, "asyncio") == ["True"]


def test_second_loop_cannot_set_a_timer(path):
    script = """
async def first():
    global f
    f = await aiommap.open(path, "r+", flush=FlushPolicy.every_interval(30))
    await f.write(0, b"A")
    await f.flush()

async def second():
    try:
        await f.write(0, b"x")
    except RuntimeError:
        print("refused", f.statistics().dirty_bytes)

run(first())
run(second())
"""
    assert run(script, path, "asyncio") == ["refused", "0"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_loop_end_undoes_a_cancelled_open(path, loop):
    script = """
import os
async def make(hub, made):
    await hub.open(made, "x+", size=PAGE)
    os.unlink(made)  # opened in time

async def main():
    hub = aiommap.Hub()
    main.tasks = [asyncio.create_task(make(hub, name)) for name in names]
    await asyncio.sleep(0)

names = [f"{path}.{i}" for i in range(8)]
run(main())
print(any(map(os.path.exists, names)))
"""
    assert run(script, path, loop) == ["False"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_loop_end_leaves_no_due_flush_task(path, loop):
    """More files than may be flushed at once, so that later turns begin while the loop ends."""
    script = """
from tests.support.internals import Writeback, asyncio_loop
import time
write_out = Writeback._write_out
def slowly(self, spans, *, whole):
    time.sleep(0.05)  # a slow disk
    return write_out(self, spans, whole=whole)
Writeback._write_out = slowly
receipts = []

async def main():
    main.hub = hub = aiommap.Hub()
    for i in range(12):
        policy = FlushPolicy.every_writes(1)
        f = await hub.open(f"{path}.{i}", "w+", size=PAGE, flush=policy)
        receipts.append(await f.write(0, b"x"))

run(main())
print(len(asyncio_loop._background), all(receipt.durable for receipt in receipts))
"""
    assert run(script, path, loop) == ["0", "True"]


def test_close_does_not_pass_a_durable_write(path):
    """The policy becomes ``always`` while the write waits for a worker."""
    script = """
async def main():
    async with aiommap.open(path, "r+") as f:
        await f.resize(1 << 20)
        first = asyncio.create_task(f.write(0, b"a" * (1 << 20)))
        await asyncio.sleep(0)
        f.flush_policy = FlushPolicy.always()
        second = asyncio.create_task(f.write(0, b"b" * (1 << 20)))
        await asyncio.sleep(0)
        await f.aclose()
        print((await second).durable)
run(main())
"""
    assert run(script, path, "asyncio") == ["True"]


UNDER_WAY = {
    "queue": "f.flush()",
    "durable write": "f.write(0, b'x')",
    "finish": "f.read_into(0, bytearray(4 << 20))",
}


@pytest.mark.parametrize("verb", UNDER_WAY.values(), ids=UNDER_WAY)
def test_verb_of_a_gone_loop_is_collected(path, verb):
    """The verb cannot be awaited any more, although it has begun."""
    script = f"""
import gc, os, threading
go = threading.Event()
sys.unraisablehook = lambda args: print("unraisable", args.exc_value)

async def begin(loop):
    f = await aiommap.open(path, "r+", flush=FlushPolicy.always())
    await f.resize(8 << 20)
    from tests.support.internals import core_of
    core_of(f).disk = Stalled(core_of(f).mapping)
    core_of(f).mapping.declining = True
    return f

class Stalled:
    def __init__(self, mapping): self.mapping = mapping
    def __getattr__(self, name):
        go.wait(10)
        return getattr(self.mapping, name)

loop = asyncio.new_event_loop()
f = loop.run_until_complete(begin(loop))
verb = {verb}
task = loop.create_task(verb)
loop.run_until_complete(asyncio.sleep(0.05))
loop.close()
verb.close() if hasattr(verb, "close") else None
print("closed")
sys.stdout.flush()
os._exit(0)
"""
    assert run(script, path, "asyncio") == ["closed"]
