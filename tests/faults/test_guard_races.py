"""Another process truncates and extends the file without pause, under verbs, loads and stores."""

from __future__ import annotations

import pytest

from tests.support.scripts import expect_alive


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def backend(request):
    return request.param


RACE = """
import numpy as np

def harass(name, parent):
    rng = random.Random(os.getpid())
    while os.getppid() == parent:
        os.truncate(name, rng.randrange(SIZE + 1))
        os.truncate(name, SIZE)
    os._exit(0)

done = dict.fromkeys(("read", "load", "store", "write", "flush", "poisoned"), 0)

def going():
    # Until the deadline, and on a busy machine until each of these has happened.
    return time.monotonic() < deadline or not (done["load"] and done["read"] and done["poisoned"])

async def work(f, rng):
    async def go(verb, kind):
        try:
            await verb()
        except aiommap.MappingFaultError as error:
            assert 0 <= error.offset <= SIZE and error.path == f.path, error
            return not error.poisoned
        except aiommap.FlushError as error:
            assert error.errno == errno.EIO, error
            return False
        done[kind] += 1
        return True

    view = f.view()
    array = np.frombuffer(view.memory, dtype="u1")
    usable = True
    while usable and going():
        at = rng.randrange(SIZE - PAGE)
        # In a thread that is not ours, because a load or store may wait.
        def load():
            return int(array[at : at + 2 * PAGE].sum())
        def store():
            array[at : at + 100] = 1
        await anyio.to_thread.run_sync(load)
        await anyio.to_thread.run_sync(store)
        done["load"] += 1
        done["store"] += 1
        usable = (
            await go(lambda: f.read(at, PAGE), "read")
            and await go(lambda: f.read(0, SIZE), "read")
            and await go(lambda: f.write(at, b"w" * 100), "write")
            and await go(f.flush, "flush")
        )

async def main():
    global deadline
    name = make()
    parent = os.getpid()
    child = os.fork()
    if not child:
        harass(name, parent)
    rng = random.Random(7)
    deadline = time.monotonic() + seconds
    while going():
        try:
            f = await aiommap.open(name, "r+", flush=aiommap.FlushPolicy.every_interval(0.01))
            if f.size < SIZE:
                await f.aclose()
                continue
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(work, f, rng)
        finally:
            try:
                await f.aclose()
            except aiommap.MappingFaultError as error:
                done["poisoned"] += 1
                assert error.poisoned
            except aiommap.FlushError:
                pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.truncate(name, SIZE)
    async with aiommap.open(name, "r+") as f:
        await f.write(0, b"usable")
        await f.flush()
        assert await f.read(0, 6) == b"usable"
    print("alive")

run(main)
"""


def test_race_with_truncation(tmp_path, backend):
    expect_alive(RACE, tmp_path, backend, seconds=1.0)


@pytest.mark.slow
def test_race_with_truncation_long(tmp_path, backend):
    expect_alive(RACE, tmp_path, backend, seconds=10.0)
