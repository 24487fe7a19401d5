"""Appends that wait for a commit on asyncio: how they join it, and who wakes their tasks."""

from __future__ import annotations

import asyncio
import resource
import sys
from contextvars import ContextVar

import anyio
import pytest

from aiommap import Log, LogReceipt
from tests.support.internals import native
from tests.support.logs import ALWAYS, contents, pure_records
from tests.support.loops import NEW_LOOPS
from tests.support.scripts import expect_alive

TASKS = 32

#: Which task runs, in which context.
name = ContextVar("name", default=None)

pytestmark = pytest.mark.parametrize("make_loop", NEW_LOOPS.values(), ids=NEW_LOOPS)


def run(make_loop, function, *args):
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(function(*args))


def frames_of_ours():
    """Name the modules of aiommap that have a frame below the caller."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        found.append(frame.f_globals["__name__"])
        frame = frame.f_back
    return [module for module in found if module.startswith("aiommap.")]


class Gather:
    """A batch of appends, answered when the test says so; notes what runs inside of ``wake``."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.native = native.LogGather(LogReceipt, self.loop, self.loop.call_soon, 10)
        self.items, self.waits, self.told = [], [], []
        self.waking = False
        self.native.open(self.items, self.waits)

    async def append(self, data, *, queued=False):
        """Append; return the receipt, and whether ``wake`` ran this task."""
        wait = self.native.wait(self) if queued else self.native.join(self, data)
        if queued:
            self.waits.append(wait)
        return await wait, self.waking

    def answer(self, outcomes):
        """Answer in a callback of the loop, as the engine does."""
        self.native.hold()
        self.native.answer(self.waits, outcomes, self.told.append)
        assert self.told == []
        self.loop.call_soon(self.wake)

    def wake(self):
        self.waking = True
        try:
            self.native.wake()
        finally:
            self.waking = False


@pytest.mark.parametrize("debug", [False, True], ids=["now", "debug"])
def test_wake_runs_the_tasks_except_in_debug_mode(make_loop, debug):
    async def main():
        g = Gather()
        tasks = [asyncio.create_task(g.append(b"x", queued=i % 2)) for i in range(8)]
        await asyncio.sleep(0)
        assert (len(g.items), len(g.waits)) == (4, 8)
        g.loop.set_debug(debug)
        g.answer(range(5, 13))
        found = await asyncio.gather(*tasks)
        assert [receipt.sequence for receipt, _ in found] == [*range(5, 13)]
        assert {type(receipt) for receipt, _ in found} == {LogReceipt}
        assert {woken for _, woken in found} == {not debug}
        assert g.told == [not debug]

    run(make_loop, main)


def test_wake_in_a_task_leaves_it_to_the_loop(make_loop):
    """No task runs in the middle of another one."""

    async def main():
        g = Gather()
        task = asyncio.create_task(g.append(b"x"))
        await asyncio.sleep(0)
        g.answer([7])
        g.wake()
        assert not task.done()
        assert g.told == [False]
        assert ((await task)[0].sequence, (await task)[1]) == (7, False)

    run(make_loop, main)


def test_answer_that_is_not_held_leaves_it_to_the_loop(make_loop):
    async def main():
        g = Gather()
        other = g.loop.create_future()
        task = asyncio.create_task(g.append(b"x"))
        await asyncio.sleep(0)
        g.native.answer([*g.waits, other], [7, 8], g.told.append)
        assert not task.done()
        assert g.told == [False]
        assert ((await task)[1], await other) == (False, 8)

    run(make_loop, main)


def test_what_cannot_join_comes_by_the_queue(make_loop):
    async def main():
        g = Gather()
        join = g.native.join
        assert join(g, b"0123456789") is not None
        assert [join(g, data) for data in (bytes(11), bytearray(1), memoryview(b""))] == [None] * 3
        g.native.set_limit(2)
        assert join(g, b"") is None, "it would fill the batch"
        g.native.set_limit(3)
        assert await asyncio.to_thread(join, g, b"") is None
        assert join(g, b"") is not None
        g.native.shut()
        assert join(g, b"") is None
        g.native.open([], [])
        assert join(g, b"") is not None
        g.native.refuse()
        assert join(g, b"") is None
        assert g.items == [b"0123456789", b""]

    run(make_loop, main)


def test_tasks_wake_with_their_receipts(make_loop, tmp_path):
    """In the order of submission, each in its context, with no frame of ours below it."""

    async def append(log, number):
        name.set(number)
        for turn in range(3):
            receipt = await log.append(b"%d" % number)
            assert receipt.durable
            assert receipt.sequence == turn * TASKS + number + 1
            assert name.get() == number
            assert frames_of_ours() == []

    async def main():
        async with Log.open(tmp_path / "log", flush=ALWAYS) as log:
            await asyncio.gather(*(append(log, number) for number in range(TASKS)))
            assert log.last == 3 * TASKS
        assert name.get() is None

    run(make_loop, main)


