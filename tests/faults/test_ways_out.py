"""Open objects can be flushed and closed even if resources have run out (I15)."""

from __future__ import annotations

import os

import pytest

from tests.support.scripts import expect_alive

#: Opens every kind of object, calls ``scarce`` to take resources away, and closes everything.
EVERYTHING = """
import resource
from contextlib import AsyncExitStack

def files():
    names = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
    return [name for name in map(os.readlink, filter(os.path.exists, names)) if path in name]

async def main():
    made = {name: make(name) for name in ("a", "b", "c", "d", "e", "f")}
    policies = aiommap.FlushPolicy.every_interval(3600), aiommap.FlushPolicy.always()
    receipts = []
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        hub = await enter(aiommap.Hub())
        f = await enter(hub.open(made["a"], "r+", flush=policies[0]))
        g = await enter(hub.open(made["b"], "r+", flush=policies[1]))
        new = await enter(hub.open(os.path.join(path, "new"), "w+", size=SIZE, capacity=4 * SIZE))
        lonely = await enter(aiommap.open(made["c"], "r+"))
        snapshot = await enter(aiommap.Snapshot.open(made["d"]))
        live = await enter(aiommap.follow(made["e"], hub=hub))
        await enter(aiommap.FileBackend.open(made["f"]))
        changes = await enter(hub.watch(made["f"]))
        subscription = f.on_change(lambda change: None)
        grown = new.view(growable=True)
        grown.memory[SIZE + 5] = 1
        lock = aiommap.AsyncLock(f, 64)
        await enter(lock)
        await enter(f.file_lock(0, 64))
        await enter(f.locked(0, PAGE))
        other = f.view()
        receipts += [await file.write(PAGE, b"data") for file in (f, lonely, new)]
        await SCARCE()
        await g.write(0, b"data")
        await f.flush()
        subscription.cancel()
        for view in (grown, other):
            view.release()
        receipts.append(await f.write(PAGE, b"more"))
    assert all(receipt.durable for receipt in receipts), receipts
    assert f.statistics().dirty_bytes == lonely.statistics().dirty_bytes == 0
    await f.aclose()
    await hub.aclose()
    AFTERWARDS()
    print("alive")

run(main)
"""

NO_THREAD = """
async def scarce():
    if not IDLE:
        from tests.support.internals import threads
        while threads._idle:  # as happens after ten seconds
            worker = threads._idle.pop()
    threading.stack_size(1 << 46)
    try:
        threading.Thread(target=print).start()
    except RuntimeError:
        return
    raise AssertionError("a thread could be started")

def afterwards():
    threading.stack_size(0)
    gc.collect()
    assert not files(), files()
"""
NO_DESCRIPTOR = """
async def scarce():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def afterwards():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
    assert not files(), files()
"""
CHROOT = """
async def scarce():
    os.mkdir(os.path.join(path, "empty"))
    os.chroot(os.path.join(path, "empty"))

def afterwards():
    pass
"""
NO_PRIVILEGES = """
async def scarce():
    os.chmod(path, 0o700)
    os.seteuid(65534)

def afterwards():
    os.seteuid(0)
    gc.collect()
    assert not files(), files()
"""
SCARCE = {
    "no thread": NO_THREAD.replace("IDLE", "False"),
    "no descriptor": NO_DESCRIPTOR,
    "chroot": CHROOT,
    "no privileges": NO_PRIVILEGES,
}


@pytest.mark.parametrize("scarce", SCARCE.values(), ids=SCARCE)
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_leave_everything(tmp_path, backend, scarce):
    if os.geteuid() != 0 and scarce in (CHROOT, NO_PRIVILEGES):
        pytest.skip("only root can do that")
    code = EVERYTHING.replace("SCARCE", "scarce").replace("AFTERWARDS", "afterwards")
    head, tail = code.split("async def main")
    expect_alive(f"{head}{scarce}\nasync def main{tail}", tmp_path, backend)


CANCELLED = """
async def main():
    f = await aiommap.open(make(), "r+")
    receipt = await f.write(0, b"data")
    await scarce()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await f.aclose()
    await f.aclose()
    assert receipt.durable and not f.statistics().dirty_bytes
    afterwards()
    print("alive")

run(main)
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_close_cancelled_without_a_thread(tmp_path, backend):
    head = EVERYTHING.split("async def main")[0]
    expect_alive(f"{head}{SCARCE['no thread']}{CANCELLED}", tmp_path, backend)
