"""Forked children: every verb raises ForkedError, and nothing harms the parent (I10)."""

from __future__ import annotations

import inspect
import json
import os

import pytest

import aiommap
from tests.support.fork_server import run_code
from tests.support.loops import LOOPS

#: How to call every public method; the tables also list the methods.
VERBS = {
    "MappedFile": {
        "advise": "f.advise(aiommap.Advice.NORMAL)",
        "allocator": "f.allocator(0, end=100)",
        "append": "f.append(b'child')",
        "array": "f.array('<u1')",
        "atomic_u32": "f.atomic_u32(0)",
        "atomic_u32_array": "f.atomic_u32_array(0, 1)",
        "atomic_u64": "f.atomic_u64(0)",
        "atomic_u64_array": "f.atomic_u64_array(0, 1)",
        "carve": "f.carve({'a': (0, 1)})",
        "chunks": "f.chunks(100)",
        "ensure": "f.ensure(100)",
        "file_lock": "f.file_lock(0, 1)",
        "fileno": "f.fileno()",
        "find": "f.find(b'x')",
        "flush": "f.flush()",
        "flush_range": "f.flush_range(0, 100)",
        "huge_page_bytes": "f.huge_page_bytes()",
        "locked": "f.locked()",
        "on_change": "f.on_change(print)",
        "pages": "f.pages()",
        "prewarm": "f.prewarm()",
        "punch_hole": "f.punch_hole(0, 100)",
        "read": "f.read(0, 1)",
        "read_into": "f.read_into(0, bytearray(1))",
        "read_many": "f.read_many([(0, 1)])",
        "read_nowait": "f.read_nowait(0, 1)",
        "read_range": "f.read_range(allocated)",
        "refresh": "f.refresh()",
        "reopen": "f.reopen()",
        "residency": "f.residency()",
        "resize": "f.resize(100)",
        "rfind": "f.rfind(b'x')",
        "start_writeback": "f.start_writeback()",
        "view": "f.view()",
        "watch": "f.watch()",
        "write": "f.write(0, b'child')",
        "write_many": "f.write_many([(0, b'child')])",
        "write_range": "f.write_range(allocated, b'x' * 10)",
    },
    "View": {
        "advise": "view.advise(aiommap.Advice.NORMAL)",
        "array": "view.array('<u1')",
        "atomic_u32": "view.atomic_u32(0)",
        "atomic_u32_array": "view.atomic_u32_array(0, 1)",
        "atomic_u64": "view.atomic_u64(0)",
        "atomic_u64_array": "view.atomic_u64_array(0, 1)",
        "carve": "view.carve({'a': (0, 1)})",
        "chunks": "view.chunks(100)",
        "find": "view.find(b'x')",
        "flush": "view.flush()",
        "flush_range": "view.flush_range(0, 1)",
        "locked": "view.locked()",
        "memory": "view.memory",
        "pages": "view.pages()",
        "prewarm": "view.prewarm()",
        "read": "view.read(0, 1)",
        "read_into": "view.read_into(0, bytearray(1))",
        "read_many": "view.read_many([(0, 1)])",
        "read_nowait": "view.read_nowait(0, 1)",
        "residency": "view.residency()",
        "rfind": "view.rfind(b'x')",
        "split_at": "view.split_at(1)",
        "start_writeback": "view.start_writeback()",
        "struct": "view.struct('B')",
        "view": "view.view()",
        "write": "view.write(0, b'child')",
        "write_many": "view.write_many([(0, b'child')])",
    },
    "RangeAllocator": {
        "acquire": "allocator.acquire(1)",
        "allocate": "allocator.allocate(1)",
        "claim": "allocator.claim(0, 1)",
        "close": "allocator.close()",
        "free": "allocator.free(allocated)",
        "split": "allocator.split(allocated, 1)",
        "state": "allocator.state()",
    },
    "AllocatedRange": {"split_at": "allocated.split_at(1)"},
    "WriteReceipt": {"wait_durable": "receipt.wait_durable()"},
    "Snapshot": {
        "advise": "snapshot.advise(aiommap.Advice.NORMAL)",
        "array": "snapshot.array('<u1')",
        "carve": "snapshot.carve({'a': (0, 1)})",
        "chunks": "snapshot.chunks(100)",
        "find": "snapshot.find(b'x')",
        "file": "snapshot.file()",
        "hold": "snapshot.hold()",
        "locked": "snapshot.locked()",
        "pages": "snapshot.pages()",
        "prewarm": "snapshot.prewarm()",
        "read": "snapshot.read(0, 1)",
        "read_exact": "snapshot.read_exact(0, 1)",
        "read_into": "snapshot.read_into(0, bytearray(1))",
        "read_many": "snapshot.read_many([(0, 1)])",
        "read_nowait": "snapshot.read_nowait(0, 1)",
        "residency": "snapshot.residency()",
        "rfind": "snapshot.rfind(b'x')",
        "verify": "snapshot.verify()",
        "view": "snapshot.view()",
    },
    "MappedBackend": {"read_exact": "mapped.read_exact(0, 1)"},
    "FileBackend": {"read_exact": "backend.read_exact(0, 1)"},
}
#: Continuations of what the parent began.
BEGUN = {
    "an iteration": "anext(iteration)",
    "changes": "anext(changes)",
    "changes not begun": "unwatched.__aenter__()",
    "generations": "anext(generations)",
    "the snapshot in service": "live.current.read_exact(0, 1)",
    "the setter of": "setattr(f, 'flush_policy', policy)",
}

