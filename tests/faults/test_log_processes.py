"""Logs between processes: second writers, forked children, kills, readers without rights."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import asynccontextmanager

import anyio
import pytest

import aiommap
from aiommap import Log
from tests.support.logs import (
    SEGMENT,
    WRITER,
    contents,
    make,
    pure_records,
    reopened,
    script,
    segments,
    without_control,
)
from tests.support.tracing import missing, run_traced

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "log"


async def test_second_writer_is_told_who_holds_it(folder):
    async with Log.open(folder) as log:
        with pytest.raises(anyio.BusyResourceError) as caught:
            await Log.open(folder)
        message = str(caught.value)
        assert f"process {os.getpid()} on {os.uname().nodename} (life {log.life})" in message
        assert str(folder) in message
        done = await anyio.to_thread.run_sync(
            lambda: script(
                "import sys, anyio, aiommap\n"
                "async def main():\n"
                "    await aiommap.Log.open(sys.argv[1])\n"
                "anyio.run(main)",
                folder,
                check=False,
            )
        )
        assert done.returncode == 1
        assert f"is written by process {os.getpid()}" in done.stderr
        await log.append(b"undisturbed")
    assert await reopened(folder) == [b"undisturbed"]


HOLDER = """
import os, sys, anyio, aiommap
async def main():
    log = await aiommap.Log.open(sys.argv[1], segment_size=65536)
    for _ in range(int(sys.argv[3])):
        await log.append(bytes(40000))
    if sys.argv[2] == "forks and rolls":
        while not log.statistics().standby_ready:
            await anyio.sleep(0.005)
        if not os.fork():
            sys.stdin.readline()
            os._exit(0)
        await log.append(bytes(40000))
    if sys.argv[2] == "forks" and os.fork():
        os._exit(9)
    os.write(1, b"ready")
    sys.stdin.readline()
anyio.run(main)
"""


#: The records of a holder that fill one segment, and two.
ONE, TWO = [bytes(40000)], [bytes(40000)] * 2


@pytest.mark.parametrize("records", [ONE, TWO], ids=["first", "rolled"])
@pytest.mark.parametrize("control", ["here", "removed", "another"])
async def test_log_is_locked_whatever_becomes_of_the_control_file(folder, control, records):
    """A living writer keeps its lock, and kill -9 lets the next writer in."""
    async with holding(folder, "stays", records) as process:
        told = f"process {process.pid} on"
        if control != "here":
            without_control(folder)
            told = "another process"
        if control == "another":
            (folder / "control").touch()
        before = sorted(os.listdir(folder))
        with pytest.raises(anyio.BusyResourceError, match=f"is written by {told}"):
            await Log.open(folder)
        assert sorted(os.listdir(folder)) == before  # the refused writer makes no control file
        assert await reopened(folder, "r") == records  # readers need no lock
        process.kill()
        await process.wait()
        assert await reopened(folder) == records


@pytest.mark.parametrize("records", [ONE, TWO], ids=["first", "rolled"])
async def test_forked_child_keeps_no_lock_of_a_segment(folder, records):
    async with holding(folder, "forks", records) as process:
        assert await process.wait() == 9
        without_control(folder)
        assert await reopened(folder) == records  # the child is still alive


async def test_child_forked_beside_a_standby_keeps_no_lock_of_it(folder):
    async with holding(folder, "forks and rolls", ONE) as process:
        process.kill()
        await process.wait()
        assert await reopened(folder) == [*ONE, bytes(40000)]  # the child is still alive


async def test_closing_releases_the_locks_of_all_copies(folder):
    """A child has copies if another thread forks it while descriptors are opened or closed."""
    log = await Log.open(folder)
    await log.append(b"x")
    copies = [os.dup(fd) for fd in descriptors_below(folder)]
    await log.aclose()
    try:
        assert len(copies) > 1
        assert await reopened(folder) == [b"x"]
    finally:
        for fd in copies:
            os.close(fd)


def descriptors_below(folder):
    found = {fd: f"/proc/self/fd/{fd}" for fd in map(int, os.listdir("/proc/self/fd"))}
    return [
        fd
        for fd, link in found.items()
        if os.path.lexists(link) and os.readlink(link).startswith(f"{folder}/")
    ]


async def test_closing_and_failing_to_open_let_others_in(folder):
    await make(folder, b"x")
    without_control(folder)
    (folder / "control").mkdir()
    with pytest.raises(aiommap.CorruptLogError, match="control is no regular file"):
        await Log.open(folder)
    (folder / "control").rmdir()
    await make(folder, b"y")
    async with holding(folder, "stays", ONE) as process:
        await process.stdin.aclose()
        assert await process.wait() == 0  # without aclose
        assert await reopened(folder) == [b"x", b"y", *ONE]


@asynccontextmanager
async def holding(folder, how, records):
    """Yield a process that has appended records, and has the log open."""
    command = [sys.executable, "-c", HOLDER, folder, how, str(len(records))]
    async with await anyio.open_process(command, stderr=None) as process:
        try:
            assert await process.stdout.receive() == b"ready"
            yield process
        finally:
            await process.stdin.aclose()


RACER = """
import sys, anyio, aiommap
async def main():
    sys.stdin.readline()
    try:
        async with aiommap.Log.open(sys.argv[1]) as log:
            for _ in range(20):
                await log.append(b"x")
            print("won", flush=True)
            sys.stdin.readline()
    except anyio.BusyResourceError:
        print("lost", flush=True)
