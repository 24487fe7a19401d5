"""A PoolRead in the place of a future: tasks of asyncio that wait for it, and who wakes them."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import weakref
from contextlib import asynccontextmanager
from contextvars import ContextVar

import anyio
import pytest

from tests.support.internals import native
from tests.support.loops import NEW_LOOPS
from tests.support.scripts import expect_alive
from tests.support.waiting import until

PAGE = os.sysconf("SC_PAGE_SIZE")
PAGES = 64
FLAGS = native.WRITABLE | native.NOWAIT

#: Which task runs, in which context.
name = ContextVar("name", default=None)

every_loop = pytest.mark.parametrize("make_loop", NEW_LOOPS.values(), ids=NEW_LOOPS)


@pytest.fixture
def path(tmp_path):
    """A file in which every page repeats its number."""
    made = tmp_path / "file"
    made.write_bytes(b"".join(bytes([number]) * PAGE for number in range(PAGES)))
    return made


class Reads:
    """A pool and a file on the loop that runs; notes what runs inside of ``drain``."""

    def __init__(self, path, readers=8):
        self.loop = asyncio.get_running_loop()
        size = PAGES * PAGE
        self.mapping = native.Mapping(os.open(path, os.O_RDWR), size, size, FLAGS)
        self.pool = native.Pool(None, self.call_soon, self.loop)
        self.queue = self.pool.queue(1, readers, 1)
        self.draining = False
        self.loop.add_reader(self.pool.fileno(), self.drain)

    def call_soon(self, function, *args, **options):
        """Call soon, as the loop does; ``drain`` calls itself so."""
        return self.loop.call_soon(self.drain if not args else function, *args, **options)

    def drain(self):
        self.draining = True
        try:
            self.pool.drain()
        finally:
            self.draining = False

    def begin(self, number):
        return self.queue.read(self.mapping, number * PAGE, PAGE, True)

    async def read(self, number):
        """Read a page; return it, and whether ``drain`` woke this task."""
        reading = self.begin(number)
        try:
            return await reading, self.draining
        except BaseException:
            reading.withdraw()
            raise

    def land(self):
        """Wait until something has landed, without the loop."""
        assert select.select([self.pool.fileno()], [], [], 20)[0]

    async def end(self):
        await until(lambda: not self.pool.in_flight)
        self.loop.remove_reader(self.pool.fileno())
        self.mapping.close()
        self.pool.close()


@asynccontextmanager
async def reads(path, **options):
    made = Reads(path, **options)
    yield made
    await made.end()


def run(make_loop, function, *args):
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(function(*args))


@every_loop
def test_drain_wakes_tasks(make_loop, path):
    async def main():
        async with reads(path) as r:
            found = await asyncio.gather(*(r.read(number) for number in range(PAGES)))
            assert found == [(bytes([number]) * PAGE, True) for number in range(PAGES)]

    run(make_loop, main)


@every_loop
def test_loop_wakes_tasks_in_debug_mode(make_loop, path):
    async def main():
        async with reads(path) as r:
            r.loop.set_debug(True)
            found = await asyncio.gather(*(r.read(number) for number in range(PAGES)))
            assert found == [(bytes([number]) * PAGE, False) for number in range(PAGES)]

    run(make_loop, main)


@every_loop
def test_several_ranges_wake_one_task(make_loop, path):
    async def main():
        async with reads(path) as r:
            ranges = [(number * PAGE, PAGE) for number in range(PAGES)]
            found = await r.queue.read_many(r.mapping, ranges)
            assert found == [bytes([number]) * PAGE for number in range(PAGES)]

    run(make_loop, main)


@every_loop
def test_task_wakes_in_its_context(make_loop, path):
    async def read(r, number):
        name.set(number)
        await r.read(number)
        return name.get(), asyncio.current_task().get_name()

    async def main():
        async with reads(path) as r:
            tasks = [asyncio.create_task(read(r, n), name=str(n)) for n in range(PAGES)]
            assert await asyncio.gather(*tasks) == [(n, str(n)) for n in range(PAGES)]
            assert name.get() is None

    run(make_loop, main)


@every_loop
def test_woken_task_reads_again(make_loop, path):
    async def read(r, numbers):
        return [(await r.read(number))[0][0] for number in numbers]

    async def main():
        async with reads(path) as r:
            parts = [range(first, PAGES, 4) for first in range(4)]
            found = await asyncio.gather(*(read(r, numbers) for numbers in parts))
            assert found == [list(numbers) for numbers in parts]

    run(make_loop, main)


@every_loop
@pytest.mark.parametrize("message", [None, "enough"])
def test_cancelled_task_wakes_by_the_loop(make_loop, path, message):
    async def main():
        async with reads(path, readers=0) as r:  # no thread takes a job
            task = asyncio.create_task(r.read(0))
            await asyncio.sleep(0)
            assert r.pool.in_flight
            assert task.cancel(message)
            assert not task.done(), "nobody runs a task in the middle of another one"
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert caught.value.args == (() if message is None else (message,))
            assert not r.pool.in_flight

    run(make_loop, main)


@every_loop
def test_cancelling_counts_what_a_task_waits_for_once(make_loop, path):
    async def main():
        async with reads(path, readers=0) as r:
            task = asyncio.create_task(r.read(0))
            await asyncio.sleep(0)
            assert task.cancel()
            assert task.cancel(), "the first one has not reached the task yet"
            with pytest.raises(asyncio.CancelledError):
                await task

    run(make_loop, main)


@every_loop
def test_woken_task_cancels_one_whose_read_has_landed(make_loop, path):
    async def cancel(r, number, other):
        await r.read(number)
        other().cancel()
        return "has read"

    async def main():
        async with reads(path, readers=1) as r:
            both = []
            both.append(asyncio.create_task(cancel(r, 0, lambda: both[1])))
            both.append(asyncio.create_task(r.read(1)))
            found = await asyncio.gather(*both, return_exceptions=True)
            assert found[0] == "has read"
            assert isinstance(found[1], asyncio.CancelledError)

    run(make_loop, main)


@every_loop
@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_program_ends_out_of_a_woken_task(make_loop, path, end):
    woken = []

    async def leave(r):
        await r.read(0)
        raise end

    async def note(r, number):
        await r.read(number)
        woken.append(number)

    async def main():
        r = Reads(path)
        tasks = [asyncio.create_task(leave(r)), *(asyncio.create_task(note(r, n)) for n in (1, 2))]
        await asyncio.wait(tasks)
        assert isinstance(tasks[0].exception(), end)
        await r.end()

    loop = make_loop()
    task = loop.create_task(main())
    with pytest.raises(end):
        loop.run_until_complete(task)
    loop.run_until_complete(task)  # the others wake, also if they were about to
    assert sorted(woken) == [1, 2]
    loop.close()


@every_loop
def test_task_of_an_ended_loop_is_forgotten(make_loop, path):
    async def main():
        r = Reads(path)
        task = asyncio.ensure_future(r.read(0))
        task._log_destroy_pending = False
        await asyncio.sleep(0)
        r.land()
        return r, weakref.ref(task)

    loop = make_loop()
    r, task = loop.run_until_complete(main())
    loop.close()
    r.pool.give_up()
    assert not r.pool.in_flight
    del loop
    r.loop = None
    gc.collect()
    assert task() is None
    r.pool.close()


@every_loop
def test_read_of_another_loop_refuses_a_task(make_loop, path):
    async def begin():
        return Reads(path)

    loop = make_loop()
    r = loop.run_until_complete(begin())
    with pytest.raises(RuntimeError, match="different loop"):
        run(make_loop, r.read, 0)
    loop.run_until_complete(r.end())
    loop.close()


@every_loop
def test_second_task_is_refused(make_loop, path):
    async def main():
        async with reads(path, readers=0) as r:
            reading = r.begin(0)

            async def wait():
                return await reading

            first, second = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
            with pytest.raises(RuntimeError, match="waits for it already"):
                await second
            first.cancel()
            await asyncio.wait([first])
            reading.withdraw()
            over = r.begin(1)
            over.withdraw()
            with pytest.raises(RuntimeError, match="is over"):
                await over

    run(make_loop, main)


@every_loop
def test_anyio_sees_that_a_task_waits(make_loop, path):
    async def main():
        async with reads(path, readers=0) as r, anyio.create_task_group() as group:
            group.start_soon(r.read, 0)
            await anyio.wait_all_tasks_blocked()
            assert r.pool.in_flight
            group.cancel_scope.cancel()

    run(make_loop, main)


FORKS = """
woken, filled = [], bytearray(PAGE)

