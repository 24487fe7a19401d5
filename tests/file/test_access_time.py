"""Reads do not update the access time: an update joins the journal, which may wait (I1)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

import aiommap

pytestmark = pytest.mark.anyio
LONG_AGO = 1_000_000_000
DATA = bytes(range(256)) * 16


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    make_due(path)
    path.read_bytes()
    if accessed(path) == LONG_AGO:
        pytest.skip("this file system is mounted without times of access")
    make_due(path)
    return path


def make_due(path):
    """Make the next access update the time, as after a change of the file (relatime)."""
    os.utime(path, (LONG_AGO, LONG_AGO + 1))


def accessed(path):
    return int(os.stat(path).st_atime)


async def test_open_is_noted_and_reads_are_not(path):
    async with aiommap.open(path) as f:
        assert accessed(path) > LONG_AGO
        make_due(path)
        before = f.statistics().inline_reads
        assert await f.read(0, 4096) == DATA
        assert await f.read_many([(0, 10), (20, 10)]) == [DATA[:10], DATA[20:30]]
        assert f.statistics().inline_reads == before + 3
        assert accessed(path) == LONG_AGO


async def test_reopen_keeps_reads_unnoted(path):
    async with aiommap.open(path, "r+") as f:
        await f.reopen()
        make_due(path)
        assert await f.read(0, 4096) == DATA
        assert accessed(path) == LONG_AGO


READ = """
import asyncio, sys
import aiommap

async def main():
    async with aiommap.open(sys.argv[1]) as f:
        print(len(await f.read(0, 4096)))

asyncio.run(main())
"""
PR_CAPBSET_DROP, CAP_FOWNER = 24, 3


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a file of somebody else")
def test_read_files_of_other_owners(path):
    """Only the owner may turn the updates off, or a process with CAP_FOWNER."""
    os.chown(path, 65534, -1)
    make_due(path)
    done = subprocess.run(
        [sys.executable, "-c", READ, path],
        capture_output=True,
        text=True,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_FOWNER, 0, 0, 0),
    )
    assert (done.stdout, done.stderr) == ("4096\n", "")
    assert accessed(path) > LONG_AGO
