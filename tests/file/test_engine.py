"""Reads that wait in the engine: cancelled, closed, forked, hung, and left behind by their loop.

A read that is too long for the loop thread always waits in the engine. ``gate.c`` holds its
pread(2), in a process of its own.
"""

from __future__ import annotations

import gc
import random

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice
from tests.support.gates import expect_gated
from tests.support.internals import pool_of, workers_of
from tests.support.limiters import engine_held
from tests.support.pages import drop_pages
from tests.support.scripts import expect_alive
from tests.support.waiting import until

SIZE = 512 * PAGE
LOOPS = ("asyncio", "uvloop", "trio")
every_loop = pytest.mark.parametrize("backend", LOOPS)


@pytest.fixture
def path(tmp_path):
    """A file in which every page repeats its number."""
    made = tmp_path / "file"
    made.write_bytes(b"".join(number.to_bytes(8, "little") * (PAGE // 8) for number in range(512)))
    return made


def page(number):
    return number.to_bytes(8, "little") * (PAGE // 8)


@pytest.mark.anyio
async def test_many_cold_reads_each_get_their_own(path):
    numbers = random.Random(15).choices(range(512), k=3000)
    async with aiommap.open(path, advice=Advice.RANDOM) as f:
        for _ in range(2):
            drop_pages(path)
            ranges = [(number * PAGE, PAGE) for number in numbers]
            assert await f.read_many(ranges) == [page(number) for number in numbers]
        drop_pages(path)
        found = {}

        async def read(number):
            found[number] = await f.read(number * PAGE, PAGE)

        async with anyio.create_task_group() as group:
            for number in range(512):
                group.start_soon(read, number)
        assert found == {number: page(number) for number in range(512)}


@pytest.mark.anyio
async def test_engine_goes_with_its_last_hub(path):
    async with aiommap.Hub() as first:
        f = await first.open(path)
        pool = pool_of(workers_of(f))
        async with aiommap.Hub() as second:
            assert len(await (await second.open(path)).read(0, SIZE)) == SIZE
            assert len(await f.read(0, SIZE)) == SIZE
            assert pool is pool_of(second._workers)
            assert pool.threads
        assert len(await f.read(0, SIZE)) == SIZE
    await until(lambda: pool.fileno() == -1)
    assert pool.threads == 0


@pytest.mark.anyio
async def test_engine_goes_with_forgotten_files(path):
    f = await aiommap.open(path)
    assert len(await f.read(0, SIZE)) == SIZE
    pool = pool_of(workers_of(f))
    await f.aclose()
    del f
    await until(lambda: gc.collect() is not None and pool.fileno() == -1)


@pytest.mark.anyio
async def test_reads_of_a_hub_of_one_thread(path):
    async with aiommap.Hub(workers=1) as hub, hub.open(path) as f, hub.open(path) as other:
        found = []

        async def read(file, number):
            buffer = bytearray(SIZE)
            assert await file.read_into(0, buffer) == SIZE
            found.append(bytes(buffer[number * PAGE :][:PAGE]))

        async with anyio.create_task_group() as group:
            for number in range(64):
                group.start_soon(read, (f, other)[number % 2], number)
        assert sorted(found) == sorted(page(number) for number in range(64))


@pytest.mark.anyio
async def test_one_read_is_withdrawn_among_others(path):
    async with aiommap.open(path) as f, anyio.create_task_group() as group:
        scopes = [anyio.CancelScope() for _ in range(20)]
        found, pool = {}, pool_of(workers_of(f))

        async def read(number):
            with scopes[number]:
                found[number] = await f.read(0, SIZE - number)

        with engine_held(workers_of(f)):
            for number in range(20):
                group.start_soon(read, number)
            await until(lambda: pool.in_flight == 20)
            for number in range(0, 20, 3):
                scopes[number].cancel()
            await until(lambda: pool.in_flight == 13)
        await until(lambda: len(found) == 13)
        assert not pool.in_flight
    assert {number: len(data) for number, data in found.items()} == {
        number: SIZE - number for number in range(20) if number % 3
    }


HELD = """
SIZE = 512 * PAGE
name = make(size=SIZE)
reading = b"o" * SIZE

def opened():
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return links.count(name)

async def until(condition):
    with anyio.fail_after(100):
        while not condition():
            await anyio.sleep(0)

async def reached():
    await anyio.to_thread.run_sync(gate.gate_reached)

async def main():
    f = await aiommap.open(name)
    other = await aiommap.open(make("other", SIZE))
    arm("pread")
    async with anyio.create_task_group() as group:
        BEGIN
        await reached()
        THEN

run(main)
"""


def held(begin, then):
    return HELD.replace("BEGIN", begin.strip()).replace("THEN", then.strip())


@every_loop
def test_read_cancelled_at_work_is_left_behind(tmp_path, backend):
    """The file closes at once, and its descriptor when the thread has ended the read."""
    begin = "group.start_soon(f.read, 0, SIZE)"
    then = """
        group.cancel_scope.cancel()
    assert await other.read(0, SIZE) == reading
    await f.aclose()
    assert opened() == 1
    gate.gate_open()
    await until(lambda: not opened())
    await other.aclose()
    """
    expect_gated(held(begin, then), tmp_path, backend)


@every_loop
def test_read_into_cancelled_at_work_is_waited_out(tmp_path, backend):
    begin = "buffer = bytearray(SIZE); group.start_soon(f.read_into, 0, buffer)"
    then = """
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(50):
                await anyio.sleep(0)
            assert bytes(buffer) == bytes(SIZE)
            try:
                buffer.clear()
            except BufferError:
                gate.gate_open()
    assert buffer == reading
    await f.aclose()
    await other.aclose()
    """
    expect_gated(held(begin, then), tmp_path, backend)


@every_loop
def test_close_waits_for_a_read_at_work(tmp_path, backend):
    begin = "group.start_soon(f.read, 0, SIZE)"
    then = """
        group.start_soon(f.aclose)
        for _ in range(50):
            await anyio.sleep(0)
        assert opened() == 1 and f.closed
        gate.gate_open()
    assert opened() == 0
    await other.aclose()
    """
    expect_gated(held(begin, then), tmp_path, backend)


@every_loop
def test_backend_closed_with_a_read_at_work(tmp_path, backend):
    begin = """
        backend = await aiommap.FileBackend.open(name)
        group.start_soon(backend.read_exact, 0, SIZE)
    """
    then = """
        await backend.aclose()
        group.cancel_scope.cancel()
    await f.aclose()
    assert opened() == 1
    gate.gate_open()
    await until(lambda: not opened())
    await other.aclose()
    """
    expect_gated(held(begin, then), tmp_path, backend)


@every_loop
def test_loop_ends_while_a_read_hangs(tmp_path, backend):
    """The next loop that has an engine gives up the read, but not before the read has ended."""
    begin = "group.start_soon(f.read, 0, SIZE)"
    then = """
        group.cancel_scope.cancel()
    await f.aclose()
    await other.aclose()
    """
    code = (
        held(begin, then)
        + """
async def again():
    await read_other()
    assert opened() == 1
    gate.gate_open()
    with anyio.fail_after(100):
        while opened():
            await read_other()

async def read_other():
    async with aiommap.Hub() as hub:
        f = await hub.open(os.path.join(path, "other"))
        assert await f.read(0, SIZE) == reading

run(again)
"""
    )
    expect_gated(code, tmp_path, backend)


CLOSED = """
from tests.support.pages import drop_pages, resident_pages

name, new_loop = make(size=512 * PAGE), asyncio.new_event_loop
if backend == "uvloop":
    import uvloop
    new_loop = uvloop.new_event_loop
kept = []

async def begin():
    f = await aiommap.open(name, advice=aiommap.Advice.RANDOM)
    kept.append(f)
    drop_pages(name)
    kept.extend(asyncio.create_task(f.read(i * PAGE, PAGE)) for i in range(512))
    await asyncio.sleep(0)

async def again():
    async with aiommap.open(name) as f:
        drop_pages(name)
        assert await f.read(0, PAGE) == b"o" * PAGE

loop = new_loop()
loop.run_until_complete(begin())
loop.close()
while len(resident_pages(name)) < 200:
    time.sleep(0.001)
for _ in range(20):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(again())
print("alive")
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_loop_is_closed_amid_many_reads(tmp_path, backend):
    """Loops that come after it take what has landed, and call nothing of the one that is closed."""
    expect_alive(CLOSED, tmp_path, backend)


@every_loop
def test_program_ends_while_a_read_hangs(tmp_path, backend):
    begin = "group.start_soon(f.read, 0, SIZE)"
    then = "group.cancel_scope.cancel()\n    await f.aclose()\n    await other.aclose()"
    expect_gated(held(begin, then), tmp_path, backend)


@every_loop
def test_forked_child_has_no_engine(tmp_path, backend):
    """The child gets ForkedError, starts no thread, and takes no outcome from the parent."""
    expect_alive(
        """
        SIZE = 512 * PAGE

        async def main():
            f = await aiommap.open(make(size=SIZE))
            backend = await aiommap.FileBackend.open(f.path)
            assert await f.read(0, SIZE) == b"o" * SIZE
            reads = []

            async def read():
                reads.append(await f.read(0, SIZE))

            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(read)
                await anyio.sleep(0)
                child = os.fork()
                if not child:
                    code = 1
                    try:
                        for verb in (f.read(0, SIZE), f.read_into(0, bytearray(SIZE)),
                                     f.read_many([(0, SIZE)]), backend.read_exact(0, SIZE)):
                            try:
                                verb.send(None)
                            except aiommap.ForkedError:
                                code += 1
                        threads = len(os.listdir("/proc/self/task"))
                        os._exit(0 if (code, threads) == (5, 1) else 10 * code + threads)
                    finally:
                        os._exit(1)
                _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
                assert status == 0, status
            assert reads == [b"o" * SIZE] * 8
            await f.aclose()
            await backend.aclose()

        run(main)
        print("alive")
        """,
        tmp_path,
        backend,
    )


@every_loop
def test_reads_without_a_descriptor_for_the_engine(tmp_path, backend):
    """Worker threads read, because the engine cannot be made."""
    expect_alive(
        """
        import resource
        SIZE = 512 * PAGE

        async def main():
            async with aiommap.open(make(size=SIZE)) as f:
                top = max(map(int, os.listdir("/proc/self/fd")))
                held = []
                resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1, 4096))
                try:
                    while True:
                        held.append(os.dup(0))
                except OSError:
                    pass
                buffer = bytearray(SIZE)
                assert await f.read(0, SIZE) == b"o" * SIZE
                assert await f.read_into(0, buffer) == SIZE
                assert buffer == b"o" * SIZE
                assert await f.read_many([(0, SIZE)]) == [b"o" * SIZE]
                for fd in held:
                    os.close(fd)
                assert await f.read(0, SIZE) == b"o" * SIZE

        run(main)
        print("alive")
        """,
        tmp_path,
        backend,
    )


@every_loop
def test_reads_without_a_thread_for_the_engine(tmp_path, backend):
    expect_gated(
        """
        SIZE = 512 * PAGE

        async def main():
            async with aiommap.open(make(size=SIZE)) as f:
                await f.residency()  # starts a worker, while that is possible
                fail("thread", error=errno.EAGAIN, on=True)
                buffer = bytearray(SIZE)
                assert await f.read(0, SIZE) == b"o" * SIZE
                assert await f.read_into(0, buffer) == SIZE
                assert buffer == b"o" * SIZE
                assert await f.read_many([(0, SIZE), (0, SIZE)]) == 2 * [b"o" * SIZE]
                assert gate.gate_left()
                fail("thread", nth=0)
                assert await f.read(0, SIZE) == b"o" * SIZE

        run(main)
        """,
        tmp_path,
        backend,
    )