async def main():
    loop = asyncio.get_running_loop()
    loop.set_debug(False)  # else the loop would wake the tasks
    mapping = aiommap._native.Mapping(os.open(make(), os.O_RDWR), SIZE, SIZE, FLAGS)
    pool = aiommap._native.Pool(None, loop.call_soon, loop)
    queue, parent = pool.queue(1, 1, 1), os.getpid()

    async def read(number):
        await queue.read(mapping, number * PAGE, PAGE, True)
        woken.append(number)
        if number == 0 and (child := os.fork()):
            assert os.waitpid(child, 0) == (child, 0)

    def drain():
        pool.drain()
        if os.getpid() != parent:
            os._exit(woken != [0])

    tasks = [asyncio.create_task(read(number)) for number in range(8)]
    await asyncio.sleep(0)
    queue.read_into(mapping, 0, filled, bool)
    queue.read(mapping, 0, PAGE, True).withdraw()  # which hands over all of them
    while not filled[-1]:  # one thread makes the reads in order, so that all others have landed
        pass
    loop.call_soon(drain)
    await asyncio.gather(*tasks)
    assert woken == [*range(8)]
    while pool.in_flight:
        pool.drain()
    mapping.close()
    pool.close()

run(main)
print("alive")
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_woken_task_forks(backend, tmp_path):
    expect_alive(FORKS, tmp_path, backend)
