"""Flushes by policy: what was appended while one ended is flushed, too."""

from __future__ import annotations

import anyio
import pytest

from aiommap import FlushPolicy, Log
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("policy", [FlushPolicy.every_writes(10), FlushPolicy.every_bytes(10)])
async def test_no_burst_stays_behind(folder, policy):
    async with Log.open(folder, flush=policy) as log:
        for _ in range(100):
            for _ in range(10):
                await log.append(b"x")
            await log.flush()
            for _ in range(49):
                await log.append(b"y")
            with anyio.fail_after(30):
                await until(lambda: log.last - log.durable < 10)