@pytest.mark.parametrize("message", [None, "enough"])
def test_append_that_gathers_is_withdrawn(make_loop, message, tmp_path):
    async def main():
        async with Log.open(tmp_path / "log", flush=ALWAYS) as log:
            tasks = [asyncio.create_task(log.append(b"%d" % i)) for i in range(4)]
            await asyncio.sleep(0)  # the first one is in flight, the others gather
            assert tasks[2].cancel(message)
            assert not tasks[2].done(), "nobody runs a task in the middle of another one"
            with pytest.raises(asyncio.CancelledError) as caught:
                await tasks[2]
            assert caught.value.args == (() if message is None else (message,))
            assert [(await tasks[i]).sequence for i in (0, 1, 3)] == [1, 2, 3]
            assert await contents(log) == [b"0", b"1", b"3"]

    run(make_loop, main)


def test_append_in_flight_is_waited_out(make_loop, tmp_path):
    async def main():
        async with Log.open(tmp_path / "log", flush=ALWAYS) as log:
            task = asyncio.create_task(log.append(b"stays"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (log.last, log.durable) == (1, 1)

    run(make_loop, main)


def test_woken_task_cancels_one_that_the_same_commit_answers(make_loop, tmp_path):
    async def append(log, number):
        await log.append(b"%d" % number)
        if number == 1:
            assert tasks[2].cancel()
        await log.append(b"again %d" % number)

    async def main():
        async with Log.open(tmp_path / "log", flush=ALWAYS) as log:
            tasks[:] = [asyncio.create_task(append(log, number)) for number in range(4)]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(each) for each in found] == [
                *[type(None)] * 2,
                asyncio.CancelledError,
                type(None),
            ]
            assert sorted(await contents(log))[:4] == [b"0", b"1", b"2", b"3"]
        assert len(pure_records(tmp_path / "log")) == 7

    tasks = []
    run(make_loop, main)


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_program_ends_out_of_a_woken_task(make_loop, end, tmp_path):
    woken = []

    async def leave(log):
        await log.append(b"leaves")
        raise end

    async def note(log, number):
        await log.append(b"%d" % number)
        woken.append(number)

    async def main():
        log = await Log.open(tmp_path / "log", flush=ALWAYS)
        tasks = [asyncio.create_task(note(log, 0)), asyncio.create_task(leave(log))]
        tasks += [asyncio.create_task(note(log, number)) for number in (1, 2)]
        await asyncio.wait(tasks)
        assert isinstance(tasks[1].exception(), end)
        await log.append(b"goes on")
        await log.aclose()

    loop = make_loop()
    task = loop.create_task(main())
    with pytest.raises(end):
        loop.run_until_complete(task)
    loop.run_until_complete(task)  # the others wake, also if they were about to
    assert woken == [0, 1, 2]
    loop.close()


def test_each_append_of_a_commit_that_fails_raises(make_loop, tmp_path):
    async def append(log, number):
        with pytest.raises(OSError, match="File too large for a record"):
            await log.append(b"%d" % number)

    async def main():
        async with Log.open(tmp_path / "log", flush=ALWAYS) as log:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            try:
                await asyncio.gather(*(append(log, number) for number in range(4)))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert (await log.append(b"fits")).sequence == 1

    run(make_loop, main)


def test_append_of_another_loop_is_withdrawn(make_loop, tmp_path):
    """It joins a batch that gathers before its task finds out."""

    async def begin():
        log = await Log.open(tmp_path / "log", flush=ALWAYS)
        tasks = [asyncio.ensure_future(log.append(b"%d" % number)) for number in range(2)]
        await asyncio.sleep(0)
        return log, tasks

    async def end(log, tasks):
        await asyncio.gather(*tasks)
        assert log.last == 2
        await log.aclose()

    loop = make_loop()
    log, tasks = loop.run_until_complete(begin())
    with pytest.raises(RuntimeError, match="different loop"):
        run(make_loop, log.append, b"elsewhere")
    loop.run_until_complete(end(log, tasks))
    loop.close()


def test_anyio_sees_that_a_task_waits(make_loop):
    async def main():
        g = Gather()
        async with anyio.create_task_group() as group:
            group.start_soon(g.append, b"x")
            await anyio.wait_all_tasks_blocked()
            assert g.items == [b"x"]
            group.cancel_scope.cancel()

    run(make_loop, main)


FORKS = """
woken = []

async def main():
    loop, parent = asyncio.get_running_loop(), os.getpid()
    loop.set_debug(False)  # else the loop would wake the tasks
    log = await aiommap.Log.open(os.path.dirname(make()) + "/log", flush=ALWAYS)

    async def append(number):
        await log.append(b"%d" % number)
        woken.append(number)
        if number == 2 and (child := os.fork()):
            assert os.waitpid(child, 0) == (child, 0)
        if number < 3:
            try:
                await log.append(b"again %d" % number)
            except aiommap.ForkedError:
                assert os.getpid() != parent
                waiting = log._appender._queue.waiting
                for _ in range(3):
                    await asyncio.sleep(0)  # what the parent's tasks began is not for the child
                os._exit(woken != [0, 1, 2] or waiting() != [b"again 1"])
        else:
            assert os.getpid() == parent

    await asyncio.gather(*map(append, range(4)))
    assert woken == [0, 1, 2, 3]
    assert log.last == 7
    await log.aclose()

ALWAYS = aiommap.FlushPolicy.always()
run(main)
print("alive")
"""


def test_woken_task_forks(make_loop, tmp_path, request):
    backend = "uvloop" if "uvloop" in request.node.name else "asyncio"
    expect_alive(FORKS, tmp_path, backend)