#: Calls that do not use the file: they work, and harm nobody.
HARMLESS = {
    "MappedFile": {
        "on_error": "f.on_error(print)",
        "statistics": "f.statistics()",
    },
    "View": {"release": "f_view.release()"},
    "RangeAllocator": {"is_valid": "allocator.is_valid(allocated)"},
    "Subscription": {"cancel": "subscription.cancel()"},
    "a block": {"locked": "locked.__aexit__(None, None, None)", "hold": "held.__exit__(*nothing)"},
    # Closing comes last, and twice.
    "closing": {
        name: "closing(aclose)".replace("aclose", f"{name}.aclose")
        for name in ("live", "f", "mapped", "snapshot", "backend", "hub")
    },
}
CLOSES = {cls: {"aclose"} for cls in ("MappedFile", "Snapshot", "MappedBackend", "FileBackend")}
#: Methods of the class, not of an open object.
CONSTRUCTORS = {"open"}

CHILD = """
import json, os, signal, sys, anyio, aiommap
path, expressions, backend, options = sys.argv[1], *map(json.loads, sys.argv[2:])

async def outcome(expression, names):
    try:
        made = eval(expression, globals(), names)
        if hasattr(made, "__await__"):
            await made
        elif hasattr(made, "__anext__"):
            await anext(made)
        elif hasattr(made, "__aenter__"):
            await made.__aenter__()
        elif hasattr(made, "__enter__"):
            made.__enter__()
    except Exception as error:
        return type(error).__name__
    return "done"

async def closing(aclose):
    await aclose()
    await aclose()

async def prepare(hub, f):
    allocator = f.allocator(0, end=4096)
    snapshot = await aiommap.Snapshot.open(path, hub=hub)
    live = await aiommap.follow(path, hub=hub)
    names = dict(
        live=live, generations=aiter(live), hub=hub, f=f, view=f.view(), f_view=f.view(),
        allocator=allocator, nothing=(None,) * 3,
        allocated=allocator.allocate(10), receipt=await f.write(0, b"parent"),
        snapshot=snapshot, mapped=aiommap.MappedBackend(snapshot), locked=f.locked(0, 100),
        backend=await aiommap.FileBackend.open(path, hub=hub), iteration=f.chunks(100),
        changes=await f.watch().__aenter__(), unwatched=f.watch(),
        subscription=f.on_error(print), held=snapshot.hold(), policy=aiommap.FlushPolicy.never(),
    )
    await anext(names["iteration"])
    await names["locked"].__aenter__()
    names["held"].__enter__()
    names["f_view"].memory[-1]
    return names

async def main():
    async with aiommap.Hub() as hub, hub.open(path, "r+") as f:
        names = await prepare(hub, f)
        turned = []
        # Before the fork, because in the child nobody may release the lock of trio's queue.
        from tests.support.internals import workers_of
        workers_of(f).call_soon(lambda: turned.append(True))
        child = os.fork()
        if not child:
            signal.alarm(30)
            aiommap._native.time_slice_spent = lambda: True  # so that verbs want to give way
            found = {key: await outcome(e, names) for key, e in expressions.items()}
            assert not turned, "the parent's tasks ran in the child"
            print(json.dumps(found), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        await names["locked"].__aexit__(None, None, None)
        names["held"].__exit__(None, None, None)
        assert await f.read(0, 6) == b"parent" == await names["backend"].read_exact(0, 6)
        await names["receipt"].wait_durable()
        await names["backend"].aclose()
        await names["iteration"].aclose()

anyio.run(main, backend=backend, backend_options=options)
"""

