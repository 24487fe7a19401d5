"""A writer of a log is killed at a system call: readers and the next writer find all records."""

from __future__ import annotations

import os
import shutil
import signal

import anyio
import anyio.to_thread
import pytest

from aiommap import FlushPolicy, Log
from tests.support.logs import (
    BIG,
    SEGMENT,
    WRITER,
    flip,
    places,
    script,
    segment_path,
    up_to_damage,
    without_control,
)
from tests.support.tracing import missing, run_traced

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "log"


#: System calls at which the writer is killed.
CALLS = ("pwrite64", "fdatasync", "fsync", "linkat", "unlinkat", "fallocate")
#: Calls that Python makes for other files as well: only those on files of the log count.
NAMED_CALLS = ("openat", "mkdir", "fcntl")


async def killed(folder, code, call, when, *arguments):
    """Run a script that is killed at the n-th call, if it makes that many; return its output.

    The signal comes at the entry: the call itself does not happen, and the one before it has.
    """
    inject = [
        "-o",
        os.devnull,
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:signal=KILL:when={when}",
    ]
    if call in NAMED_CALLS:
        names = ("", "control", *(segment_path(folder, base).name for base in (1, 21, 41)))
        inject += [option for name in names for option in ("-P", folder / name)]
    done = await anyio.to_thread.run_sync(
        lambda: run_traced(code, folder, *arguments, options=inject)
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0, numbers_of(done)


def numbers_of(done):
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("call", CALLS + NAMED_CALLS)
@pytest.mark.parametrize("policy", ["always", "manual"])
async def test_kill_at_system_calls(folder, call, policy):
    deaths = 0
    for when in (1, 2, 3, 5, 9, 17, 33):
        shutil.rmtree(folder, ignore_errors=True)
        died, said = await killed(folder, WRITER, call, when, policy, "1")
        deaths += died
        if folder.exists():
            for mode in ("r", "r", "a"):
                await look(folder, mode, [0, *said])
        done = await anyio.to_thread.run_sync(lambda: script(WRITER, folder, policy, "1"))
        await look(folder, "r", said + numbers_of(done))
        if not died:
            break  # the script makes no more such calls
    assert deaths > 0


async def look(folder, mode, said):
    async with Log.open(folder, mode, segment_size=SEGMENT) as log:
        found = [record async for record in log.read()]
        assert [record.sequence for record in found] == list(range(log.first, log.last + 1))
        assert log.last >= max(said)
        for record in found:
            assert record.data.startswith(b"%d " % record.sequence)


SUCCESSOR = """
import sys, anyio, aiommap
async def main():
    async with aiommap.Log.open(sys.argv[1], segment_size=65536) as log:
        print(log.last)
anyio.run(main)
"""


@pytest.mark.parametrize("call", ["renameat", "pwrite64", "fsync", "fdatasync", "openat"])
async def test_kill_while_segments_are_set_aside(folder, tmp_path, call):
    """Whatever step the kill interrupts, the next opening does the rest, with the same records."""
    async with Log.open(folder, flush=FlushPolicy.never(), segment_size=SEGMENT) as log:
        for i in range(1, 31):
            await log.append(b"%d " % i + bytes(BIG))
    without_control(folder)
    flip(segment_path(folder), places([bytes(BIG + 2)] * 3)[2] + 100)
    count = len(list(folder.glob("*.log")))
    whole, deaths = tmp_path / "whole", 0
    shutil.copytree(folder, whole)
    for when in range(1, 8):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        died, _ = await killed(folder, SUCCESSOR, call, when)
        deaths += died
        for mode in ("r", "r", "a", "r"):
            async with Log.open(folder, mode, segment_size=SEGMENT) as log:
                found, damaged = await up_to_damage(log)
                assert [int(data.split()[0]) for data in found] == [1, 2], (when, mode)
                # Until a writer has recovered, a reader cannot tell damaged from torn.
                assert damaged in ((None, 3) if mode == "r" else (None,))
        assert len(list(folder.glob("*.log.cut-*"))) == count - 1
        if not died:
            break
    assert deaths > 0
