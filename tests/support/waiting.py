"""Waiting for other tasks, without sleeping."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import anyio.to_thread

from tests.support.internals import native


def spend_time_slice():
    """Compute until this thread has to give way."""
    while not native.time_slice_spent():
        pass


async def until(condition):
    """Let the loop run until a condition holds; after a while leave the processor to others."""
    turns = 0
    with anyio.fail_after(100):
        while not condition():
            await (anyio.lowlevel.checkpoint() if turns < 200 else anyio.sleep(0.001))
            turns += 1


async def nothing_happens():
    """Give tasks and threads that should not run every chance to run."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()
    await anyio.to_thread.run_sync(int)