LANE = """
import json, os, signal, struct, sys, anyio, aiommap
path, backend, options = sys.argv[1], *map(json.loads, sys.argv[2:])
WRITERS, ROUNDS, FORKS = 64, 40, 4
busy = 0
children = []

async def child(f):
    signal.alarm(40)
    for verb in (lambda: f.write(0, b"child"), f.flush, lambda: f.read(0, 8), f.prewarm):
        try:
            await verb()
        except aiommap.ForkedError:
            continue
        os._exit(1)
    await f.aclose()

async def fork(f):
    global busy
    busy += f._open.flusher.busy
    hear, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(tell)
        await child(f)
        os.read(hear, 1)  # alive until the parent is done
        os._exit(0)
    os.close(hear)
    children.append((pid, tell))

async def main():
    receipts = []
    async with aiommap.open(path, "w+", size=WRITERS * 8, flush=aiommap.FlushPolicy.always()) as f:

        async def writer(slot):
            for n in range(1, ROUNDS + 1):
                receipts.append(await f.write(slot * 8, struct.pack("<Q", n)))

        async with anyio.create_task_group() as group:
            for slot in range(WRITERS):
                group.start_soon(writer, slot)
            for n in range(1, FORKS + 1):
                while len(receipts) < n * WRITERS * ROUNDS // (FORKS + 1):
                    await anyio.lowlevel.checkpoint()
                await fork(f)
        assert all(receipt.durable for receipt in receipts)
    for _, tell in children:  # close all first: later children have copies of earlier pipes
        os.close(tell)
    for pid, _ in children:
        assert os.waitpid(pid, 0)[1] == 0
    assert sorted(r.sequence for r in receipts) == list(range(1, WRITERS * ROUNDS + 1))
    assert busy, "nothing was in flight"

anyio.run(main, backend=backend, backend_options=options)
with open(path, "rb") as file:
    assert set(struct.iter_unpack("<Q", file.read())) == {(ROUNDS,)}
print("alive")
"""

#: A child that ends like any program, with the parent's file still open in it.
EXITS = """
import os, sys, anyio, aiommap
kept = []

async def main():
    kept.append(await aiommap.open(sys.argv[1], "r+"))
    kept.append(await aiommap.Snapshot.open(sys.argv[1]))
    kept.append(await aiommap.FileBackend.open(sys.argv[1]))
    kept.append(await aiommap.follow(sys.argv[1]))
    await kept[0].write(0, b"parent")

anyio.run(main)
child = os.fork()
if not child:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print("alive", flush=True)
os._exit(0)
"""

