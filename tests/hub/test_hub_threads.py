"""The threads of a hub or a file end when it is closed, even while something still refers to it."""

from __future__ import annotations

import pytest

from tests.support.fork_server import run_code

CLOSED = """
import sys
import anyio
import aiommap
from tests.support.internals import kept_threads
from tests.support.waiting import until

async def main():
    async with aiommap.Hub() as hub:
        await hub.open(sys.argv[1])
        assert kept_threads.reserve.runs
    await until(lambda: not kept_threads.reserve.runs)
    await hub.aclose()
    async with aiommap.Log.open(sys.argv[1] + ".log") as log:
        assert kept_threads.reserve.runs
    await until(lambda: not kept_threads.reserve.runs)
    async with aiommap.open(sys.argv[1], "r+") as f:
        await f.reopen()
        assert kept_threads.reserve.runs
    await until(lambda: not kept_threads.reserve.runs)
    print("gone", hub, log, f, file=sys.stderr)

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_closed_hub_keeps_no_thread(path, backend):
    done = run_code(CLOSED, path, backend)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("gone")
