"""The example of a ring of messages, run as a user runs it, and its class by itself."""

from __future__ import annotations

import random
import subprocess
import sys

import anyio
import pytest

import aiommap
from tests.support.example_scripts import EXAMPLES, load

SCRIPT = EXAMPLES / "ring_buffer.py"
pytestmark = pytest.mark.anyio


def test_ring_between_two_processes(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "ring"), "--messages", "3000"]
    done = subprocess.run(
        [*command, "--size", "1000"], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3000 messages in ")


@pytest.mark.parametrize("size", [24, 61, 64, 300])
async def test_ring_carries_what_was_put(tmp_path, size):
    """Messages have every length that fits, and wrap at every place."""
    ring_buffer = load(SCRIPT)
    draw = random.Random(size)
    sent = [draw.randbytes(draw.randrange(size - 3)) for _ in range(200)]

    async def put(ring):
        for message in sent:
            await ring.put(message)
        await ring.end()

    async with aiommap.open(tmp_path / "ring", "w+", size=64 + size) as file:
        ring = ring_buffer.Ring(file)
        with anyio.fail_after(100):
            async with anyio.create_task_group() as group:
                group.start_soon(put, ring)
                came = [message async for message in ring]
        with pytest.raises(ValueError, match="for a ring of"):
            await ring.put(bytes(size - 3))
    assert came == sent
