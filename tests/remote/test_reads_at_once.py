"""A task that has waited for an opening or a fetch does not give way in its next read, too."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from tests.support.objects import BLOCK, DATA
from tests.support.waiting import spend_time_slice

pytestmark = pytest.mark.anyio

#: A machine that is busy may spend the slice of one attempt.
ATTEMPTS = 20


def came_at_once(reading):
    """Tell whether a read returns before any other task runs."""
    try:
        reading.send(None)
    except StopIteration:
        return True
    finally:
        reading.close()
    return False


async def test_after_an_opening(make_cache, objects):
    async with make_cache() as cache:
        async with cache.open(objects, prewarm=True):
            pass
        found = []
        for _ in range(ATTEMPTS):
            spend_time_slice()
            async with cache.open(objects) as s:
                found.append(came_at_once(s.read_exact(0, 10)))
        assert any(found)


async def test_after_a_fetch(make_cache, objects):
    found = []

    async def read(offset):
        await s.read_exact(offset, 10)
        found.append(came_at_once(s.read_exact(offset, 10)))

    async with make_cache() as cache, cache.open(objects, read_ahead=False) as s:
        for offset in range(0, len(DATA), BLOCK):
            objects.gate.clear()
            async with anyio.create_task_group() as group:
                group.start_soon(read, offset)
                await anyio.to_thread.run_sync(objects.asked.acquire)
                spend_time_slice()
                objects.gate.set()
        assert any(found)