anyio.run(main)
"""


@pytest.mark.slow
async def test_of_racing_writers_one_wins(folder):
    for turn in range(3):
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        said = sorted(racer.stdout.readline().strip() for racer in racers)
        assert said == ["lost", "lost", "won"]
        for racer in racers:
            racer.communicate("end\n")
        assert len(pure_records(folder)) == 20 * (turn + 1)


FORKER = """
import os, sys, anyio, aiommap
async def main():
    log = await aiommap.Log.open(sys.argv[1])
    for _ in range(4):
        await log.append(b"parent")
    reading = log.read()
    await anext(reading)
    granted = anext(reading)
    child = os.fork()
    if child == 0:
        told = []
        verbs = log.append(b"c"), log.append_many([b"c", b"d"]), log.flush(), log.discard(1)
        for verb in (*verbs, granted, anext(reading)):
            try:
                verb.send(None)
            except aiommap.ForkedError:
                told.append(1)
        for verb in (log.read, log.tail):
            try:
                verb()
            except aiommap.ForkedError:
                told.append(1)
        os.write(1, b"child %d\\n" % len(told))
        sys.stdin.readline()
        os._exit(0)
    os.write(1, b"parent\\n")
    os._exit(9)
anyio.run(main)
"""


async def test_forked_child_is_refused_and_keeps_no_lock(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", FORKER, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = sorted(process.stdout.readline().strip() for _ in range(2))
    assert said == ["child 8", "parent"]
    assert process.wait(100) == 9
    # The child is still alive; the lock of the parent ended with the parent.
    assert await reopened(folder) == [b"parent"] * 4
    process.communicate("end\n")


CLOSED = """
import os, sys, anyio, aiommap
async def main():
    async with aiommap.Log.open(sys.argv[1], segment_size=65536) as log:
        for _ in range(4):
            await log.append(bytes(40000))
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
    if os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
    for fd in others:
        os.fstat(fd)
    os._exit(7)
anyio.run(main)
"""


async def test_forked_child_closes_nothing_but_what_holds_a_lock(folder):
    """Other files have the same descriptor numbers by then."""
    done = await anyio.to_thread.run_sync(lambda: script(CLOSED, folder, check=False))
    assert done.returncode == 7, done.stderr


READER = """
import os, sys, anyio, aiommap
async def main():
    os.setgid(65534); os.setuid(65534)
    async with aiommap.Log.open(sys.argv[1], "r") as log:
        tail = log.tail()
        async for record in tail:
            print(record.sequence, record.data.decode(), flush=True)
            if record.data == b"end":
                break
    try:
        await aiommap.Log.open(sys.argv[1])
    except PermissionError:
        print("refused")
anyio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_reader_needs_read_permission_only():
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        os.chmod(name, 0o755)
        folder = f"{name}/log"
        async with Log.open(folder) as log:
            os.chmod(folder, stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | 0o5)
            os.chmod(f"{folder}/control", 0o444)
            await log.append(b"first")
            process = await anyio.open_process(
                [sys.executable, "-c", READER, folder], stderr=subprocess.PIPE
            )
            async with process:
                said = b""
                while b"1 first\n" not in said:
                    said += await process.stdout.receive()
                await log.append(b"woken")
                while b"2 woken\n" not in said:
                    said += await process.stdout.receive()
                await log.append(b"end")
                while not said.endswith(b"refused\n"):
                    said += await process.stdout.receive()