#: A thread of the parent waits for a word in native code; the child does not have that thread.
HELD = """
import fcntl, json, os, signal, sys, traceback, anyio, aiommap
path, backend, options = sys.argv[1], *map(json.loads, sys.argv[2:])
PAGE = aiommap.PAGE_SIZE

def traces():
    with open("/proc/self/maps") as maps:
        mapped = sum(path in line for line in maps)
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return mapped, links.count(os.path.realpath(path))

async def child(f, view, hear, tell):
    signal.alarm(30)
    await f.aclose()
    await f.aclose()
    assert traces() == (1, 0), traces()
    assert view.memory[0] == 0  # the last lease unmaps, here as well
    view.release()
    assert traces() == (0, 0), traces()
    os.write(tell, b"x")
    os.read(hear, 1)  # alive until the parent has tried
    os._exit(0)

async def main():
    async with aiommap.open(path, "w+", size=PAGE, capacity=4 * PAGE) as f:
        word, view = f.atomic_u32(8), f.view(0, 4)
        view.memory[0]
        fcntl.flock(f._mapping.fd, fcntl.LOCK_EX)
        async with anyio.create_task_group() as group:
            group.start_soon(word.wait, 0)
            while traces()[0] < 2:  # the waiter thread has a mapping of its own
                await anyio.sleep(0.001)
            hear, tell = os.pipe()
            told, child_tells = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(tell)
                try:
                    await child(f, view, hear, child_tells)
                finally:
                    traceback.print_exc()
                    os._exit(1)
            os.close(child_tells)
            assert os.read(told, 1) == b"x", "the child failed"
            word.store(1)
            word.notify()
        view.release()
    with open(path, "r+b") as file:  # the child's copy of the descriptor does not keep the lock
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(tell)
    assert os.waitpid(pid, 0)[1] == 0

anyio.run(main, backend=backend, backend_options=options)
"""

every_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


def run(script, *arguments):
    done = run_code(script, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def flat(tables):
    return {f"{kind}.{name}": e for kind, table in tables.items() for name, e in table.items()}


def public_methods(name):
    methods = inspect.getmembers(getattr(aiommap, name), inspect.isfunction)
    return {method for method, _ in methods if not method.startswith("_")}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_in_the_tables(name):
    listed = set(VERBS[name]) | set(HARMLESS.get(name, ())) | CLOSES.get(name, set()) | CONSTRUCTORS
    assert public_methods(name) <= listed, f"put {public_methods(name) - listed} into VERBS"


@every_loop
def test_every_verb_tells_a_forked_child(path, loop):
    verbs = {**flat(VERBS), **BEGUN}
    found = json.loads(run(CHILD, path, json.dumps(verbs), *map(json.dumps, loop)))
    assert {key: what for key, what in found.items() if what != "ForkedError"} == {}
    assert path.read_bytes()[:7] == b"parentA"


@every_loop
def test_child_releases_what_was_in_use(path, loop):
    run(HELD, path, *map(json.dumps, loop))


@every_loop
def test_child_may_use_harmless_verbs(path, loop):
    found = json.loads(run(CHILD, path, json.dumps(flat(HARMLESS)), *map(json.dumps, loop)))
    assert {key: what for key, what in found.items() if what != "done"} == {}


@every_loop
def test_hub_in_a_child_does_nothing(path, loop):
    expressions = {
        "open": "hub.open(path)",
        "snapshot": "aiommap.Snapshot.open(path, hub=hub)",
        "backend": "aiommap.FileBackend.open(path, hub=hub)",
        "watch": "hub.watch(path)",
        "follow": "aiommap.follow(path, hub=hub)",
    }
    found = json.loads(run(CHILD, path, json.dumps(expressions), *map(json.dumps, loop)))
    assert found == dict.fromkeys(expressions, "ForkedError")


@pytest.mark.slow
@every_loop
def test_writes_in_flight_apply_once(path, loop):
    assert run(LANE, path, *map(json.dumps, loop)) == "alive\n"


def test_child_that_ends_normally_is_harmless(path):
    assert run(EXITS, path) == "alive\n"
    assert path.read_bytes()[:6] == b"parent"
    assert os.stat(path).st_size == 16 * aiommap.PAGE_SIZE
