"""Waiting for what other tasks are going to do, without sleeping."""

from __future__ import annotations

import anyio
import anyio.lowlevel


async def until(condition):
    """Let the loop run until something holds."""
    with anyio.fail_after(20):
        while not condition():
            await anyio.lowlevel.checkpoint()