async def test_reader_on_read_only_mount(folder, tmp_path):
    await make(folder, b"x", b"y")
    other = tmp_path / "other"
    other.mkdir()
    if subprocess.run(["mount", "--bind", folder, other], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", other], check=True)
        assert await reopened(other, "r") == [b"x", b"y"]
        with pytest.raises(OSError, match="Read-only file system"):
            await reopened(other)
    finally:
        subprocess.run(["umount", other], check=True)  # nothing is open any more


COUNTED = """
import os, sys, anyio, aiommap
folder, verb = sys.argv[1:]
async def main():
    async with aiommap.Log.open(folder, "r" if verb == "read" else "a") as log:
        os.write(1, b"begin")
        if verb == "read":
            count = 0
            async for record in log.read():
                count += 1
            assert count == 20000, count
        elif verb == "many":
            await log.append_many([bytes(100)] * 20000)
        os.write(1, b"end")
anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["read", "many"])
async def test_no_system_call_for_each_record(folder, tmp_path, verb):
    if missing() is not None:
        pytest.skip(missing())
    async with Log.open(folder) as log:
        await log.append_many([bytes(100)] * 20000)
    trace = tmp_path / "trace"
    done = await anyio.to_thread.run_sync(
        lambda: run_traced(COUNTED, folder, verb, options=["-o", trace])
    )
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if '"begin"' in line)
    end = next(i for i, line in enumerate(lines) if '"end"' in line)
    assert end - begin < 600


async def test_writer_survives_kill_of_its_readers(folder):
    async with Log.open(folder) as log:
        await log.append(b"1")
        process = await anyio.open_process(
            [sys.executable, "-c", READER.replace("os.setgid(65534); os.setuid(65534)", ""), folder]
        )
        async with process:
            said = b""
            while said != b"1 1\n":
                said += await process.stdout.receive()
            process.kill()
            await process.wait()
        await log.append(b"2")
        assert await contents(log) == [b"1", b"2"]


async def test_readers_follow_through_kill_and_takeover(folder):
    """A tail survives ``kill -9`` of the writer, and goes on with the next writer's records."""
    writer = WRITER.replace("anyio.run(main)", "    os.kill(os.getpid(), 9)\nanyio.run(main)")
    writer = writer.replace("discard(log.last - 5)", "flush()")
    await make(folder, b"0 first")
    async with Log.open(folder, "r") as reader:
        numbers = []

        async def follow():
            async for record in reader.tail(start=2):
                numbers.append(record.sequence)
                if record.data == b"end":
                    return

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            done = await anyio.to_thread.run_sync(
                lambda: subprocess.run(
                    [sys.executable, "-c", writer, folder, "manual", "1"],
                    capture_output=True,
                    timeout=150,
                )
            )
            assert done.returncode == -9, done.stderr
            await make(folder, b"end")
        assert numbers == list(range(2, 43))


FOLLOWER = """
import os, sys, anyio, aiommap
async def main():
    async with aiommap.Log.open(sys.argv[1], "r") as log:
        async for record in log.tail(1):
            assert record.data.startswith(b"%d " % record.sequence), record
            os.write(1, b"%d\\n" % record.sequence)
            if record.data.endswith(b"end"):
                return
anyio.run(main)
"""


async def test_two_processes_follow_through_rolls_and_a_takeover(folder):
    """Each gets every record, once and in order, even if another reader is killed."""
    async with Log.open(folder, segment_size=SEGMENT) as log:
        await log.append(b"1 first")
        async with (
            await following(folder) as one,
            await following(folder) as other,
            await following(folder) as killed,
        ):
            for process in (one, other, killed):
                assert await process.stdout.receive() == b"1\n"
            killed.kill()
            for number in range(2, 40):
                await log.append(b"%d " % number + bytes(9000))
            await log.aclose()
            done = await anyio.to_thread.run_sync(
                lambda: script(
                    WRITER.replace("discard(log.last - 5)", "flush()"), folder, "manual", "1"
                )
            )
            assert done.stdout.split()[-1] == "79"
            async with Log.open(folder, segment_size=SEGMENT) as last:
                await last.append(b"%d end" % (last.last + 1))
            for process in (one, other):
                said = b"".join([piece async for piece in process.stdout])
                assert [int(line) for line in said.split()] == list(range(2, 81))
                assert await process.wait() == 0


async def following(folder):
    return await anyio.open_process([sys.executable, "-c", FOLLOWER, folder], stderr=None)


async def test_kill_leaves_nothing_to_clean_up(folder):
    await make(folder, b"x")
    without_control(folder)
    assert await reopened(folder) == [b"x"]
    assert sorted(os.listdir(folder)) == ["00000000000000000001.log", "control"]
    assert len(segments(folder)) == 1
